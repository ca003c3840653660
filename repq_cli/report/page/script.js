"use strict";

// A click on a heading sorts its table by that column: up, down, then as it was. Lines without a value stay last.
const collator = new Intl.Collator("en", { numeric: true });
const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

function valueOf(cell, numeric) {
  return numeric ? parseFloat(cell.dataset.value) : cell.textContent;
}

function isEmpty(value) {
  return value === "" || Number.isNaN(value);
}

function comparison(index, numeric, direction) {
  const sign = direction === "descending" ? -1 : 1;
  return (first, second) => {
    const a = valueOf(first.cells[index], numeric);
    const b = valueOf(second.cells[index], numeric);
    if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b);
    return sign * (numeric ? a - b : collator.compare(a, b));
  };
}

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const asItWas = [...body.rows];
  const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  for (const heading of headings) {
    heading.querySelector("button").addEventListener("click", () => {
      const direction = NEXT[heading.getAttribute("aria-sort") || "none"];
      for (const other of headings) other.removeAttribute("aria-sort");
      const lines = [...asItWas];
      if (direction !== "none") {
        heading.setAttribute("aria-sort", direction);
        lines.sort(comparison(heading.cellIndex, heading.classList.contains("number"), direction));
      }
      body.append(...lines);
    });
  }
}

// Texts of a table that is wider than its box are broken; where that is not enough, it says so and keeps its first column.
function measure() {
  for (const box of document.querySelectorAll(".box")) {
    box.classList.remove("tight", "wide");
    for (const name of ["tight", "wide"]) if (box.scrollWidth > box.clientWidth + 1) box.classList.add(name);
  }
}
for (const cell of document.querySelectorAll("tbody td:not(.number)")) {
  if (cell.textContent.length > 20) cell.classList.add("long");
}
addEventListener("resize", measure);
measure();
