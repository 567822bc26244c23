"use strict";
// Sorting, searching and opening. Without it the page is whole; what needs it is hidden.

const table = document.getElementById("label-table");
const body = table.tBodies[0];
const sortable = [...table.tHead.querySelectorAll("th[scope=col]")];

document.querySelectorAll("[hidden].tools").forEach((one) => { one.hidden = false; });

// ---- sort

function key(cell, text) {
  if (text) return cell.textContent.trim();
  const value = cell.dataset.v;
  return value === "" ? null : Number(value);
}

function sort(head) {
  const rising = head.getAttribute("aria-sort") !== "ascending";
  const text = head.dataset.kind === "text";
  const keyed = [...body.rows].map((row) => [key(row.cells[head.cellIndex], text), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = text ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
    return rising ? order : -order;
  });
  for (const other of sortable) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  body.append(...keyed.map(([, row]) => row));
}

for (const head of sortable) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(head));
  head.append(button);
}

// ---- search

const labels = [...document.querySelectorAll("details.label")];
const found = document.getElementById("found");
const search = document.getElementById("search");

function name(element) {
  return element.querySelector("bdi").textContent.toLowerCase();
}

search.addEventListener("input", () => {
  const wanted = search.value.trim().toLowerCase();
  let count = 0;
  for (const row of body.rows) {
    row.hidden = !name(row).includes(wanted);
    if (!row.hidden) count += 1;
  }
  for (const one of labels) one.hidden = !name(one).includes(wanted);
  found.textContent = wanted ? `${count} of ${body.rows.length} labels` : "";
});

// ---- open

function open(hash) {
  const target = hash.length > 1 && document.getElementById(hash.slice(1));
  if (!target) return;
  target.hidden = false;
  if (target.tagName !== "DETAILS") return;
  target.open = true;
  target.querySelector("summary").focus({ preventScroll: true });
  target.scrollIntoView();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#']");
  if (link) setTimeout(open, 0, link.hash);
});
window.addEventListener("hashchange", () => open(location.hash));
open(location.hash);

const all = document.getElementById("all");
all.addEventListener("click", () => {
  const opening = labels.some((one) => !one.open);
  for (const one of labels) one.open = opening;
  all.textContent = opening ? "Close all" : "Open all";
});

// ---- print

let closed = [];
window.addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const one of closed) one.open = true;
});
window.addEventListener("afterprint", () => {
  for (const one of closed) one.open = false;
});

// ---- where it looked

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const toggles = [...document.querySelectorAll("button.heat")];

// `levels`: a color of `scale` for each cell, row by row.
function paint(canvas, levels, width, scale) {
  canvas.width = width;
  canvas.height = levels.length / width;
  const image = new ImageData(width, canvas.height);
  levels.forEach((level, at) => image.data.set(scale.slice(4 * level, 4 * level + 4), 4 * at));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function draw(picture, scale) {
  const canvas = document.createElement("canvas");
  const levels = [...picture.dataset.heat].map((one) => ALPHABET.indexOf(one));
  paint(canvas, levels, Math.sqrt(levels.length), scale);
  const [left, top, width, height, across, down] = picture.dataset.place.split(" ");
  Object.assign(canvas.style, { left: `${left}%`, top: `${top}%`, width: `${width}%`, height: `${height}%` });
  canvas.style.clipPath = `inset(${down}% ${across}%)`;
  picture.append(canvas);
}

function look(on, scale) {
  for (const picture of document.querySelectorAll(".pic[data-heat]")) {
    if (on && !picture.firstChild) draw(picture, scale);
    picture.dataset.name ??= picture.getAttribute("aria-label");
    const spot = picture.dataset.spot ? `strongest at the ${picture.dataset.spot}` : "nothing speaks for the label";
    picture.setAttribute("aria-label", on ? `${picture.dataset.name}; ${spot}` : picture.dataset.name);
  }
  document.body.classList.toggle("looks", on);
  for (const toggle of toggles) toggle.setAttribute("aria-pressed", on);
}

if (toggles.length) {
  const scale = toggles[0].dataset.scale.match(/../g).map((byte) => parseInt(byte, 16));
  const flip = () => look(!document.body.classList.contains("looks"), scale);
  for (const toggle of toggles) toggle.addEventListener("click", flip);
  for (const canvas of document.querySelectorAll("canvas.scale")) {
    paint(canvas, [...Array(scale.length / 4 - 1).keys()].map((level) => level + 1), scale.length / 4 - 1, scale);
  }
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, [contenteditable]");
    const held = event.ctrlKey || event.metaKey || event.altKey || event.repeat;
    if (event.key === "m" && !typing && !held) flip();
  });
}
