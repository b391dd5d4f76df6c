// The page of `runtime serve`: sends images to `detect` and draws the detections. Filtering happens here.

import { colorOf, drawBoxes } from "./boxes.js";
import { Problem, request, stages, token } from "./client.js";

const $ = (id) => document.getElementById(id);

/** Requests at a time. More would only wait in the server's queue, and take others' places in it. */
const CONCURRENCY = 2;

/** The model of a server with several, as in `/?model=NAME`. */
const model = new URLSearchParams(location.search).get("model");
const query = model === null ? [] : [`model=${encodeURIComponent(model)}`];

/** Images in the order of their arrival: `{file, state: "waiting" | "running" | "done" | "failed", ...}`. */
const entries = [];
/** The entry on the stage, its pixels (`null` if the browser cannot decode it), and the selected detection. */
let shown = null;
let bitmap = null;
let selected = null;
/** The detections in the list. */
let listed = [];
/** Labels that are not ticked. Those of later images stay so. */
const unticked = new Set();
/** Class labels in the model's order; they determine the colors. */
let labels = [];
/** Why the model is not known. */
let failure = null;
/** Whether the server has asked for a token that the page does not have. */
let locked = false;

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// The server.

/** Passes on problems; anything else is a fault of this page and goes to the console. */
function expect(error) {
  if (error instanceof Problem) return error;
  throw error;
}

/** Asks the user for a token; nothing is sent until then. */
function lock() {
  if (locked) return;
  locked = true;
  $("access").querySelector("label").textContent =
    token.get() === null ? "This server asks for a token" : "The server refused this token. Enter another";
  token.clear();
  $("access").hidden = false;
  $("token").focus();
}

async function describe() {
  try {
    const answer = await request(`model?${query}`);
    if (!answer) return lock();
    failure = null;
    const { name, spec, provider } = answer.body;
    labels = spec.classes.map((one) => one.name);
    $("model").textContent = `${name}: ${labels.length} ${labels.length === 1 ? "class" : "classes"}, on ${provider}`;
    $("score").min = Math.ceil(100 * spec.postprocessing.score_threshold - 1e-6) / 100;
    render();
  } catch (problem) {
    failure = expect(problem);
    render();
    if (model === null) offerModels();
  }
}

/** Links to the models of a server that has several. */
async function offerModels() {
  const answer = await request("v2/models/stats").catch(expect);
  const names = answer?.body?.model_stats?.map((one) => one.name) ?? [];
  const link = (name) => element("a", { href: `?model=${encodeURIComponent(name)}`, textContent: name });
  $("models").replaceChildren(...(names.length > 1 ? names.flatMap((name) => [link(name), " "]) : []));
}

/** Starts requests for waiting images. */
function pump() {
  const running = () => entries.filter((entry) => entry.state === "running").length;
  for (const entry of entries) {
    if (locked || running() >= CONCURRENCY) return;
    if (entry.state === "waiting") detect(entry);
  }
}

async function detect(entry) {
  entry.state = "running";
  refresh(entry);
  try {
    const bytes = await entry.file.arrayBuffer().catch(() => {
      throw new Problem("The file cannot be read. If it is a folder, choose the images in it");
    });
    const start = performance.now();
    const answer = await request(`detect?${query}`, { method: "POST", body: bytes });
    if (!answer) lock();
    else {
      entry.result = answer.body;
      entry.times = stages(answer.timing, performance.now() - start);
      // The server was not ready when the page asked what it serves.
      if (failure) describe();
    }
    entry.state = answer ? "done" : "waiting";
  } catch (problem) {
    Object.assign(entry, { state: "failed", problem: expect(problem) });
  }
  refresh(entry);
  pump();
}

// Files.

function add(files) {
  const added = Array.from(files, (file) => ({ file, state: "waiting" }));
  if (!added.length) return;
  entries.push(...added);
  for (const entry of added) $("strip").append(thumbnail(entry));
  $("strip").hidden = entries.length < 2;
  show(added[0]);
  pump();
}

function thumbnail(entry) {
  const canvas = element("canvas", { width: 144, height: 144 });
  entry.badge = element("span");
  entry.button = element("button", { type: "button", onclick: () => show(entry) }, canvas, entry.badge);
  createImageBitmap(entry.file).then((image) => {
    const side = Math.min(image.width, image.height);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, (image.width - side) / 2, (image.height - side) / 2, side, side, 0, 0, 144, 144);
    image.close();
  }, () => {}); // A file that the browser cannot decode has no thumbnail; the server may still read it.
  refresh(entry);
  return element("li", {}, entry.button);
}

