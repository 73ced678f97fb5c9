// The grid of hits.
import { thumbnail } from "./api.js";
import { find, h, icon } from "./dom.js";
import { bar, drawLegend, shares } from "./members.js";

/** Draw an answer. acts: more(hit), right(hit), wrong(hit), details(hit); canBeWrong: whether hits can be marked so. */
export function drawHits(answer, acts, { canBeWrong }) {
  const list = find("hits");
  const focused = list.contains(document.activeElement) ? [...list.querySelectorAll(".picture")].indexOf(document.activeElement) : -1;
  const most = Math.max(...answer.hits.map((hit) => shares(hit).reduce((sum, [, value]) => sum + Math.max(value, 0), 0)), 1e-9);
  list.replaceChildren(...answer.hits.map((hit) => card(hit, most, answer.index_version, acts, canBeWrong)));
  if (!answer.hits.length) list.append(h("li", { class: "empty" }, "Nothing is left. Lower the minimum score or take a filter away."));
  drawLegend(answer.hits);
  // A grid that is drawn anew must not lose the place of those who walk it by keys.
  if (focused >= 0) list.querySelectorAll(".picture")[Math.min(focused, answer.hits.length - 1)]?.focus();
}

function card(hit, most, version, acts, canBeWrong) {
  const label = hit.label ?? "no label";
  const name = `${hit.label ?? hit.image_id}, score ${hit.score.toFixed(2)}${hit.near_duplicate ? ", a near duplicate" : ""}`;
  const mark = (kind, picture, title, act) =>
    h("button", { type: "button", class: kind, title, "aria-label": `${title}: ${name}`, click: () => act(hit) }, icon(picture));
  return h("li", { class: "hit", "data-id": hit.image_id },
    h("button", { type: "button", class: "picture", "aria-label": `More like this: ${name}`, click: () => acts.more(hit) },
      h("img", { src: thumbnail(hit.image_id, version), alt: "", decoding: "async" }),
      h("span", { class: "cue", "aria-hidden": "true" }, "More like this"),
      hit.near_duplicate ? h("span", { class: "badge" }, "Near duplicate") : null),
    h("div", { class: "caption" },
      h("span", { class: hit.label === null ? "label none" : "label", title: hit.image_id }, label),
      h("span", { class: "score", title: "score, 0 to 1" }, hit.score.toFixed(2))),
    bar(hit, most),
    h("div", { class: "marks" },
      mark("yes", "right", "Right, more of these", acts.right),
      canBeWrong ? mark("no", "wrong", "Wrong, fewer of these", acts.wrong) : null,
      mark("more", "details", "Details", acts.details)));
}

/** Arrows walk the grid. */
export function walkByArrows() {
  find("hits").addEventListener("keydown", (event) => {
    const pictures = [...find("hits").querySelectorAll(".picture")];
    const here = pictures.indexOf(document.activeElement);
    if (here < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const top = pictures[0].getBoundingClientRect().top;
    const columns = pictures.filter((one) => Math.abs(one.getBoundingClientRect().top - top) < 2).length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -here, End: pictures.length - 1 - here }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    pictures[here + step]?.focus();
  });
}

/** Mark when the hits, and then their pictures on the screen, can be seen; for whoever measures the page. */
export function measure() {
  const drawn = () => performance.measure("hits-shown", "answered");
  requestAnimationFrame(() => setTimeout(drawn));
  const onScreen = [...document.querySelectorAll(".picture img")].filter((image) => image.getBoundingClientRect().top < innerHeight);
  Promise.allSettled(onScreen.map((image) => image.decode())).then(() => performance.measure("pictures-shown", "answered"));
}
