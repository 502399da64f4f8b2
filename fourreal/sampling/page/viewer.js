"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const clamp = (value, count) => Math.min(count - 1, Math.max(0, value));
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// ---- the cell that is shown: everything else is drawn from it
const cell = { view: 0, time: 0 };
const counts = { view: data.views, time: data.times };

function show(view, time, { moving = false } = {}) {
  cell.view = clamp(view, data.views);
  cell.time = clamp(time, data.times);
  for (const figure of figures) figure.draw();
  byId("view").value = cell.view;
  byId("time").value = cell.time;
  byId("viewText").textContent = `${cell.view} (0–${data.views - 1})`;
  byId("timeText").textContent = `${cell.time} (0–${data.times - 1})`;
  mapCells.forEach((square, index) =>
    square.classList.toggle("here", index === cell.view * data.times + cell.time));
  if (!moving) settle();
}
const isGiven = () => Boolean(data.given[cell.view][cell.time]);
const where = () => `view ${cell.view}, time ${cell.time}${isGiven() ? ", given" : ""}`;

// What stands still is spoken and has an address, index.html#v=2,t=3: while it moves that would be too much.
function settle() {
  byId("spoken").textContent = where();
  byId("map").setAttribute("aria-label", `Map of the grid, views down, times across; shown: ${where()}`);
  try { history.replaceState(null, "", `#v=${cell.view},t=${cell.time}`); } catch { /* a page without an address */ }
}
function fromAddress() {
  const found = /^#v=(\d+),t=(\d+)$/.exec(location.hash);
  return found && [Number(found[1]), Number(found[2])];
}

// ---- figures: one canvas for one panel, or for several that buttons choose from; a panel has a strip of pictures a view
function makeFigure(panels, compared) {
  const pictures = panels.map(({ strips }) => strips.map((source) => Object.assign(new Image(), { src: source })));
  const canvas = make("canvas", { width: data.width, height: data.height, tabIndex: compared ? -1 : 0 });
  const context = canvas.getContext("2d");
  const score = make("span", { className: "score" });
  const buttons = !compared ? [] : panels.map(({ title }, index) =>
    make("button", { type: "button", onclick: () => choose(index) }, make("kbd", { textContent: index + 1 }), title));
  const name = compared ? buttons : [make("b", { textContent: panels[0].title })];
  const caption = make("figcaption", {}, ...name, score);
  const frame = make("div", { className: "frame" }, canvas, make("span", { className: "badge", textContent: "given" }));
  const element = make("figure", { className: compared ? "compared" : "" }, caption, frame);
  let chosen = 0;

  function choose(index) {
    if (index >= panels.length) return;
    chosen = index;
    draw();
    byId("spoken").textContent = `compared with ${panels[index].title}`;
  }
  function draw() {
    const { title, psnr } = panels[chosen];
    const across = cell.time % data.columns, down = Math.floor(cell.time / data.columns);
    context.drawImage(pictures[chosen][cell.view], -across * data.width, -down * data.height);
    canvas.setAttribute("aria-label", `${title}, ${where()}`);
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(index === chosen)));
    // Only the sample is an answer to the given cells; the comparison shows the same cell.
    element.classList.toggle("is-given", !compared && isGiven());
    const value = psnr && psnr[cell.view][cell.time];
    const told = value === null ? "" : value === "exact" ? "exact" : `${value.toFixed(1)} dB`;
    score.textContent = compared ? told : [`v${cell.view} t${cell.time}`, told].filter(Boolean).join(" · ");
  }
  canvas.setAttribute("role", "img");
  dragging(canvas);
  return { element, choose, draw, ready: Promise.all(pictures.flat().map((picture) => picture.decode())) };
}

// One rule for map, contact sheet, arrow keys and drag: times across, as a video is scrubbed, and views down.
function dragging(canvas) {
  let start = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    stop();
    canvas.setPointerCapture(event.pointerId);
    start = { x: event.clientX, y: event.clientY, ...cell };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!start) return;
    const box = canvas.getBoundingClientRect();  // 80 % of the picture's side runs through the whole axis
    const across = (event.clientX - start.x) / (0.8 * box.width) * (data.times - 1);
    const down = (event.clientY - start.y) / (0.8 * box.height) * (data.views - 1);
    show(start.view + Math.round(down), start.time + Math.round(across), { moving: true });
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => { if (start) settle(); start = null; });
  }
}

const [sampled, ...others] = data.panels;
const figures = [makeFigure([sampled], false), ...(others.length ? [makeFigure(others, true)] : [])];
byId("stage").append(...figures.map((figure) => figure.element));
byId("stage").style.setProperty("--panels", figures.length);
// No wider than lets the pictures and the controls stand on one screen.
byId("stage").style.setProperty("--widest", `max(300px, ${62 * figures.length * data.width / data.height}vh)`);
if (others.length) byId("keys").append(make("span", {}, make("kbd", { textContent: `1–${others.length}` }), " comparison"));

// ---- the map
const map = byId("map");
const side = Math.max(5, Math.min(18, Math.floor(160 / Math.max(data.views, data.times))));
map.style.gap = side < 8 ? "1px" : "3px";
map.style.gridTemplateColumns = `repeat(${data.times}, minmax(0, ${side}px))`;
byId("across").textContent = `time 0–${data.times - 1} →`;
byId("down").textContent = `view 0–${data.views - 1} ↓`;
const mapCells = data.given.flatMap((row, view) => row.map((given, time) =>
  make("span", { className: given ? "given" : "", title: `view ${view}, time ${time}` })));
