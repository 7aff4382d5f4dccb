// What the page does once it is open: draws charts, sorts, filters, downloads, and keeps what belongs together in step.
const data = JSON.parse(document.getElementById("data").textContent);
const charts = JSON.parse(document.getElementById("charts").textContent);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const views = new Map(); // chart -> its view of Vega
const chosen = new Map(); // name of a control -> its value

// --- Light and dark: as the system says, until the button was pressed.
const root = document.documentElement;
const dark = window.matchMedia("(prefers-color-scheme: dark)");
document.getElementById("theme").addEventListener("click", () => {
  const now = root.dataset.theme || (dark.matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
});

// --- Charts: those in sight first, the others when the browser has time.
function rowsOf(name) {
  const columns = Object.entries(data[name].columns);
  const count = columns.length ? columns[0][1].length : 0;
  return Array.from({ length: count }, (_, i) => Object.fromEntries(columns.map(([key, values]) => [key, values[i]])));
}

async function draw(place) {
  const id = place.dataset.chart;
  if (place.dataset.drawn) return;
  place.dataset.drawn = "begun";
  const { spec, data: names } = charts[id];
  const datasets = Object.fromEntries(names.map((name) => [name, rowsOf(name)]));
  const { view } = await window.vegaEmbed(place, { ...spec, datasets }, {
    ast: true, // expressions are read, not compiled: the page's policy forbids eval
    renderer: "svg",
    actions: false,
    logLevel: 1, // errors alone
    tooltip: { theme: "page", disableDefaultStyle: true },
  });
  views.set(id, view);
  for (const [name, value] of chosen) await tell(view, name, value);
  place.dataset.drawn = "done";
}

async function tell(view, name, value) {
  const known = view.getState({ signals: (signal) => signal === name, data: () => false }).signals;
  if (name in known) await view.signal(name, value).runAsync();
}

const places = all("[data-chart]");
const whenIdle = window.requestIdleCallback || ((work) => setTimeout(work, 50));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
}, { rootMargin: "300px" });
places.forEach((place) => seen.observe(place));
async function drawAll() {
  for (const place of places) {
    await new Promise((ready) => whenIdle(ready));
    await draw(place);
  }
  root.dataset.drawn = "all";
}
window.addEventListener("load", drawAll);

// --- Controls: data-select="name" with a value. What follows the name changes with it.
function choose(name, value, from) {
  const text = String(value); // attributes are texts, and a chart's parameter may be a number
  chosen.set(name, value);
  for (const view of views.values()) tell(view, name, value);
  for (const control of all("[data-select]")) {
    if (control.dataset.select !== name) continue;
    if (control.matches("button")) control.setAttribute("aria-pressed", String(control.dataset.value === text));
    else if (control !== from && control.matches("select")) control.value = text;
  }
  for (const table of all("table[data-follows]")) {
    if (table.dataset.follows !== name) continue;
    let first = null;
    for (const row of all("tbody tr", table)) {
      const is = row.dataset.key === text;
      row.classList.toggle("chosen", is);
      if (is && !first) first = row;
    }
    if (first) {
      const box = table.closest(".scroll");
      box.scrollTop = first.offsetTop - box.clientHeight / 2;
    }
  }
  for (const shown of all("[data-shown-for]")) {
    if (shown.dataset.shownFor === name) shown.hidden = shown.dataset.value !== text;
  }
  document.dispatchEvent(new CustomEvent("choose", { detail: { name, value } }));
}
for (const control of all("[data-select]")) {
  const name = control.dataset.select;
  if (control.matches("button")) {
    control.addEventListener("click", () => {
      choose(name, control.dataset.value, control);
      if (control.dataset.goes) document.getElementById(control.dataset.goes)?.scrollIntoView({ block: "start" });
    });
  } else if (control.matches("input[type=range]")) {
    const values = JSON.parse(control.dataset.values);
    const tellSlider = () => {
      const value = values[Number(control.value)];
      if (control.dataset.output) document.getElementById(control.dataset.output).textContent = value;
      choose(name, value, control);
    };
    control.addEventListener("input", tellSlider);
  } else control.addEventListener("change", () => choose(name, control.value, control));
}

// --- Tables: sort by a column's values, filter by text.
for (const table of all("table[data-of]")) {
  const columns = data[table.dataset.of].columns;
  for (const button of all("[data-sorts]", table)) {
    button.addEventListener("click", () => {
      const header = button.closest("th");
      const down = header.getAttribute("aria-sort") === "ascending";
      all("th", table).forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      const values = columns[button.dataset.sorts];
      const rows = all("tbody tr", table);
      const of = (row) => values[Number(row.dataset.row)];
      rows.sort((a, b) => compare(of(a), of(b), down) || a.dataset.row - b.dataset.row);
      table.tBodies[0].append(...rows);
    });
  }
}
function compare(a, b, down) {
  if (a === null || b === null) return (a === null) - (b === null); // missing values last, either way
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  return down ? -order : order;
}
for (const input of all("input[data-filters]")) {
  const table = document.getElementById(input.dataset.filters);
  const count = input.closest(".filter").querySelector(".count");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of all("tbody tr", table)) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      left += !row.hidden;
    }
    count.textContent = `${left} ${left === 1 ? "row" : "rows"}`;
  });
}

// --- Downloads: the whole table as csv, as the study writes it.
function csv(name) {
  const { columns, cells, titles } = data[name];
  const names = Object.keys(columns);
  const written = names.map((key) => cells[key] || columns[key]);
  const cell = (value) => {
    const text = value === null ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const count = names.length ? written[0].length : 0;
  const lines = [titles.map(cell).join(",")];
  for (let i = 0; i < count; i += 1) lines.push(written.map((values) => cell(values[i])).join(","));
  return `${lines.join("\n")}\n`;
}
for (const button of all("[data-download]")) {
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(button.dataset.download)], { type: "text/csv" }));
    link.download = `${data[button.dataset.download].table.replaceAll("/", "_")}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
