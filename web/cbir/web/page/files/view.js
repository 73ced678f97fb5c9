// What is looked at: one frozen value, which the address of the page holds after its "#", so that a link reproduces it.
// What follows "#" stays in the browser: neither this page's server nor another site is told of it.

export const NOTHING = Object.freeze({
  queries: [], // { kind: "upload" | "image" | "text", value }
  at: 0, // which of them
  like: [], unlike: [], // ids of examples
  limit: null, minScore: null, weights: null, // null: as the index says
  labels: [], notLabels: [], columns: [], // columns: [name, value]
  withoutQuery: false, crop: null,
});

const KINDS = { u: "upload", i: "image", t: "text" };
const CROPS = ["none", "border", "content"];

export function read(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const number = (name, most) => {
    const value = given.has(name) ? Number(given.get(name)) : NaN;
    return Number.isFinite(value) && value >= 0 && value <= most ? value : null;
  };
  const queries = given.getAll("q").map((q) => ({ kind: KINDS[q[0]], value: q.slice(2) })).filter((q) => q.kind && q.value);
  const weights = given.getAll("w").map(pair).map(([name, value]) => [name, Number(value)]);
  const crop = given.get("crop");
  return {
    ...NOTHING,
    queries,
    at: Math.min(Math.round(number("at", 1000) ?? 0), Math.max(queries.length - 1, 0)),
    like: given.getAll("like"), unlike: given.getAll("unlike"),
    limit: Math.round(number("limit", 1e6) ?? 0) || null, minScore: number("min", 1),
    weights: weights.length && weights.every(([, value]) => value >= 0) ? Object.fromEntries(weights) : null,
    labels: given.getAll("label"), notLabels: given.getAll("not"), columns: given.getAll("is").map(pair),
    withoutQuery: given.has("others"), crop: CROPS.includes(crop) ? crop : null,
  };
}

export function write(view) {
  const told = new URLSearchParams();
  for (const { kind, value } of view.queries) told.append("q", `${kind[0]}:${value}`);
  if (view.at) told.set("at", view.at);
  for (const id of view.like) told.append("like", id);
  for (const id of view.unlike) told.append("unlike", id);
  if (view.limit !== null) told.set("limit", view.limit);
  if (view.minScore !== null) told.set("min", view.minScore);
  for (const [name, value] of Object.entries(view.weights ?? {})) told.append("w", join(name, value));
  for (const label of view.labels) told.append("label", label);
  for (const label of view.notLabels) told.append("not", label);
  for (const [column, value] of view.columns) told.append("is", join(column, value));
  if (view.withoutQuery) told.set("others", "1");
  if (view.crop) told.set("crop", view.crop);
  return `#${told}`;
}

// A name may hold any sign, so both halves are escaped once more before they are joined.
const join = (name, value) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`;
function pair(text) {
  const halves = text.split("=");
  try {
    return [decodeURIComponent(halves[0]), decodeURIComponent(halves[1] ?? "")];
  } catch {
    return [text, ""];
  }
}

export const asks = (view) => view.queries.length > 0 || view.like.length > 0;

/** The search that a view asks of the server. */
export function wish(view, number = view.at) {
  const query = view.queries[number];
  const columns = {};
  for (const [column, value] of view.columns) (columns[column] ??= []).push(value);
  const examples = query?.kind === "text" ? {} : { positive_ids: view.like, negative_ids: view.unlike };
  return {
    query: query ? { [{ upload: "upload", image: "image_id", text: "text" }[query.kind]]: query.value } : null,
    options: {
      limit: view.limit, min_score: view.minScore, weights: view.weights, labels: view.labels,
      exclude_labels: view.notLabels, metadata: columns, exclude_query: view.withoutQuery, mark_near_duplicates: true, crop: view.crop, ...examples,
    },
  };
}

// The one view, and who is told when it changes.
let view = read(location.hash);
const listeners = [];

export const current = () => view;
export const onChange = (listener) => listeners.push(listener);

/** Change parts of the view; a step of its own in the browser's history unless it is an adjustment. */
export function change(parts, { step = false } = {}) {
  view = Object.freeze({ ...view, ...parts });
  const address = write(view);
  if (address !== location.hash) history[step ? "pushState" : "replaceState"](null, "", address);
  for (const listener of listeners) listener(view);
}

window.addEventListener("popstate", () => {
  view = Object.freeze(read(location.hash));
  for (const listener of listeners) listener(view);
});