map.append(...mapCells);
function pickFromMap(event) {
  if (!event.buttons) return;
  stop();
  const first = mapCells[0].getBoundingClientRect(), last = mapCells.at(-1).getBoundingClientRect();
  const down = (event.clientY - first.top) / (last.bottom - first.top);
  const across = (event.clientX - first.left) / (last.right - first.left);
  show(Math.floor(down * data.views), Math.floor(across * data.times));
}
map.addEventListener("pointerdown", (event) => { map.setPointerCapture(event.pointerId); pickFromMap(event); });
map.addEventListener("pointermove", pickFromMap);

// ---- playing: each kind is an endless walk of [axis, index]
function* steps(axis, end) {
  while (cell[axis] !== end) yield [axis, cell[axis] + Math.sign(end - cell[axis])];
}
function* toAndFro(axis) {
  for (;;) for (const end of [counts[axis] - 1, 0]) yield* steps(axis, end);
}
// Time runs to the middle and stops, the camera sweeps all views to and fro, time runs on; then the same way back.
function* bulletTime() {
  const home = cell.view, middle = data.times >> 1;
  const ends = cell.time > middle ? [0, data.times - 1] : [data.times - 1, 0];
  for (;;) for (const end of ends) {
    yield* steps("time", middle);
    for (const view of [data.views - 1, 0, home]) yield* steps("view", view);
    yield* steps("time", end);
  }
}
const walks = { view: () => toAndFro("view"), time: () => toAndFro("time"), bullet: bulletTime };
const playButtons = { view: byId("playView"), time: byId("playTime"), bullet: byId("playBullet") };
const possible = { view: data.views > 1, time: data.times > 1, bullet: data.views > 1 && data.times > 1 };
const playing = new Map();
let timer = 0;

function play(name, on = !playing.has(name)) {
  if (!possible[name]) return;
  if (on && (name === "bullet" || playing.has("bullet"))) playing.clear();  // it moves both axes
  if (on) playing.set(name, walks[name]());
  else playing.delete(name);
  showPlaying();
  if (!playing.size) settle();
}
/** Stops what moves along an axis; without one, everything. */
function stop(axis) {
  for (const name of axis ? [axis, "bullet"] : [...playing.keys()]) playing.delete(name);
  showPlaying();
}
function showPlaying() {
  for (const [name, button] of Object.entries(playButtons)) {
    button.setAttribute("aria-pressed", String(playing.has(name)));
    if (name === "bullet") continue;
    button.textContent = playing.has(name) ? "Pause" : "Play";
    button.setAttribute("aria-label", `${button.textContent} ${name}`);
  }
  clearTimeout(timer);
  if (playing.size) timer = setTimeout(tick, 125);
}
function tick() {
  const moves = [...playing.values()].map((walk) => walk.next().value);
  const next = { ...cell, ...Object.fromEntries(moves) };
  show(next.view, next.time, { moving: true });
  // 8 steps a second, or fewer where to and fro would then last less than 3 seconds
  const pause = Math.max(...moves.map(([axis]) => Math.max(1 / 8, 3 / (2 * counts[axis] - 2))));
  timer = setTimeout(tick, 1000 * pause / 2 ** byId("speed").value);
}

for (const [name, button] of Object.entries(playButtons)) {
  button.disabled = !possible[name];
  button.addEventListener("click", () => play(name));
}
showPlaying();
for (const axis of ["view", "time"]) {
  byId(axis).max = counts[axis] - 1;
  byId(axis).addEventListener("input", () => {
    stop(axis);
    show(Number(byId("view").value), Number(byId("time").value));
  });
}
const showSpeed = () => { byId("speedText").textContent = `${2 ** byId("speed").value}×`; };
byId("speed").addEventListener("input", showSpeed);
showSpeed();
byId("pixelated").addEventListener("change", (event) => document.body.classList.toggle("pixelated", event.target.checked));

// ---- keys; a focused control keeps those that it needs itself
const ARROWS = { ArrowLeft: ["time", -1], ArrowRight: ["time", 1], ArrowUp: ["view", -1], ArrowDown: ["view", 1] };
document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (target.matches("button, a, [type=checkbox]") && key === " ") return;
  if (target.matches("[type=range]") && key in ARROWS) return;
  if (key === " ") {
    if (playing.has("bullet")) play("bullet", false);
    else play(event.shiftKey ? "view" : "time");
  } else if (key === "b") play("bullet");
  else if (/^[1-9]$/.test(key) && figures[1]) figures[1].choose(key - 1);
  else if (key in ARROWS) {
    const [axis, step] = ARROWS[key];
    stop(axis);
    const next = { ...cell, [axis]: cell[axis] + step };
    show(next.view, next.time);
  } else return;
  event.preventDefault();
});

// ---- the files beside the page, and what it was made with
if (data.files.length) byId("files").append("Files: ");
byId("files").append(...data.files.map((file) => make("a", { href: `./${file}`, download: "", textContent: file })));
for (const [name, value] of Object.entries(data.about)) {
  byId("about").append(make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value })));
}

window.addEventListener("hashchange", () => { stop(); show(...(fromAddress() ?? data.start)); });
Promise.all(figures.map((figure) => figure.ready)).then(() => {
  const asked = fromAddress();
  const still = asked || matchMedia("(prefers-reduced-motion: reduce)").matches;
  show(...(asked ?? data.start), { moving: !still });
  if (!still) play(possible.time ? "time" : "view", true);
  document.body.dataset.ready = "yes";
});
