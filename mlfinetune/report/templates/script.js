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
