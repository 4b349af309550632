"use strict";
// Sorts the table, switches the colour scheme, and draws the figures, and draws them again for print.
const root = document.documentElement;
// what a reader set survives a reload
const stored = {
  get: (key) => { try { return sessionStorage.getItem("rankwise " + location.pathname + key); } catch { return null; } },
  set: (key, value) => { try { sessionStorage.setItem("rankwise " + location.pathname + key, value); } catch { /* storage is blocked */ } },
};

// ── The table ──
const table = document.getElementById("results");  // a look at data has none
const headings = table ? [...table.tHead.rows[0].cells] : [];
const sortBy = (place, up) => {
  const numbers = headings[place].classList.contains("number");
  const value = (row) => row.cells[place].dataset.value;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);  // empty cells last
    return (up ? 1 : -1) * (numbers ? x - y : x.localeCompare(y));
  });
  table.tBodies[0].append(...rows);
  table.classList.add("sorted");
  headings.forEach((heading) => heading.removeAttribute("aria-sort"));
  headings[place].setAttribute("aria-sort", up ? "ascending" : "descending");
  stored.set("sort", JSON.stringify([place, up]));
};
headings.forEach((heading, place) => {
  heading.querySelector("button").addEventListener("click", () => {
    const now = heading.getAttribute("aria-sort");
    sortBy(place, now ? now === "descending" : !heading.classList.contains("number"));
  });
});
const sorted = JSON.parse(stored.get("sort") || "null");
if (sorted && headings[sorted[0]]) sortBy(...sorted);

// ── Colour scheme ──
const dark = matchMedia("(prefers-color-scheme: dark)");
const scheme = document.getElementById("scheme");
const isDark = () => (root.style.colorScheme || (dark.matches ? "dark" : "light")) === "dark";
const showScheme = () => { scheme.textContent = isDark() ? "Light" : "Dark"; scheme.setAttribute("aria-label", isDark() ? "Use light colours" : "Use dark colours"); };
const setScheme = (name) => { root.style.colorScheme = name; showScheme(); redraw(); };
if (stored.get("scheme")) root.style.colorScheme = stored.get("scheme");
scheme.hidden = false;
showScheme();
scheme.addEventListener("click", () => { const name = isDark() ? "light" : "dark"; stored.set("scheme", name); setScheme(name); });
dark.addEventListener("change", () => { showScheme(); redraw(); });

// ── Figures ──
const figures = JSON.parse(document.getElementById("figures").textContent);
const drawn = new Set();
const probe = document.body.appendChild(document.createElement("i"));
const colour = (name) => { probe.style.color = name; return getComputedStyle(probe).color; };
const merged = (base, own) => {
  if (!own || typeof own !== "object" || Array.isArray(own)) return own === undefined ? base : own;
  const both = { ...base };
  for (const key in own) both[key] = merged(both[key] ?? {}, own[key]);
  return both;
};
const coloured = (value) => {
  if (typeof value === "string") return value.startsWith("var(") ? colour(value) : value;
  if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(coloured);
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, v]) => [key, coloured(v)]));
  return value;
};
const axis = () => ({
  gridcolor: colour("var(--line)"), linecolor: colour("var(--line)"), zerolinecolor: colour("var(--muted)"), zeroline: false,
  fixedrange: true, automargin: true, title: { standoff: 8, font: { size: 11.5, color: colour("var(--muted)") } }, ticks: "",
});
const hue = () => [0, 1, 2, 3, 4].map((k) => [k / 4, colour(`var(--r${k})`)]);
const styled = (spec) => {
  const data = coloured(spec.data).map((trace) => trace.colorscale === "ranks" ? {
    ...trace,
    // log2: 4 → 8 is the same step in colour as 16 → 32
    z: trace.z.map((row) => row.map((rank) => rank === null ? null : Math.log2(1 + rank))),
    text: trace.z,
    colorscale: hue(),
  } : trace.colorscale === "shares" ? { ...trace, colorscale: hue() } : trace);
  const layout = merged({
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("var(--ink)") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 8, r: 14, t: 8, b: 36 }, dragmode: false,
    hoverlabel: { bgcolor: colour("var(--panel)"), bordercolor: colour("var(--line)"), font: { color: colour("var(--ink)"), size: 12 }, align: "left", namelength: -1 },
    xaxis: axis(), yaxis: axis(),
  }, coloured(spec.layout));
  return [data, layout];
};
const draw = (element) => {
  if (!window.Plotly || element.closest("[hidden]")) return null;
  const [data, layout] = styled(figures[element.id]);
  layout.width = element.clientWidth;
  drawn.add(element);
  return Plotly.react(element, data, layout, { displayModeBar: false, responsive: false });
};
const redraw = () => drawn.forEach(draw);
const plots = [...document.querySelectorAll(".plot")];
// plotly is large, so it runs only after the page can be read and used
const loadPlotly = () => {
  if (window.Plotly) return;
  const script = document.createElement("script");
  script.textContent = document.getElementById("plotly").textContent;
  document.body.append(script);
};
// all at once while the page loads: what captures the page right after that finds every figure
addEventListener("load", () => { loadPlotly(); plots.forEach(draw); root.dataset.drawn = "all"; });
let waiting = 0;
addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(redraw, 120); });

// ── Print ──
let before = null;
let opened = [];  // what only paper shows: every run's ranks, every method's classes
addEventListener("beforeprint", () => {
  before = root.style.colorScheme;
  root.style.colorScheme = "light";
  document.body.classList.add("paper");
  loadPlotly();
  opened = [...document.querySelectorAll(".choice[hidden]")].map((element) => [element, "hidden"]);
  opened.push(...[...document.querySelectorAll("#quality details:not([open])")].map((element) => [element, "open"]));
  opened.forEach(([element, name]) => { element[name] = !element[name]; });
  plots.forEach(draw);
});
addEventListener("afterprint", () => {
  document.body.classList.remove("paper");
  opened.forEach(([element, name]) => { element[name] = !element[name]; });
  root.style.colorScheme = before;
  redraw();
});

// ── The run whose ranks are shown ──
const which = document.getElementById("which");
if (which) {
  const show = () => {
    document.querySelectorAll(".choice").forEach((choice) => { choice.hidden = choice.dataset.choice !== which.value; });
    document.querySelectorAll(".choice:not([hidden]) .plot").forEach((element) => { if (!drawn.has(element)) draw(element); });
    stored.set("which", which.value);
  };
  if (stored.get("which") && figures[stored.get("which")]) { which.value = stored.get("which"); show(); }
  which.addEventListener("change", show);
}

// ── While a grid runs ──
if (root.dataset.live) {
  let touched = 0;
  ["pointermove", "keydown", "wheel", "touchstart"].forEach((kind) => addEventListener(kind, () => { touched = Date.now(); }, { passive: true }));
  const settled = () => root.dataset.drawn && !document.hidden && Date.now() - touched > 3000;
  setInterval(() => { if (settled()) location.reload(); }, root.dataset.live * 1000);
}
