"use strict";
// figures enlarge on a click; Escape, the button or a click on the picture closes
const enlarged = document.getElementById("enlarged");
for (const button of document.querySelectorAll("button.zoom")) {
  button.addEventListener("click", () => {
    const from = button.querySelector("img"), to = enlarged.querySelector("img");
    const fit = Math.min(innerWidth * 0.96 / from.naturalWidth, innerHeight * 0.9 / from.naturalHeight);
    to.src = from.src;
    to.alt = from.alt;
    to.width = Math.round(from.naturalWidth * Math.max(1, Math.min(2, fit)));
    enlarged.showModal();
  });
}
enlarged.addEventListener("click", () => enlarged.close());

// commands go to the clipboard where the browser has one for a local file
for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.parentElement.querySelector("code"));
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// tables sort by the column whose heading is clicked, and the other way round on a second click; blanks come last
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const sorted = [...body.rows].sort((one, other) => {
      const a = key(one, column), b = key(other, column);
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    });
    body.append(...sorted);
  }));
}