/** Updates what depends on an entry's state. */
function refresh(entry) {
  const found = entry.state === "done" ? visible(entry).length : null;
  const text = { waiting: "waiting", running: "detecting", failed: "failed", done: `${found} detections` }[entry.state];
  entry.button.ariaLabel = `${entry.file.name}: ${text}`;
  entry.button.className = entry.state;
  entry.badge.textContent = { waiting: "…", running: "…", failed: "!", done: found }[entry.state];
  if (entry === shown) render();
}

async function show(entry) {
  shown = entry;
  selected = null;
  bitmap?.close();
  bitmap = null;
  for (const { button } of entries) button.ariaCurrent = String(button === entry.button);
  entry.button.scrollIntoView({ block: "nearest", inline: "nearest" });
  render();
  const image = await createImageBitmap(entry.file).catch(() => null);
  if (shown !== entry) return image?.close();
  bitmap = image;
  entry.undecodable = !image;
  render();
}

// What is shown.

const minScore = () => Number($("score").value);

/** The detections of an entry that pass the slider and the check boxes, highest score first. */
function visible(entry) {
  return entry.result.detections.filter((one) => one.score > minScore() && !unticked.has(one.label));
}

function render() {
  const done = shown?.state === "done";
  // What is no image leaves the place for another.
  $("empty").hidden = shown !== null && !(shown.state === "failed" && shown.undecodable);
  $("busy").hidden = shown?.state !== "running" && shown?.state !== "waiting" || locked;
  $("panel").hidden = !done;
  const problem = shown?.problem ?? failure;
  $("problem").hidden = !problem;
  const name = problem === shown?.problem ? `${shown?.file.name}: ` : "";
  $("problem").firstElementChild.textContent = problem ? name + problem.message : "";
  $("score-value").textContent = minScore().toFixed(2);
  $("summary").textContent = shown ? shown.file.name : "";
  if (done) {
    const seen = visible(shown);
    if (!seen.includes(selected)) selected = null;
    const note = shown.undecodable ? "; this browser cannot show the image" : "";
    $("summary").textContent = `${shown.file.name}: ${seen.length} of ${shown.result.detections.length} detections${note}`;
    renderClasses();
    renderList(seen);
    renderTimes();
    renderCommand();
  }
  draw();
}

function renderClasses() {
  const counts = new Map();
  for (const { label, score } of shown.result.detections) {
    counts.set(label, (counts.get(label) ?? 0) + (score > minScore() ? 1 : 0));
  }
  const names = [...counts.keys()].sort((a, b) => labels.indexOf(a) - labels.indexOf(b));
  const key = JSON.stringify(names);
  if ($("classes").dataset.names !== key) {
    $("classes").dataset.names = key;
    $("classes").replaceChildren(...names.map((name) => element("li", {}, element("label", {},
      element("input", { type: "checkbox", value: name }), swatch(name), name, element("span", { className: "count" })))));
  }
  for (const input of $("classes").querySelectorAll("input")) {
    input.checked = !unticked.has(input.value);
    input.parentElement.lastElementChild.textContent = counts.get(input.value);
  }
}

function swatch(label) {
  const node = element("span", { className: "swatch" });
  node.style.background = color(label).css;
  return node;
}

function renderList(seen) {
  const options = seen.map((one, index) => {
    const option = element("li", { id: `detection-${index}` }, swatch(one.label), one.label,
      element("span", { className: "count", textContent: one.score.toFixed(2) }));
    option.role = "option";
    option.onpointerenter = option.onclick = () => select(one);
    return option;
  });
  $("list").replaceChildren(...options);
  listed = seen;
  select(selected);
}

/** Selects a detection in the list and on the image; `null` selects none. */
function select(detection) {
  selected = detection;
  const index = listed.indexOf(detection);
  for (const [at, option] of [...$("list").children].entries()) option.ariaSelected = String(at === index);
  if (index >= 0) $("list").setAttribute("aria-activedescendant", `detection-${index}`);
  else $("list").removeAttribute("aria-activedescendant");
  draw();
}

function renderTimes() {
  const { stages, total } = shown.times;
  const tone = (index) => `${100 - (70 * index) / Math.max(stages.length - 1, 1)}%`;
  const mark = (index) => {
    const node = element("i");
    node.style.setProperty("--tone", tone(index));
    return node;
  };
  const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  $("bar").hidden = !stages.length;
  $("bar").replaceChildren(...stages.map(([, duration], index) => {
    const part = mark(index);
    part.style.flex = `${duration} 0 0`;
    return part;
  }));
  $("times").replaceChildren(
    ...stages.flatMap(([name, duration], index) =>
      [mark(index), element("dt", { textContent: name }), element("dd", { textContent: ms(duration) })]),
    element("span"), element("dt", { textContent: "Round trip", className: "total" }),
    element("dd", { textContent: ms(total), className: "total" }),
  );
}

