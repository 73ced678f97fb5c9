// Sliders and filters; each acts at once.
import { find, h, icon, settled } from "./dom.js";
import { coloured } from "./members.js";
import { NOTHING, change, current } from "./view.js";

const MOST_HITS = 100;
const MOST_SUGGESTED = 500;
// What sliders were moved to and is not yet part of the view.
let pending = {};
const flush = settled(90, () => { const parts = pending; pending = {}; change(parts); });
const adjust = (parts) => { pending = { ...pending, ...parts }; flush(); };
const drawn = {};
const seen = { labels: new Set(), columns: new Map() };

function slider(id, name, { most, step, tell, act, dot }) {
  const input = h("input", { id, type: "range", min: dot ? 0 : 1, max: most, step, input: () => { output.textContent = tell(Number(input.value)); act(Number(input.value)); } });
  const output = h("output", { for: id });
  const label = h("label", { for: id }, dot ? coloured(h("span", { class: "dot" }), dot) : null, name);
  const set = (value) => { input.value = value; output.textContent = tell(value); };
  return { element: h("div", { class: "slider" }, label, output, input), input, set };
}

/** Build the controls for an index. */
export function buildControls(info) {
  const most = Math.min(info.max_limit, MOST_HITS);
  drawn.limit = slider("limit", "Number of hits", { most, step: 1, tell: String, act: (limit) => adjust({ limit }) });
  drawn.score = slider("score", "Minimum score", { most: 1, step: 0.01, tell: (value) => value.toFixed(2), act: (value) => adjust({ minScore: value || null }) });
  drawn.score.input.min = 0;
  const percent = (value) => `${Math.round(100 * value)} %`;
  drawn.own = Object.fromEntries(info.members.map((member) => [member.name, Number(member.weight.toFixed(4))]));
  drawn.weights = info.members.map((member) => [member.name, slider(`weight-${member.name}`, member.name, {
    most: 1, step: 0.01, tell: percent, dot: member.name,
    act: (value) => adjust({ weights: { ...(pending.weights ?? current().weights ?? rounded()), [member.name]: value } }),
  })]);
  drawn.others = h("input", { type: "checkbox", change: (event) => change({ withoutQuery: event.target.checked }) });
  drawn.crop = h("select", { id: "crop", change: (event) => change({ crop: event.target.value || null }) },
    [["", `As indexed (${info.crop ?? "unknown"})`], ["content", "Find the content"], ["border", "Trim the borders"], ["none", "Whole picture"]]
      .map(([value, text]) => h("option", { value }, text)));
  drawn.labels = h("datalist", { id: "labels" });
  drawn.columns = h("datalist", { id: "columns" });
  drawn.values = h("datalist", { id: "values" });
  drawn.chips = h("div", { class: "chips" });
  find("controls").replaceChildren(
    h("fieldset", {}, h("legend", {}, "Which to show"), drawn.limit.element, drawn.score.element,
      h("label", { class: "check" }, drawn.others, "Leave the picture itself and its near duplicates out")),
    h("fieldset", {}, h("legend", {}, "How much each member counts"), drawn.weights.map(([, one]) => one.element)),
    h("fieldset", {}, h("legend", {}, "Filters"), drawn.chips, labelField(), columnField()),
    h("div", { class: "field" }, h("label", { for: "crop" }, "Part of the picture"), drawn.crop),
    h("button", { type: "button", class: "button small", id: "reset", click: reset }, "Back to the index's own settings"),
    drawn.labels, drawn.columns, drawn.values);
  find("controls").addEventListener("submit", (event) => event.preventDefault());
}

const rounded = () => Object.fromEntries(Object.entries(drawn.own).map(([name, value]) => [name, Number(value.toFixed(2))]));

function reset() {
  const { limit, minScore, weights, labels, notLabels, columns, withoutQuery, crop } = NOTHING;
  change({ limit, minScore, weights, labels, notLabels, columns, withoutQuery, crop }, { step: true });
}

