// Fills a section: its plot in the colours of the page, and below it the numbers in a table. page.js, which follows, has
// the content, and what a reader has chosen of it.
"use strict";

const LONG = 40; // letters from which a cell may be broken into lines
const coarse = matchMedia("(pointer: coarse)");
const narrow = matchMedia("(max-width: 30rem)");

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// --- plots ----------------------------------------------------------------------------------------------------------

function draw(section) {
  const here = document.getElementById(section.id);
  if (section.texts) {
    showRows(here.querySelector(".table"), section.texts, section.texts.rows);
    return;
  }
  const choice = chosen[section.id];
  const view = section.views[choice.view];
  let data = view.figure.data;
  let words = `${section.title}${view.label ? `, ${view.label}` : ""}`;
  if (section.steps) {
    const at = place(section);
    data = [{ ...data[0], z: ranksOf(section.steps, at) }];
    words = `${section.title}, round ${section.steps.rounds[at]}`;
    const said = `${section.steps.rounds[at]} (of 0 to ${section.steps.rounds.at(-1)})`;
    here.querySelector("output").textContent = said;
    here.querySelector(".slider input").setAttribute("aria-valuetext", said);
  }
  const plot = here.querySelector(".plot");
  plot.setAttribute("aria-label", `${words}. The numbers are in the table below.`);
  const options = { displayModeBar: false, responsive: true }; // its buttons would be tab stops that show on hover only
  const layout = layoutOf(view.figure, `${choice.view}`);
  plot.style.height = `${layout.height}px`; // plotly takes it from there when the window is resized
  Plotly.react(plot, data.map(coloured), layout, options);
  fillTable(section);
}

// The ranks of one round, (clients, layers); null where a client trained nothing that counted.
function ranksOf(steps, at) {
  steps.all ??= decoded(steps.ranks, steps.dtype);
  steps.starts ??= steps.trained.reduce((starts, trained) => [...starts, starts.at(-1) + trained.length], [0]);
  const z = steps.clients.map(() => new Array(steps.layers).fill(null));
  steps.trained[at].forEach((client, i) => {
    const start = (steps.starts[at] + i) * steps.layers;
    z[client] = Array.from(steps.all.subarray(start, start + steps.layers));
  });
  return z;
}

function decoded(text, dtype) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return dtype === "u1" ? bytes : new Uint16Array(bytes.buffer);
}

function coloured(trace) {
  const meta = trace.meta;
  if (meta.scale) return { ...trace, colorscale: scaleOf(trace), colorbar: barOf(trace.colorbar) };
  const own = colour(`colour-${meta.colour % 8}`);
  if (meta.band) return { ...trace, fillcolor: `${own}2e`, line: { ...trace.line, color: own } };
  const marker = { ...trace.marker, color: own };
  if (meta.mark) marker.line = { ...marker.line, color: own };
  if (trace.marker.pattern) marker.pattern = { ...marker.pattern, fgcolor: colour("surface") };
  const interval = trace.error_x ? { error_x: { ...trace.error_x, color: own } } : {};
  return { ...trace, marker, line: { ...trace.line, color: own }, ...interval };
}

// On a phone what is drawn needs the room of the title, which is also said by the view.
function barOf(own) {
  return { ...own, outlinewidth: 0, ...(narrow.matches ? { title: { text: "" }, thickness: 8 } : {}) };
}

function scaleOf(trace) {
  const [low, high, frozen] = [colour("low"), colour("high"), colour("frozen")];
  if (trace.meta.scale !== "ranks") return [[0, low], [1, high]];
  const first = 0.5 / Math.max(1, trace.zmax); // between rank 0 and rank 1
  return [[0, frozen], [first, frozen], [first, low], [1, high]];
}

function layoutOf(figure, revision) {
  const axis = (own) => ({
    zeroline: false, ...own, color: colour("quiet"), gridcolor: colour("grid"), linecolor: colour("line"),
    zerolinecolor: colour("quiet"),
    ticklabelstandoff: 4, // a point on the axis leaves the label readable
  });
  return {
    ...figure.layout,
    xaxis: axis(figure.layout.xaxis),
    yaxis: axis(figure.layout.yaxis),
    height: figure.layout.height ?? 340,
    margin: { l: 48, r: 20, t: 36, b: 44 }, // on the right, half a label of the axis,
    font: { family: "system-ui, sans-serif", size: 13, color: colour("text") },
    legend: { orientation: "h", x: 0, y: 1, xanchor: "left", yanchor: "bottom" },
    hoverlabel: { bgcolor: colour("surface"), font: { color: colour("text") } },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    dragmode: coarse.matches ? false : "zoom", // a finger scrolls the page
    uirevision: revision,
  };
}

// --- numbers --------------------------------------------------------------------------------------------------------

function fillTable(section) {
  const details = document.getElementById(section.id).querySelector("details");
  if (!details.open) return;
  const view = section.views[chosen[section.id].view];
  const rows = section.steps ? rankRows(section.steps, place(section)) : view.rows;
  showRows(details.querySelector(".table"), view, rows);
}

function showRows(box, view, rows) {
  const table = element("table");
  const head = element("thead");
  head.append(rowOf("th", view.columns, { scope: "col" }));
  const body = element("tbody");
  body.append(...rows.map((row) => rowOf("td", row)));
  table.append(head, body);
  const { scrollTop, scrollLeft } = box;
  box.replaceChildren(table);
  if (view.leftOut) box.append(element("p", `… and ${view.leftOut} more rows.`));
  box.scrollTo(scrollLeft, scrollTop);
}

function rowOf(kind, cells, attributes = {}) {
  const row = element("tr");
  row.append(...cells.map((cell) => element(kind, cell, cell.length > LONG ? { ...attributes, class: "long" } : attributes)));
  return row;
}

function rankRows(steps, at) {
  return ranksOf(steps, at).map((ranks, i) => [steps.clients[i], ...ranks.map((rank) => (rank === null ? "–" : `${rank}`))]);
}
