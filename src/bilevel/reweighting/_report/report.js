"use strict";
// Charts: the drawing stays where the interactive one cannot be made.
const specs = JSON.parse(document.getElementById("specs").textContent);
const pending = [...document.querySelectorAll(".chart")].map(async (chart) => {
  const live = document.createElement("div");
  live.className = "live";
  chart.append(live);
  try {
    await vegaEmbed(live, specs[chart.dataset.chart], {
      actions: false, ast: true, mode: "vega-lite", renderer: "svg", logLevel: 1, tooltip: { theme: "custom" },
    });
    chart.classList.add("interactive");
  } catch (error) {
    live.remove();
    console.error(error);
  }
});
Promise.all(pending).then(() => { document.documentElement.dataset.charts = "done"; });

// Tables: a button in each header cell sorts by that column; empty cells stay last.
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, k) => {
    if (!head.dataset.sort) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const numeric = head.dataset.sort === "number", sign = order === "ascending" ? 1 : -1;
      const body = table.tBodies[0];
      const keyed = [...body.rows].map((row) => [row.cells[k].dataset.value, row]);
      keyed.sort(([a], [b]) => {
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
      });
      body.append(...keyed.map(([, row]) => row));
    });
  });
}
document.querySelectorAll("table.sortable").forEach(sortable);

// The worst rows: only those that hold the text, only those whose label is in doubt.
const worst = document.getElementById("worst-table");
if (worst) {
  const text = document.getElementById("filter-text"), doubt = document.getElementById("filter-doubt");
  const count = document.getElementById("filter-count"), rows = [...worst.tBodies[0].rows];
  const filter = () => {
    const wanted = text.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = [...row.cells].some((cell) => cell.textContent.toLowerCase().includes(wanted));
      row.hidden = !fits || (doubt.checked && row.dataset.agrees === "yes");
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  };
  text.addEventListener("input", filter);
  doubt.addEventListener("change", filter);
  document.getElementById("filter").hidden = false;
  filter();
}
