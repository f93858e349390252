"use strict";

const $ = (id) => document.getElementById(id);
const AT_ONCE = 3; // Photographs that are sent at the same time.

// The token lives as long as the tab.
const withToken = (headers) => {
  const token = sessionStorage.getItem("token");
  return token ? { ...headers, authorization: `Bearer ${token}` } : headers;
};

/** An answer of the server, or an error in plain words. */
async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: withToken(options.headers ?? {}) });
  } catch {
    throw { message: "The server cannot be reached.", again: true };
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const status = response.status;
  if (status === 401) {
    $("entry").hidden = false;
    $("token").focus();
  }
  const words = {
    401: "This server asks for a token.",
    408: "That took too long.",
    413: "The picture is too large for this server.",
    415: "This is no picture that the server can read.",
    422: "The picture is damaged.",
    429: "Too many requests: wait a second.",
    503: "The server is busy.",
  };
  throw { message: words[status] ?? told?.error?.message ?? `The server answered ${status}.`, again: [401, 408, 429, 503].includes(status) };
}

const say = (text) => { $("said").textContent = text; };
const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Runs so many at a time, in order. */
const waiting = [];
let running = 0;
function next() {
  while (running < AT_ONCE && waiting.length > 0) {
    running += 1;
    waiting.shift()().finally(() => { running -= 1; next(); });
  }
}

function tidy() {
  const any = $("cards").childElementCount > 0;
  $("none").hidden = any;
  $("clear").hidden = !any;
}

/** One photograph and what is said of it. */
function add(file) {
  const card = $("blank").content.firstElementChild.cloneNode(true);
  const part = (name) => card.querySelector(name);
  const name = file.name || "photograph";
  const urls = [];
  const show = (blob) => { const url = URL.createObjectURL(blob); urls.push(url); return url; };
  const [photo, overlay] = [part(".photo"), part(".overlay")];

  part("h3").textContent = name;
  photo.alt = name;
  photo.addEventListener("error", () => { photo.hidden = true; part(".unseen").hidden = false; });
  photo.src = show(file);

  const state = (text, wrong = false) => {
    part(".state").textContent = text;
    part(".state").hidden = text === "";
    part(".state").classList.toggle("wrong", wrong);
  };
  const back = () => {
    overlay.hidden = true;
    photo.hidden = photo.naturalWidth === 0;
    part(".unseen").hidden = !photo.hidden;
    part(".back").hidden = true;
    card.querySelectorAll(".why").forEach((button) => button.setAttribute("aria-pressed", "false"));
  };
  const request = { method: "POST", body: file, headers: { "content-type": file.type || "application/octet-stream" } };

  async function why(button, top) {
    button.disabled = true;
    try {
      const picture = await (await ask(`/v1/explain?class=${top.index}`, request)).blob();
      overlay.src = show(picture);
      overlay.alt = `Where the network sees ${top.class} on ${name}`;
      back();
      overlay.hidden = false;
      photo.hidden = true;
      part(".unseen").hidden = true;
      part(".back").hidden = false;
      button.setAttribute("aria-pressed", "true");
      say(`The picture now shows where ${top.class} is seen.`);
      state("");
    } catch (error) {
      state(error.message, true);
      say(error.message);
    }
    button.disabled = false;
  }

  function bars(tops) {
    part(".bars").replaceChildren(...tops.map((top) => {
      const line = $("line").content.firstElementChild.cloneNode(true);
      line.querySelector(".name").textContent = top.class;
      line.querySelector(".percent").textContent = percent(top.probability);
      // A style set by script is allowed where a style attribute is not.
      requestAnimationFrame(() => { line.querySelector(".fill").style.width = percent(top.probability).replace(" ", ""); });
      const button = line.querySelector(".why");
      button.setAttribute("aria-label", `Why ${top.class}?`);
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => why(button, top));
      return line;
    }));
  }

  async function look() {
    state("Looking …");
    part(".again").hidden = true;
    try {
      const { results: [result] } = await (await ask("/v1/classify?topk=5", request)).json();
      bars(result.top);
      state("");
      say(`${name}: ${result.top[0].class}, ${percent(result.top[0].probability)}.`);
    } catch (error) {
      state(error.message, true);
      part(".again").hidden = !error.again;
      say(`${name}: ${error.message}`);
    }
  }

  part(".back").addEventListener("click", back);
  part(".again").addEventListener("click", () => { waiting.push(look); next(); });
  part(".remove").addEventListener("click", () => card.dispatchEvent(new Event("gone")));
  card.addEventListener("gone", () => { urls.forEach((url) => URL.revokeObjectURL(url)); card.remove(); tidy(); });
  $("cards").prepend(card);
  tidy();
  waiting.push(look);
  next();
}

$("files").addEventListener("change", (event) => {
  [...event.target.files].forEach(add);
  event.target.value = ""; // The same file may be chosen again.
});
$("clear").addEventListener("click", () => {
  document.querySelectorAll(".card").forEach((card) => card.dispatchEvent(new Event("gone")));
  $("files").focus();
});

// Dropping works anywhere on the page.
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  [...event.dataTransfer.files].forEach(add);
});
addEventListener("paste", (event) => [...(event.clipboardData?.files ?? [])].forEach(add));

// The camera: browsers give it to secure pages only, of which this machine's own address is one.
$("camera").hidden = !(isSecureContext && navigator.mediaDevices?.getUserMedia);
let stream = null;
function shut() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("viewfinder").hidden = true;
}
$("camera").addEventListener("click", async () => {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    $("video").srcObject = stream;
    $("viewfinder").hidden = false;
    await $("video").play();
    $("shoot").focus();
  } catch {
    shut();
    say("The camera cannot be used.");
    $("ways").textContent = "The camera cannot be used; drop or paste photographs here";
  }
});
$("shut").addEventListener("click", () => { shut(); $("camera").focus(); });
$("shoot").addEventListener("click", () => {
  const [video, canvas] = [$("video"), document.createElement("canvas")];
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => blob && add(new File([blob], "camera.jpg", { type: "image/jpeg" })), "image/jpeg", 0.95);
});

$("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  $("entry").hidden = true;
  describe();
  document.querySelectorAll(".again:not([hidden])").forEach((button) => button.click());
});

/** The model's card. */
async function describe() {
  let model;
  try {
    model = await (await ask("/v1/model")).json();
  } catch {
    return;
  }
  const { card } = model;
  const { resize, input_size: [height, width], interpolation, channel_order: order } = card.preprocess;
  const first = resize.shorter_side ? `shorter side to ${resize.shorter_side}` : `squashed to ${resize.squash.join(" × ")}`;
  const facts = {
    Architecture: card.architecture,
    Parameters: model.parameters.toLocaleString("en"),
    Input: `${first} (${interpolation}), centre ${height} × ${width}, ${order.toUpperCase()}`,
    Origin: card.origin,
    "Runs on": model.backend,
  };
  $("model").textContent = model.name;
  document.title = `Hearth: ${model.name}`;
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([term, text]) => {
    const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
    [dt.textContent, dd.textContent] = [term, text];
    return [dt, dd];
  }));
  const list = () => {
    const wanted = $("filter").value.toLowerCase();
    const found = card.classes.filter((name) => name.toLowerCase().includes(wanted));
    $("count").textContent = `(${found.length} of ${card.classes.length})`;
    $("classes").replaceChildren(...found.map((name) => {
      const item = document.createElement("li");
      item.textContent = name;
      return item;
    }));
  };
  $("filter").oninput = list;
  list();
}

describe();
