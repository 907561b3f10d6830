// What the theme leaves out for readers without a mouse or without a screen: long code and wide tables scroll by keyboard,
// the headings of the sidebar have a level, and its two halves have names.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("pre, .table-wrapper").forEach((box) => box.setAttribute("tabindex", "0"));
  document.querySelectorAll("p.caption[role=heading]").forEach((text) => text.setAttribute("aria-level", "2"));
  document.querySelector("aside.sidebar-drawer")?.setAttribute("aria-label", "Pages");
  document.querySelector("aside.toc-drawer")?.setAttribute("aria-label", "On this page");
});