function labelField() {
  const input = h("input", { type: "text", id: "label", list: "labels", placeholder: "a label", keydown: (event) => { if (event.key === "Enter") { event.preventDefault(); add("labels"); } } });
  const add = (key) => {
    const label = input.value.trim();
    if (!label) return;
    input.value = "";
    filterLabel(key, label);
  };
  return h("div", { class: "field" }, h("label", { for: "label" }, "Label"), input,
    h("div", { class: "pair" },
      h("button", { type: "button", class: "button small", id: "label-only", click: () => add("labels") }, "Only"),
      h("button", { type: "button", class: "button small", id: "label-not", click: () => add("notLabels") }, "Not")));
}

function columnField() {
  const column = h("input", { type: "text", id: "column", list: "columns", placeholder: "column", "aria-label": "Column", input: () => suggest(column.value) });
  const value = h("input", { type: "text", id: "value", list: "values", placeholder: "value", "aria-label": "Value" });
  const add = () => {
    if (!column.value.trim() || !value.value) return;
    filterColumn(column.value.trim(), value.value);
    value.value = "";
  };
  value.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); add(); } });
  return h("div", { class: "field" }, h("span", {}, "Metadata"), h("div", { class: "pair" }, column, value),
    h("button", { type: "button", class: "button small", id: "column-only", click: add }, "Only these"));
}

/** key: "labels" for those wanted, "notLabels" for those unwanted. */
export function filterLabel(key, label) {
  const other = key === "labels" ? "notLabels" : "labels";
  const view = current();
  change({ [key]: [...new Set([...view[key], label])], [other]: view[other].filter((one) => one !== label) }, { step: true });
}

export function filterColumn(column, value) {
  const columns = current().columns.filter(([name, one]) => name !== column || one !== value);
  change({ columns: [...columns, [column, value]] }, { step: true });
}

function suggest(column) {
  drawn.values.replaceChildren(...[...(seen.columns.get(column) ?? [])].map((value) => h("option", { value })));
}

/** Suggest what the gallery has, and what answers showed. */
export function suggestFacets({ labels, columns }) {
  for (const label of labels) seen.labels.add(label);
  for (const [column, values] of Object.entries(columns)) {
    if (!seen.columns.has(column)) seen.columns.set(column, new Set());
    for (const value of values) seen.columns.get(column).add(value);
  }
  drawn.labels.replaceChildren(...[...seen.labels].sort().slice(0, MOST_SUGGESTED).map((value) => h("option", { value })));
  drawn.columns.replaceChildren(...[...seen.columns.keys()].sort().map((value) => h("option", { value })));
}

/** Show the settings of a view. */
export function drawControls(view) {
  if (!drawn.limit) return;
  const now = { ...view, ...pending };
  drawn.limit.set(now.limit ?? 10);
  drawn.score.set(now.minScore ?? 0);
  for (const [name, one] of drawn.weights) one.set(now.weights ? (now.weights[name] ?? 0) : drawn.own[name]);
  drawn.others.checked = view.withoutQuery;
  drawn.crop.value = view.crop ?? "";
  drawn.crop.closest(".field").hidden = view.queries[view.at]?.kind !== "upload";
  const chip = (text, style, parts) => h("button", { type: "button", class: `chip ${style}`, "aria-label": `Take the filter ${text} away`, click: () => change(parts, { step: true }) }, text, icon("wrong"));
  drawn.chips.replaceChildren(
    ...view.labels.map((label) => chip(label, "", { labels: view.labels.filter((one) => one !== label) })),
    ...view.notLabels.map((label) => chip(`not ${label}`, "not", { notLabels: view.notLabels.filter((one) => one !== label) })),
    ...view.columns.map(([column, value], number) => chip(`${column}: ${value}`, "", { columns: view.columns.filter((_, place) => place !== number) })));
}
