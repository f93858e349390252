"use strict";

const $ = (id) => document.getElementById(id);
const AT_ONCE = 3; // The largest number of concurrent requests.
const TOP = 5; // The number of classes shown for each photograph.

/* What the server says. */

// The token is kept for the tab, or for the page if the browser allows no storage.
let token = null;
try {
  token = sessionStorage.getItem("token");
} catch {}

function keep(given) {
  token = given;
  try {
    if (given === null) sessionStorage.removeItem("token");
    else sessionStorage.setItem("token", given);
  } catch {}
}

/** An error in plain words, with the server's own as a detail. */
class Trouble extends Error {
  constructor(message, { again = false, status = 0, detail = "" } = {}) {
    super(message);
    Object.assign(this, { again, status, detail });
  }
}

/** A response that is a success; all others are thrown as a `Trouble`. */
async function ask(path, { headers = {}, ...options } = {}) {
  const used = token;
  let response;
  try {
    response = await fetch(path, { ...options, headers: used ? { ...headers, authorization: `Bearer ${used}` } : headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // A folder that was dropped, or a file that has gone: it cannot be read here either.
    const readable = !options.body || await options.body.slice(0, 1).arrayBuffer().then(() => true, () => false);
    throw readable
      ? new Trouble("The server cannot be reached.", { again: true })
      : new Trouble("This cannot be read as a file.");
  }
  if (response.ok) return response;

  const { status } = response;
  const told = await response.json().catch(() => null);
  if (status === 401) {
    // A new token may have been given while this request was under way with the old one.
    if (token !== null && token !== used) return ask(path, { headers, ...options });
    wantToken(used !== null);
  }
  const seconds = Number(response.headers.get("retry-after"));
  const when = seconds > 1 ? `in ${seconds} seconds` : "in a moment";
  const words = {
    401: used ? "The server does not accept the token." : "The server asks for a token.",
    408: "That took too long.",
    413: "The picture is too large for this server.",
    415: "This is no picture that the server can read.",
    422: "The picture is damaged.",
    429: `That was too much at once: try again ${when}.`,
    503: `The server is busy: try again ${when}.`,
  };
  throw new Trouble(words[status] ?? `The server could not do it (${status}).`, {
    status,
    again: [401, 408, 429].includes(status) || status >= 500,
    detail: [401, 429, 503].includes(status) ? "" : told?.error?.message ?? "",
  });
}

/* Requests wait here until fewer than `AT_ONCE` are under way. */
const waiting = [];
let running = 0;

function queue(task, first = false) {
  if (first) waiting.unshift(task);
  else waiting.push(task);
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length > 0) {
    running += 1;
    waiting.shift()().finally(() => {
      running -= 1;
      next();
    });
  }
}

/* Words and numbers. */

/** Says a line to those who hear the page. */
function say(text) {
  const line = document.createElement("p");
  line.textContent = text;
  $("said").append(line);
  while ($("said").childElementCount > 8) $("said").firstChild.remove();
}

function percent(share) {
  const text = (100 * share).toFixed(1);
  if (text === "0.0" && share > 0) return "< 0.1 %";
  if (text === "100.0" && share < 1) return "> 99.9 %";
  return `${text} %`;
}

function bytes(count) {
  if (count < 1e3) return `${count} B`;
  if (count < 999_500) return `${Math.round(count / 1e3)} kB`;
  return `${(count / 1e6).toFixed(1)} MB`;
}

/* Photographs. */

const cards = new Map(); // Each card's element and what can be done with it.
let classCount = TOP; // How many classes there are, as soon as it is known.

/** Shows what depends on whether there are any cards. */
function tidy() {
  $("seen").hidden = cards.size === 0;
}

/** A card for a photograph, and the requests about it. */
function add(file) {
  const card = $("blank").content.firstElementChild.cloneNode(true);
  const part = (name) => card.querySelector(name);
  const [photo, overlay, caption] = [part(".photo"), part(".overlay"), part("figcaption")];
  const name = file.name || "Photograph";
  const going = new AbortController();
  const request = {
    method: "POST",
    body: file,
    headers: { "content-type": file.type || "application/octet-stream" },
    signal: going.signal,
  };
  const urls = [];
  const url = (blob) => {
    urls.push(URL.createObjectURL(blob));
    return urls.at(-1);
  };
  const heats = new Map(); // Overlays by class, each fetched once.
  let facts = bytes(file.size);
  let shown = true; // Whether the browser can show the photograph.
  let wanted = null; // The class whose overlay is shown or on its way.
  let failed = null; // What to do again.

  part("h3").textContent = name;
  part(".remove .unseen").textContent = ` ${name}`;
  photo.alt = name;
  caption.textContent = facts;
  photo.addEventListener("load", () => {
    facts = `${photo.naturalWidth} × ${photo.naturalHeight} · ${bytes(file.size)}`;
    if (overlay.hidden) caption.textContent = facts;
  });
  photo.addEventListener("error", () => {
    shown = false;
    if (overlay.hidden) view(null);
  });
  photo.src = url(file);

  /** Says how it stands; nothing, words, or a `Trouble`. */
  function state(what = "", retry = null) {
    const wrong = what instanceof Error;
    part(".state").textContent = wrong ? what.message : what;
    part(".state").classList.toggle("wrong", wrong);
    part(".detail").textContent = (wrong && what.detail) || "";
    part(".detail").hidden = part(".detail").textContent === "";
    failed = wrong && what.again ? { retry, status: what.status } : null;
    part(".again").hidden = failed === null;
  }

  /** Any failure as a `Trouble`; nothing if the card has gone. */
  function told(error, retry) {
    if (going.signal.aborted) return;
    if (!(error instanceof Trouble)) console.error(error);
    const trouble = error instanceof Trouble ? error : new Trouble("The server's answer was not understood.", { again: true });
    state(trouble, retry);
    say(`${name}: ${trouble.message}`);
  }

  /** Shows a class's overlay, or the photograph. */
  function view(top) {
    // The focus must not vanish with the button that is hidden.
    const focused = document.activeElement === part(".back");
    const pressed = part('.why[aria-pressed="true"]');
    wanted = top?.index ?? null;
    overlay.hidden = top === null;
    part(".back").hidden = top === null;
    photo.hidden = top !== null || !shown;
    part(".sightless").hidden = top !== null || shown;
    caption.textContent = top ? `Warm where it sees ${top.class}` : facts;
    caption.title = top ? caption.textContent : "";
    if (top) {
      overlay.src = heats.get(top.index);
      overlay.alt = `The part of ${name} that speaks for ${top.class}`;
    }
    for (const button of card.querySelectorAll(".why")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.index) === wanted));
    }
    if (focused && top === null) pressed?.focus();
  }

  /** Fetches and shows where a class is seen; a second time, the photograph again. */
  function why(top, button) {
    if (!overlay.hidden && wanted === top.index) {
      view(null);
      say("The photograph is shown again.");
      return;
    }
    wanted = top.index;
    const reveal = () => {
      view(top);
      say(`The picture now shows where ${top.class} is seen.`);
    };
    if (heats.has(top.index)) {
      state();
      reveal();
      return;
    }
    if (button.ariaBusy === "true") return;
    button.ariaBusy = "true";
    state(`Looking for ${top.class} …`);
    queue(async () => {
      try {
        if (going.signal.aborted) return;
        const response = await ask(`v1/explain?class=${top.index}`, request);
        const picture = await response.blob();
        if (going.signal.aborted) return;
        heats.set(top.index, url(picture));
        // Another class may have been asked for since.
        if (wanted === top.index) {
          state();
          reveal();
        }
      } catch (error) {
        if (wanted === top.index) told(error, () => why(top, button));
      } finally {
        button.ariaBusy = null;
      }
    }, true);
  }

  function bars(tops) {
    part(".bars").replaceChildren(...tops.map((top) => {
      const line = $("line").content.firstElementChild.cloneNode(true);
      line.querySelector(".name").textContent = top.class;
      line.querySelector(".percent").textContent = percent(top.probability);
      line.querySelector(".fill").style.setProperty("--share", `${100 * top.probability}%`);
      const button = line.querySelector(".why");
      button.dataset.index = top.index;
      button.querySelector(".unseen").textContent = ` ${top.class}`;
      button.addEventListener("click", () => why(top, button));
      return line;
    }));
  }

  /** Keeps the room of the bars while they are on their way. */
  function room() {
    part(".bars").replaceChildren(...Array.from({ length: Math.min(TOP, classCount) }, () => {
      const line = document.createElement("li");
      line.className = "room";
      line.ariaHidden = "true";
      return line;
    }));
  }

  function look() {
    room();
    state("Looking …");
    queue(async () => {
      try {
        if (going.signal.aborted) return;
        const { results: [result] } = await (await ask(`v1/classify?topk=${TOP}`, request)).json();
        if (result.error) throw new Trouble("The picture could not be classified.", { detail: result.error.message });
        if (going.signal.aborted) return;
        bars(result.top);
        state();
        say(`${name}: ${result.top[0].class}, ${percent(result.top[0].probability)}.`);
        if (!described) describe();
      } catch (error) {
        part(".bars").replaceChildren();
        told(error, look);
      }
    });
  }

  function remove() {
    going.abort();
    urls.forEach((made) => URL.revokeObjectURL(made));
    cards.delete(card);
    card.remove();
    tidy();
  }

  part(".back").addEventListener("click", () => {
    view(null);
    say("The photograph is shown again.");
  });
  part(".again").addEventListener("click", () => failed?.retry());
  part(".remove").addEventListener("click", () => {
    const beside = card.nextElementSibling ?? card.previousElementSibling;
    remove();
    (beside?.querySelector(".remove") ?? $("files")).focus();
  });
  cards.set(card, { remove, authorised: () => failed?.status === 401 && failed.retry() });
  $("cards").prepend(card);
  tidy();
  look();
}

