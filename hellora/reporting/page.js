// Draws the page from its content; where the run is still going, again whenever there is more. What a reader has
// chosen (view, round, open tables, zoom, focus) stays.
"use strict";

const LONG = 40; // letters from which a cell may be broken into lines
const POLL_MS = 2000;
const dark = matchMedia("(prefers-color-scheme: dark)");
const coarse = matchMedia("(pointer: coarse)");
const chosen = {}; // section id → {view, round}; round is null while it follows the last one
let content = JSON.parse(document.getElementById("content").textContent);

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// --- one section ----------------------------------------------------------------------------------------------------

function frame(section) {
  const made = element("section", "", { id: section.id, "aria-labelledby": `${section.id}-title` });
  made.append(element("h2", "", { id: `${section.id}-title` }), element("p", "", { class: "lead" }));
  made.append(element("fieldset"));
  if (section.steps) made.append(sliderOf(section));
  made.append(element("div", "", { class: "plot", role: "img" }));
  const details = element("details");
  details.append(element("summary", "The numbers"), element("div", "", { class: "table", tabindex: "0", role: "group" }));
  details.addEventListener("toggle", () => fillTable(current(section.id)));
  made.append(details);
  return made;
}

function sliderOf(section) {
  const box = element("div", "", { class: "slider" });
  const label = element("label", "Round", { for: `${section.id}-round` });
  const input = element("input", "", { type: "range", id: `${section.id}-round`, min: 0, step: 1 });
  input.addEventListener("input", () => {
    chosen[section.id].round = Number(input.value) === Number(input.max) ? null : Number(input.value);
    draw(current(section.id));
  });
  box.append(label, input, element("output", "", { for: input.id }));
  return box;
}

function current(id) {
  return content.sections.find((section) => section.id === id);
}

function place(section) {
  const { round } = chosen[section.id];
  const last = section.steps.rounds.length - 1;
  return round === null ? last : Math.min(round, last);
}

function describe(section) {
  const here = document.getElementById(section.id);
  here.querySelector("h2").textContent = section.title;
  here.querySelector(".lead").textContent = section.lead;
  here.querySelector(".lead").hidden = !section.lead;
  here.querySelector(".table").setAttribute("aria-label", `${section.title}: the numbers`);
  offerViews(section, here.querySelector("fieldset"));
  if (section.steps) {
    const input = here.querySelector(".slider input");
    input.max = section.steps.rounds.length - 1;
    input.value = place(section);
  }
}

function offerViews(section, fieldset) {
  fieldset.hidden = section.views.length < 2;
  const choice = chosen[section.id];
  choice.view = Math.min(choice.view, section.views.length - 1);
  if (fieldset.querySelectorAll("input").length !== section.views.length) {
    fieldset.replaceChildren(element("legend", `${section.title}: what to show`));
    section.views.forEach((_, i) => {
      const label = element("label");
      const input = element("input", "", { type: "radio", name: `${section.id}-view`, value: i });
      input.addEventListener("change", () => {
        choice.view = i;
        draw(current(section.id));
      });
      label.append(input, element("span"));
      fieldset.append(label);
    });
  }
  fieldset.querySelectorAll("label").forEach((label, i) => {
    label.querySelector("span").textContent = section.views[i].label;
    label.querySelector("input").checked = i === choice.view;
  });
}

// --- plots ----------------------------------------------------------------------------------------------------------

function draw(section) {
  const here = document.getElementById(section.id);
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
  if (meta.scale) return { ...trace, colorscale: scaleOf(trace), colorbar: { ...trace.colorbar, outlinewidth: 0 } };
  const own = colour(`colour-${meta.colour % 8}`);
  if (meta.band) return { ...trace, fillcolor: `${own}2e`, line: { ...trace.line, color: own } };
  const marker = { ...trace.marker, color: own };
  if (meta.mark) marker.line = { ...marker.line, color: own };
  if (trace.marker.pattern) marker.pattern = { ...marker.pattern, fgcolor: colour("surface") };
  const errors = {};
  for (const axis of ["error_x", "error_y"]) if (trace[axis]) errors[axis] = { ...trace[axis], color: colour("text") };
  return { ...trace, marker, line: { ...trace.line, color: own }, ...errors };
}

