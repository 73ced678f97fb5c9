// The page: what happens when something is given, asked, answered or gone.
import * as api from "./api.js";
import { drawClasses, drawCrop, drawExamples, drawQuery, drawTray } from "./asking.js";
import { buildControls, drawControls, filterColumn, filterLabel, suggestFacets } from "./controls.js";
import { showDetails } from "./details.js";
import { find, h, say } from "./dom.js";
import { drawHits, measure, walkByArrows } from "./hits.js";
import { setMembers } from "./members.js";
import { megabytes, send } from "./pictures.js";
import { csv, save } from "./saving.js";
import { answer, answerOthers, forget, remembered } from "./searching.js";
import { NOTHING, asks, change, current, onChange } from "./view.js";

const POLL = 1500;
let info = null;
let shown = null; // the answer on the screen
let failed = []; // pictures that could not be sent
let polling = null;

// Giving a query. A new query keeps the sliders and filters, and drops the examples.

const ask = (queries) => change({ queries, at: 0, like: [], unlike: [] }, { step: true });

async function give(files) {
  const pictures = [...files].filter((file) => !file.type || file.type.startsWith("image/"));
  if (!pictures.length) {
    if (files.length) trouble("This is no picture", "Drop image files: JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.");
    return;
  }
  failed = [];
  say("Sending");
  let first = true;
  const sent = (name) => {
    const query = { kind: "upload", value: name };
    if (first) ask([query]);
    else change({ queries: [...current().queries, query] });
    first = false;
  };
  const notSent = (title, error) => {
    if (error.isOutage) outage(error);
    if (pictures.length === 1 || title === null) trouble(title === null ? "Too many pictures" : `${title} was not sent`, error.message, error.reason);
    else failed.push({ title, message: error.message });
  };
  await send(pictures, info?.max_bytes ?? Infinity, sent, notSent);
  drawTray(current(), failed);
}

function listen() {
  for (const id of ["files", "camera"]) find(id).addEventListener("change", (event) => { give([...event.target.files]); event.target.value = ""; });
  let depth = 0;
  const dragging = (is) => document.body.classList.toggle("dragging", is);
  addEventListener("dragenter", (event) => { event.preventDefault(); depth += 1; dragging(true); });
  addEventListener("dragleave", () => { depth = Math.max(depth - 1, 0); dragging(depth > 0); });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => { event.preventDefault(); depth = 0; dragging(false); give(event.dataTransfer.files); });
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) { event.preventDefault(); give(event.clipboardData.files); }
  });
  find("words").addEventListener("submit", (event) => {
    event.preventDefault();
    const value = find("text").value.trim();
    if (value) ask([{ kind: "text", value }]);
  });
  find("home").addEventListener("click", (event) => { event.preventDefault(); change({ ...NOTHING }, { step: true }); });
  find("share").addEventListener("click", copyLink);
  find("theme").addEventListener("click", nextTheme);
  find("save-csv").addEventListener("click", () => saveAs("hits.csv", "text/csv;charset=utf-8", csv));
  find("save-json").addEventListener("click", () => saveAs("hits.json", "application/json", (found) => JSON.stringify(found, null, 2)));
  addEventListener("click", (event) => { if (!find("save").contains(event.target)) find("save").open = false; });
  addEventListener("keydown", (event) => { if (event.key === "Escape" && find("save").open) { find("save").open = false; find("save").querySelector("summary").focus(); } });
  walkByArrows();
}

// Asking and showing.

const acts = {
  more: (hit) => { ask([{ kind: "image", value: hit.image_id }]); scrollTo({ top: 0, behavior: "smooth" }); },
  right: (hit) => mark(hit, "like"),
  wrong: (hit) => mark(hit, "unlike"),
  details: (hit) => showDetails(hit, shown.index_version, acts),
  onlyLabel: (label) => filterLabel("labels", label),
  notLabel: (label) => filterLabel("notLabels", label),
  onlyColumn: filterColumn,
};

function mark(hit, key) {
  const view = current();
  // Words and examples cannot be asked together, so the example takes the words' place.
  const queries = view.queries[view.at]?.kind === "text" ? [] : view.queries;
  change({ queries, at: queries.length ? view.at : 0, [key]: [...view[key], hit.image_id] }, { step: true });
  say(key === "like" ? "Moved towards this image" : "Moved away from this image");
}