$("clear").addEventListener("click", () => {
  for (const { remove } of [...cards.values()]) remove();
  $("files").focus();
  say("All photographs are removed.");
});

/* The ways in: choosing, dropping anywhere on the page, pasting. */

$("files").addEventListener("change", ({ target }) => {
  [...target.files].forEach(add);
  target.value = ""; // The same file may be chosen again.
});

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
addEventListener("drop", (event) => {
  $("drop").classList.remove("over");
  if (!carriesFiles(event)) return;
  event.preventDefault();
  [...event.dataTransfer.files].forEach(add);
});
addEventListener("paste", (event) => {
  [...(event.clipboardData?.files ?? [])].forEach(add);
});

/* The camera: browsers give it to secure pages only, of which the local host's are. */

let stream = null;

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("video").srcObject = null;
  $("viewfinder").hidden = true;
  $("camera").ariaExpanded = "false";
}

async function openCamera() {
  if (stream) {
    $("shoot").focus();
    return;
  }
  $("camera").disabled = true;
  $("trouble").hidden = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    stream.getVideoTracks()[0].addEventListener("ended", closeCamera);
    $("video").srcObject = stream;
    $("viewfinder").hidden = false;
    $("camera").ariaExpanded = "true";
    await $("video").play();
    $("shoot").focus();
  } catch (error) {
    closeCamera();
    const words = {
      NotAllowedError: "The browser may not use the camera: allow it in the page's settings.",
      NotFoundError: "No camera was found.",
      NotReadableError: "The camera is in use elsewhere.",
    };
    $("trouble").textContent = words[error.name] ?? "The camera cannot be used.";
    $("trouble").hidden = false;
    say($("trouble").textContent);
  }
  $("camera").disabled = false;
}