function scaleOf(trace) {
  const [low, high, frozen] = [colour("low"), colour("high"), colour("frozen")];
  if (trace.meta.scale !== "ranks") return [[0, low], [1, high]];
  const first = 0.5 / Math.max(1, trace.zmax); // between rank 0 and rank 1
  return [[0, frozen], [first, frozen], [first, low], [1, high]];
}

function layoutOf(figure, revision) {
  const axis = (own) => ({
    ...own, color: colour("quiet"), gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false,
    ticklabelstandoff: 4, // a point on the axis leaves the label readable
  });
  return {
    ...figure.layout,
    xaxis: axis(figure.layout.xaxis),
    yaxis: axis(figure.layout.yaxis),
    height: figure.layout.height ?? 340,
    margin: { l: 48, r: 12, t: 36, b: 44 },
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
  const table = element("table");
  const head = element("thead");
  head.append(rowOf("th", view.columns, { scope: "col" }));
  const body = element("tbody");
  body.append(...rows.map((row) => rowOf("td", row)));
  table.append(head, body);
  const box = details.querySelector(".table");
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

// --- the page -------------------------------------------------------------------------------------------------------

function show() {
  document.querySelector("h1").textContent = content.title;
  const facts = content.facts.map(([name, value]) => {
    const pair = element("div");
    pair.append(element("dt", name), element("dd", value));
    return pair;
  });
  document.getElementById("facts").replaceChildren(...facts);
  const drawn = content.sections.filter((section) => section.views.length);
  const main = document.getElementById("main");
  const wide = wholeRows(drawn);
  drawn.forEach((section, i) => {
    chosen[section.id] ??= { view: 0, round: null };
    let here = document.getElementById(section.id);
    here ??= main.insertBefore(frame(section), main.querySelectorAll(":scope > section")[i] ?? null);
    const before = here.classList.contains("wide");
    here.classList.toggle("wide", wide.has(section));
    describe(section);
    draw(section);
    if (before !== wide.has(section)) Plotly.Plots.resize(here.querySelector(".plot"));
  });
  listContents(drawn);
  const absent = content.sections.filter((section) => !section.views.length);
  const box = document.getElementById("left-out");
  box.hidden = !absent.length;
  box.querySelector("ul").replaceChildren(...absent.map(({ title, why }) => element("li", `${title}: ${why}`)));
  document.getElementById("notes").replaceChildren(...content.notes.map((note) => element("li", note)));
}

// The sections that have a row to themselves: those that need it, and those that no other can stand beside.
function wholeRows(drawn) {
  const wide = new Set();
  for (let i = 0; i < drawn.length; i++) {
    if (!drawn[i].wide && drawn[i + 1] && !drawn[i + 1].wide) i++;
    else wide.add(drawn[i]);
  }
  return wide;
}

function listContents(drawn) {
  const list = document.getElementById("contents");
  if (list.children.length === drawn.length) return; // the same links; one of them may have the focus
  list.replaceChildren(
    ...drawn.map(({ id, title }) => {
      const item = element("li");
      item.append(element("a", title, { href: `#${id}` }));
      return item;
    }),
  );
}

function say(words) {
  const state = document.getElementById("state");
  if (state.textContent !== words) state.textContent = words;
}

async function poll() {
  try {
    const answer = await fetch(`data?since=${content.version}`);
    if (answer.status === 200) {
      content = await answer.json();
      show();
    }
    if (answer.status === 500) say(await answer.text());
    else say(content.ended ? "The run has ended." : "Not ended: while the run goes on, new rounds appear here.");
  } catch {
    say("hellora watch does not answer: this is what it said last.");
  }
  setTimeout(poll, POLL_MS);
}

show();
dark.addEventListener("change", show);
if (LIVE) poll();