async function show(view) {
  const searching = asks(view);
  find("main").dataset.view = searching ? "search" : "start";
  for (const id of ["query", "adjust", "results", "share"]) find(id).hidden = !searching;
  find("drop").querySelector(".drop-text").textContent = searching ? "Drop or paste another picture" : "Drop pictures here, or paste them";
  document.title = searching ? "Hits · Ensemble-CBIR" : "Ensemble-CBIR";
  drawQuery(view);
  drawTray(view, failed);
  drawExamples(view);
  drawControls(view);
  quiet();
  if (!searching || !info) return;
  const results = find("results");
  results.setAttribute("aria-busy", "true");
  if (!shown) find("count").textContent = "Searching";
  try {
    const fresh = !remembered(view);
    const found = await answer(view);
    if (found === null || view !== current()) return;
    find("banner").hidden = true;
    if (fresh && found.index_version !== info.version) await learnIndex();
    draw(found, view);
    if (fresh) measure();
    answerOthers(view, () => view === current(), () => drawTray(view, failed));
  } catch (error) {
    if (view !== current()) return;
    if (error.isOutage) outage(error);
    else refuse(error);
  }
  if (view === current()) results.removeAttribute("aria-busy");
}

function draw(found, view) {
  shown = found;
  const count = found.hits.length;
  find("count").textContent = count === 1 ? "1 hit" : `${count} hits`;
  find("took").textContent = `${(found.seconds * 1000).toFixed(0)} ms`;
  find("took").title = `index ${found.index_version}`;
  find("save").hidden = count === 0;
  drawHits(found, acts, { canBeWrong: view.queries[view.at]?.kind !== "text" });
  drawClasses(found, view);
  drawCrop(found);
  drawTray(view, failed);
  suggestFacets({ labels: found.labels.map((one) => one.label), columns: {} });
  const best = found.labels[0];
  say(`${count} hits${best ? `, most likely ${best.label}` : ""}`);
}

// What went wrong, in words.

function refuse(error) {
  shown = null;
  find("hits").replaceChildren();
  find("legend").replaceChildren();
  find("classes").replaceChildren();
  find("save").hidden = true;
  find("count").textContent = "No answer";
  find("took").textContent = "";
  trouble(error.status === 413 || error.reason.startsWith("IMAGE_") ? "This picture cannot be used" : "This could not be answered", error.message, error.reason);
}

function trouble(title, message, reason) {
  const place = find("trouble");
  if (find("results").hidden) find("ask").append(place);
  else find("hits").before(place);
  place.replaceChildren(h("h3", {}, title), h("p", {}, sentence(message)), reason ? h("code", {}, reason) : "");
  place.hidden = false;
}

function quiet() {
  find("trouble").hidden = true;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?)]$/.test(text) ? "" : ".");

// A server that is gone is asked for until it is back; then the page goes on where it was.

function outage(error) {
  find("banner-text").textContent = `${sentence(error.message)} This page tries again by itself.`;
  find("banner").hidden = false;
  polling ??= setTimeout(poll, POLL);
}

async function poll() {
  polling = null;
  try {
    await learnIndex();
  } catch (error) {
    outage(error);
    return;
  }
  find("banner").hidden = true;
  say("The search server answers again");
  show(current());
}

async function learnIndex() {
  const before = info?.version;
  info = await api.info();
  if (before !== info.version) {
    forget();
    setMembers(info.members.map((member) => member.name));
    buildControls(info);
    drawControls(current());
    api.facets().then(suggestFacets);
  }
  find("facts").textContent = `${info.images.toLocaleString("en")} images · ${info.labels.toLocaleString("en")} labels · ensemble ${info.ensemble}`;
  find("limits").textContent = `Up to ${megabytes(info.max_bytes)} each; kept in memory for ${Math.round(info.kept_minutes)} minutes after the last search.`;
  find("words").hidden = !info.members.some((member) => member.text);
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    tell("Copied");
  } catch {
    tell("Copy the address above");
  }
  function tell(text) {
    const label = find("share").querySelector("span");
    label.textContent = text;
    say(text);
    setTimeout(() => { label.textContent = "Copy link"; }, 2000);
  }
}

const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };

function nextTheme() {
  const names = Object.keys(THEMES);
  const now = document.documentElement.dataset.theme ?? "auto";
  setTheme(names[(names.indexOf(now) + 1) % names.length]);
}

function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  try { localStorage.setItem("theme", name); } catch { /* storage may be forbidden */ }
  tellTheme();
}

function tellTheme() {
  const name = THEMES[document.documentElement.dataset.theme ?? "auto"];
  find("theme-name").textContent = name;
  find("theme").setAttribute("aria-label", `Theme: ${name}`);
}

function saveAs(name, type, form) {
  find("save").open = false;
  if (shown) save(name, type, form(shown));
}

listen();
tellTheme();
onChange(show);
// On wide screens the controls stand open beside the hits.
find("adjust").open = matchMedia("(min-width: 901px)").matches;
learnIndex().then(() => show(current()), (error) => { outage(error); show(current()); });
