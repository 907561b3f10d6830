"use strict";

// ---- sorting: a button in every heading; a third press restores the order of the page

const NUMBER = /[-+]?\d+(\.\d+)?/;
const TURNS = { numbers: ["descending", "ascending"], words: ["ascending", "descending"] };

function valueOf(row, column, kind) {
  const text = row.cells[column].textContent;
  if (kind === "words") return text.toLowerCase();
  const found = text.match(NUMBER);
  return found ? parseFloat(found[0]) : NaN; // a dash
}

function compare(a, b, sign) {
  if (typeof a === "string") return sign * a.localeCompare(b, "en", { numeric: true });
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // dashes last, either way
  return sign * (a - b);
}

function sort(table, rows, column) {
  const heads = table.tHead.rows[0].cells;
  const kind = heads[column].classList.contains("r") ? "numbers" : "words";
  const order = TURNS[kind][TURNS[kind].indexOf(heads[column].getAttribute("aria-sort")) + 1]; // after the last: none
  for (const head of heads) head.removeAttribute("aria-sort");
  const sorted = rows.map((row) => [valueOf(row, column, kind), row]);
  if (order) {
    heads[column].setAttribute("aria-sort", order);
    sorted.sort(([a], [b]) => compare(a, b, order === "ascending" ? 1 : -1));
  }
  table.tBodies[0].append(...sorted.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table")) {
  const rows = [...table.tBodies[0].rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, rows, column));
    head.append(button);
  });
}

// ---- filter: rows of all tables that have all the words

const form = document.querySelector(".filter");
const field = form.querySelector("input");
const count = form.querySelector("output");
const rows = [...document.querySelectorAll("tbody tr, .configs > details")].map((row) => [
  row,
  row.textContent.toLowerCase(),
]);

function filter() {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const [row, text] of rows) {
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  for (const table of document.querySelectorAll("table")) {
    table.toggleAttribute("data-empty", !table.querySelector("tbody tr:not([hidden])"));
  }
  count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
}

field.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
filter(); // a browser may have kept the words

// ---- paper shows what is folded

addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details.part")) part.open = true;
});

// ---- a link into a folded part opens it

function unfold() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
}
addEventListener("hashchange", unfold);
unfold();