$("camera").hidden = !(isSecureContext && navigator.mediaDevices?.getUserMedia);
$("camera").addEventListener("click", openCamera);
$("shut").addEventListener("click", () => {
  closeCamera();
  $("camera").focus();
});
$("shoot").addEventListener("click", () => {
  const [video, canvas] = [$("video"), document.createElement("canvas")];
  if (!video.videoWidth) return;
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  const time = new Date().toLocaleTimeString("en-GB");
  canvas.toBlob((blob) => blob && add(new File([blob], `Camera, ${time}`, { type: blob.type })), "image/jpeg", 0.95);
});
addEventListener("pagehide", closeCamera);

/* The token. */

function wantToken(refused) {
  if (refused) keep(null);
  else if (!$("entry").hidden) return;
  const label = refused ? "The server does not accept this token" : "This server asks for a token";
  if ($("entry").hidden) say(`${label}.`);
  document.querySelector("label[for=token]").textContent = label;
  $("entry").hidden = false;
}

$("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = $("token").value.trim();
  // A header holds visible ASCII alone.
  if (!/^[!-~]+$/.test(given)) {
    wantToken(true);
    return;
  }
  keep(given);
  $("token").value = "";
  $("entry").hidden = true;
  $("files").focus({ preventScroll: true });
  if (!described) describe();
  for (const { authorised } of cards.values()) authorised();
});

/* The model's card. */

let described = false;

/** How a photograph becomes the network's input, in words. */
function preparation({ resize, input_size: size, interpolation, antialias, channel_order: order }) {
  const steps = [];
  const how = [interpolation, antialias && "antialiased"].filter(Boolean).join(", ");
  if (resize?.shorter_side) steps.push(`shorter side to ${resize.shorter_side}`);
  if (resize?.squash) steps.push(`squashed to ${resize.squash.join(" × ")}`);
  if (steps.length && how) steps[0] += ` (${how})`;
  if (size) steps.push(`center ${size.join(" × ")}`);
  if (order) steps.push(order.toUpperCase());
  const text = steps.join(", ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** An element with a text. */
function element(kind, text, name = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  made.className = name;
  return made;
}

async function describe() {
  let model;
  try {
    model = await (await ask("v1/model")).json();
  } catch {
    return; // It is tried again after the next photograph.
  }
  described = true;
  const card = model.card ?? {};
  const classes = card.classes ?? [];
  classCount = classes.length || TOP;
  $("model").textContent = model.name;
  document.title = `${model.name} · Hearth`;

  const facts = {
    Architecture: card.architecture,
    Parameters: model.parameters?.toLocaleString("en-GB"),
    Input: card.preprocess && preparation(card.preprocess),
    Origin: card.origin,
    "Runs on": model.backend,
    Version: model.hearth && `Hearth ${model.hearth}`,
  };
  const known = Object.entries(facts).filter(([, text]) => text);
  $("facts").replaceChildren(...known.flatMap(([term, text]) => [element("dt", term), element("dd", text)]));

  const list = () => {
    const sought = $("filter").value.trim().toLowerCase();
    const found = [...classes.entries()].filter(([, name]) => name.toLowerCase().includes(sought));
    $("count").textContent = sought ? `${found.length} of ${classes.length}` : `${classes.length}`;
    $("classes").replaceChildren(...found.map(([index, name]) => {
      const item = document.createElement("li");
      item.append(element("span", index, "index"), element("span", name));
      return item;
    }));
    $("classes").scrollTop = 0;
  };
  $("filter").oninput = list;
  list();
  $("card").hidden = false;
}

describe();
