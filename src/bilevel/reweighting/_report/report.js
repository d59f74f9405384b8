"use strict";
{ // A block, so that no name here is one of the libraries'.
// Charts: each becomes interactive when it comes near the window; the first one runs the libraries.
// Until then, and where that cannot be done, its drawing is shown.
const bundle = document.getElementById("bundle");
const charts = bundle && bundle.textContent ? [...document.querySelectorAll(".chart")] : [];
let specs = null;
async function draw(chart) {
  if (specs === null) {
    specs = JSON.parse(document.getElementById("specs").textContent);
    const code = document.createElement("script");
    code.textContent = bundle.textContent;
    bundle.replaceWith(code);
  }
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
    chart.classList.add("still");
    console.error(error);
  }
}
const near = new IntersectionObserver((seen) => {
  const here = seen.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
  for (const chart of here) near.unobserve(chart);
  Promise.all(here.map(draw)).then(() => performance.mark("charts"));
}, { rootMargin: "50%" });
for (const chart of charts) near.observe(chart);
if (!charts.length) performance.mark("charts");

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

// The worst rows: only those that hold the text, are of the class and the kind, or are in doubt.
const worst = document.getElementById("worst-table");
if (worst) {
  const find = (id) => document.getElementById(id);
  const text = find("filter-text"), doubt = find("filter-doubt");
  const ofClass = find("filter-class"), ofKind = find("filter-kind");
  const count = find("filter-count"), rows = [...worst.tBodies[0].rows];
  const filter = () => {
    const wanted = text.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = [...row.cells].some((cell) => cell.textContent.toLowerCase().includes(wanted))
        && (!ofClass || !ofClass.value || row.dataset.class === ofClass.value)
        && (!ofKind || !ofKind.value || row.dataset.kind === ofKind.value);
      row.hidden = !fits || (doubt.checked && row.dataset.agrees === "yes");
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  };
  text.addEventListener("input", filter);
  for (const field of [doubt, ofClass, ofKind]) if (field) field.addEventListener("change", filter);
  const visible = () => [...worst.tBodies[0].rows].filter((row) => !row.hidden);
  const id = (row) => row.querySelector("th").dataset.value;
  find("copy-ids").addEventListener("click", async () => {
    const ids = visible().map(id).join("\n");
    try {
      await navigator.clipboard.writeText(ids);
    } catch {
      const area = document.createElement("textarea");
      area.value = ids;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    count.textContent = `${visible().length} ids copied`;
  });
  // A cell that a spreadsheet would run as a formula gets an apostrophe before it.
  const cell = (value) => {
    const safe = /^[\s\p{C}]*[=+@\uFF1D\uFF0B\uFF20]|^[\s\p{C}]*[-\uFF0D](?![\d.]+(e[-+]?\d+)?$)|^[\t\r\n]/u.test(value) ? `'${value}` : value;
    return `"${safe.replaceAll('"', '""')}"`;
  };
  find("save-list").addEventListener("click", () => {
    const heads = [...worst.tHead.rows[0].cells].map((head) => head.textContent);
    const lines = visible().map((row) => [...row.cells].map((c) => c.dataset.value ?? c.textContent.trim()));
    const content = [heads, ...lines].map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff", content], { type: "text/csv" }));
    link.download = "rows.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    count.textContent = `${lines.length} rows saved`;
  });
  find("filter").hidden = false;
  filter();
}
}