/** A command whose output is what the page shows. */
function renderCommand() {
  const found = new Set(shown.result.detections.map((one) => one.label));
  const ticked = [...found].filter((label) => !unticked.has(label));
  const parameters = [...query, `min_score=${minScore()}`];
  if (ticked.length < found.size) parameters.push(...ticked.map((label) => `classes=${encodeURIComponent(label)}`));
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const header = token.get() !== null ? ' -H "Authorization: Bearer $DETECTOR_TOKEN"' : "";
  const url = new URL(`detect?${parameters.join("&")}`, document.baseURI);
  $("curl").textContent = `curl${header} --data-binary ${quote(`@${shown.file.name}`)} ${quote(url.href)}`;
  // A request cannot ask for no class at all.
  $("command").hidden = found.size > 0 && !ticked.length;
}

// The image with its boxes.

/** The color of a class is the same in every image and program. */
const color = (label) => colorOf(Math.max(labels.indexOf(label), 0));

function draw() {
  // Until the browser has decoded the image, the one before stays.
  if (!bitmap && !shown?.undecodable) return;
  const canvas = $("canvas");
  const { width, height } = shown.result ?? bitmap ?? {};
  canvas.hidden = !width;
  if (!width) return;
  const seen = shown.state === "done" ? visible(shown) : [];
  const counts = new Map();
  for (const { label } of seen) counts.set(label, (counts.get(label) ?? 0) + 1);
  const found = [...counts].map(([label, count]) => `${count} ${label}`).join(", ");
  canvas.ariaLabel = `${shown.file.name}: ${found || "no detections shown"}`;
  const boxes = seen.map((one) => ({
    box: one.box,
    text: `${one.label} ${one.score.toFixed(2)}`,
    color: color(one.label),
    isSelected: one === selected,
    isFaded: selected !== null && one !== selected,
  }));
  drawBoxes(canvas, { width, height, bitmap, boxes, maxWidth: $("view").clientWidth });
}

/** The smallest box below the pointer. */
function under(event) {
  const bounds = $("canvas").getBoundingClientRect();
  const zoom = bounds.width / shown.result.width;
  const [x, y] = [(event.clientX - bounds.left) / zoom, (event.clientY - bounds.top) / zoom];
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
  const hit = visible(shown).filter(({ box: [x1, y1, x2, y2] }) => x >= x1 && x <= x2 && y >= y1 && y <= y2);
  return hit.sort((a, b) => area(a.box) - area(b.box))[0] ?? null;
}

// Events.

for (const id of ["files", "photo"]) {
  $(id).onchange = ({ target }) => {
    add(target.files);
    target.value = ""; // The same file can be chosen again.
  };
}
addEventListener("paste", (event) => add(event.clipboardData.files));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  add(event.dataTransfer.files);
});

$("access").onsubmit = (event) => {
  event.preventDefault();
  token.set($("token").value);
  $("token").value = "";
  $("access").hidden = true;
  locked = false;
  describe();
  pump();
};
$("retry").onclick = () => {
  if (failure) describe();
  if (shown?.state !== "failed") return;
  Object.assign(shown, { state: "waiting", problem: null });
  refresh(shown);
  pump();
};

/** Applies the slider and the check boxes to all images. */
function filter() {
  for (const entry of entries) refresh(entry);
}
$("score").oninput = filter;
$("classes").onchange = ({ target }) => {
  if (target.checked) unticked.delete(target.value);
  else unticked.add(target.value);
  filter();
};
$("all").onclick = () => {
  unticked.clear();
  filter();
};
$("none").onclick = () => {
  for (const { label } of shown.result.detections) unticked.add(label);
  filter();
};

$("list").onkeydown = (event) => {
  const at = listed.indexOf(selected);
  const last = listed.length - 1;
  const next = { ArrowDown: Math.min(at + 1, last), ArrowUp: Math.max(at - 1, 0), Home: 0, End: last, Escape: -1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  select(listed[next] ?? null);
  $("list").children[next]?.scrollIntoView({ block: "nearest" });
};
// A finger that is lifted leaves too, and what it has chosen stays.
$("list").onpointerleave = $("canvas").onpointerleave = ({ pointerType }) => pointerType === "mouse" && shown?.result && select(null);
$("canvas").onpointermove = $("canvas").onpointerdown = (event) => shown?.result && select(under(event));

$("copy").onclick = async () => {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    $("copy").textContent = "Copied";
    setTimeout(() => ($("copy").textContent = "Copy"), 2000);
  } catch {
    // Without HTTPS, browsers give pages no clipboard.
    getSelection().selectAllChildren($("curl"));
    $("copy").textContent = "Press Ctrl+C";
  }
};

new ResizeObserver(draw).observe($("view"));
describe();
