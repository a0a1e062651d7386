// Makes the page of its content; where the run is still going, again whenever there is more. What a reader has chosen
// (view, round, open tables, zoom, focus) stays. plots.js, which stands before it, fills the sections.
"use strict";

const POLL_MS = 2000;
const dark = matchMedia("(prefers-color-scheme: dark)");
const chosen = {}; // section id → {view, round}; round is null while it follows the last one
let content = JSON.parse(document.getElementById("content").textContent);

// --- one section ----------------------------------------------------------------------------------------------------

function frame(section) {
  const made = element("section", "", { id: section.id, "aria-labelledby": `${section.id}-title` });
  made.append(element("h2", "", { id: `${section.id}-title` }), element("p", "", { class: "lead" }));
  if (section.texts) {
    made.append(element("div", "", { class: "table texts", tabindex: "0", role: "group" }));
    return made;
  }
  made.append(element("fieldset"));
  if (section.steps) made.append(sliderOf(section));
  made.append(element("div", "", { class: "plot", role: "img" }));
  const details = element("details");
  details.open = section.open;
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
  here.querySelector(".table").setAttribute("aria-label", `${section.title}: ${section.texts ? "the texts" : "the numbers"}`);
  if (section.texts) return;
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

// --- the page -------------------------------------------------------------------------------------------------------

function show() {
  document.querySelector("h1").textContent = content.title;
  document.getElementById("story").replaceChildren(...content.story.map(told));
  const facts = content.facts.map(([name, value]) => {
    const pair = element("div");
    pair.append(element("dt", name), element("dd", value));
    return pair;
  });
  document.getElementById("facts").replaceChildren(...facts);
  const drawn = content.sections.filter((section) => section.views.length || section.texts);
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
    if (before !== wide.has(section) && !section.texts) Plotly.Plots.resize(here.querySelector(".plot"));
  });
  listContents(drawn);
  const absent = content.sections.filter((section) => !section.views.length && !section.texts);
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

function told({ title, headline, lines }) {
  const made = element("section");
  made.append(element("h2", title), element("p", headline, { class: "headline" }));
  made.append(...lines.map((line) => element("p", line)));
  return made;
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
