// Values under the pointer. The page is complete without this.
(() => {
  const box = document.createElement("div");
  box.id = "read";
  box.hidden = true;
  document.body.append(box);
  const svgName = "http://www.w3.org/2000/svg";
  const axis = (text) => {
    const [from, to, low, high, log] = text.split(" ").map(Number);
    const scale = log ? Math.log10 : (value) => value;
    return { from, to, at: (value) => from + (scale(value) - scale(low)) / (scale(high) - scale(low)) * (to - from) };
  };
  const numbers = (text) => text.split(" ").map(Number);
  const show = (event, text) => {
    box.textContent = text;
    box.hidden = false;
    const right = event.clientX + 16 + box.offsetWidth < innerWidth;
    box.style.left = Math.max(4, right ? event.clientX + 14 : event.clientX - 14 - box.offsetWidth) + "px";
    box.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 4)) + "px";
  };
  for (const svg of document.querySelectorAll("svg.chart")) {
    const x = axis(svg.dataset.x), y = axis(svg.dataset.y);
    const lines = [...svg.querySelectorAll("[data-name]")].map((path) => ({
      name: path.dataset.name, color: path.getAttribute("stroke"),
      xs: numbers(path.dataset.xs), ys: numbers(path.dataset.ys),
    }));
    const marks = svg.appendChild(document.createElementNS(svgName, "g"));
    const draw = (kind, attributes) => {
      const mark = marks.appendChild(document.createElementNS(svgName, kind));
      for (const [name, value] of Object.entries(attributes)) mark.setAttribute(name, value);
    };
    svg.addEventListener("pointermove", (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      marks.replaceChildren();
      if (!lines.length || at.x < x.from - 8 || at.x > x.to + 8) { box.hidden = true; return; }
      const near = lines.map((line) => {
        let best = 0;
        line.xs.forEach((value, index) => {
          if (Math.abs(x.at(value) - at.x) < Math.abs(x.at(line.xs[best]) - at.x)) best = index;
        });
        return { ...line, x: line.xs[best], y: line.ys[best] };
      });
      const distance = (point) => Math.abs(x.at(point.x) - at.x);
      const center = near.reduce((a, b) => (distance(b) < distance(a) ? b : a)).x;
      const shown = near.filter((point) => Math.abs(x.at(point.x) - x.at(center)) < 3);
      draw("path", { d: `M${x.at(center)} ${y.to}V${y.from}`, stroke: "var(--muted)", "stroke-width": ".7" });
      for (const point of shown) draw("circle", { cx: x.at(point.x), cy: y.at(point.y), r: 3.5, fill: point.color });
      const text = shown.map((point) => `${point.name}: ${point.y.toLocaleString("en", { maximumSignificantDigits: 5 })}`);
      show(event, [`${svg.dataset.label} ${center.toLocaleString("en")}`, ...text].join("\n"));
    });
    svg.addEventListener("pointerleave", () => { marks.replaceChildren(); box.hidden = true; });
  }
  // Titles of bars and cells, at once instead of after the browser's pause.
  for (const title of document.querySelectorAll("svg.marks title")) {
    const mark = title.parentNode, text = title.textContent;
    title.remove();
    mark.addEventListener("pointermove", (event) => show(event, text));
    mark.addEventListener("pointerleave", () => { box.hidden = true; });
  }
})();
