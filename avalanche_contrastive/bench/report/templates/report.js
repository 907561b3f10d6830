"use strict";

// ---- sorting: a button in every heading; a third press restores the order of the page

const NUMBER = /[-+]?\d+(\.\d+)?/;
const NEXT = { none: "descending", descending: "ascending", ascending: "none" };

function value(row, column, numeric) {
  const text = row.cells[column].textContent;
  if (!numeric) return text.toLowerCase();
  const found = text.match(NUMBER);
  return found ? parseFloat(found[0]) : NaN; // a dash: no value
}

function compare(a, b) {
  if (typeof a === "string") return b.localeCompare(a, "en", { numeric: true });
  return Number.isNaN(a) || Number.isNaN(b) ? NaN : b - a;
}

function sort(table, rows, column) {
  const heads = table.tHead.rows[0].cells;
  const order = NEXT[heads[column].getAttribute("aria-sort") ?? "none"];
  for (const head of heads) head.removeAttribute("aria-sort");
  if (order !== "none") heads[column].setAttribute("aria-sort", order);
  const numeric = heads[column].classList.contains("r");
  const keyed = rows.map((row) => [value(row, column, numeric), row]);
  if (order !== "none") {
    const sign = order === "descending" ? 1 : -1;
    keyed.sort(([a], [b]) => {
      const found = compare(a, b);
      return Number.isNaN(found) ? Number.isNaN(a) - Number.isNaN(b) : sign * found; // no value: last
    });
  }
  table.tBodies[0].append(...keyed.map(([, row]) => row));
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
const told = form.querySelector("output");
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
  told.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
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
