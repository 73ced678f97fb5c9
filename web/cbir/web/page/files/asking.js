// The card that shows what is asked with: the picture and what was cut from it, examples, likely classes.
import { thumbnail } from "./api.js";
import { find, h, styled } from "./dom.js";
import { addressOf, titleOf } from "./pictures.js";
import { remembered } from "./searching.js";
import { change } from "./view.js";

const NO_PREVIEW = "This browser cannot show this kind of picture; the search can read it.";

export function drawTray(view, failed) {
  const items = view.queries.length > 1 || failed.length ? view.queries : [];
  const tray = find("tray");
  const drawn = JSON.stringify([items, failed.map(({ title, message }) => [title, message])]);
  // Drawn anew only for other pictures: a button that is replaced while it is pressed would lose the click.
  if (tray.dataset.drawn !== drawn) {
    tray.dataset.drawn = drawn;
    tray.replaceChildren(
      ...items.map((query, number) =>
        h("li", {}, h("button", { type: "button", click: () => change({ at: number }) }, query.kind === "text" ? query.value : pictureOf(query)))),
      ...failed.map(({ title, message }) =>
        h("li", {}, h("button", { type: "button", class: "failed", title: `${title}: ${message}`, "aria-label": `${title}: ${message}`, disabled: true }, "not sent"))));
  }
  items.forEach((query, number) => {
    const button = tray.children[number].firstElementChild;
    const best = remembered(view, number)?.labels[0]?.label;
    const name = `${nameOf(query)}${best ? `, likely ${best}` : ""}`;
    button.title = name;
    button.setAttribute("aria-label", name);
    if (number === view.at) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  });
}

const nameOf = (query) => (query.kind === "upload" ? titleOf(query.value) : query.value);

function pictureOf(query) {
  return h("img", { src: query.kind === "upload" ? addressOf(query.value) : thumbnail(query.value), alt: "" });
}

export function drawQuery(view) {
  const query = view.queries[view.at];
  const preview = find("preview");
  preview.hidden = !query;
  find("crop-note").textContent = "";
  if (!query) return preview.replaceChildren();
  const shown = `${query.kind}:${query.value}`;
  // Drawn anew only for another query, so that it does not flicker while a slider moves.
  if (preview.dataset.shown === shown) return preview.querySelector(".crop")?.remove();
  preview.dataset.shown = shown;
  if (query.kind === "text") return preview.replaceChildren(h("p", { class: "said" }, `“${query.value}”`));
  const address = query.kind === "upload" ? addressOf(query.value) : thumbnail(query.value, "", 960);
  const picture = h("img", { src: address, alt: `The query: ${nameOf(query)}` });
  picture.addEventListener("error", () => picture.replaceWith(h("p", { class: "plain" }, `${nameOf(query)}: ${NO_PREVIEW}`)));
  preview.replaceChildren(picture);
}

/** Show which part of the picture was looked at. */
export async function drawCrop(answer) {
  const preview = find("preview");
  const picture = preview.querySelector("img");
  preview.querySelector(".crop")?.remove();
  if (!answer.crop || !picture) return;
  await picture.decode().catch(() => {});
  const [width, height] = [picture.naturalWidth, picture.naturalHeight];
  const { left, top, right, bottom } = answer.crop;
  if (!width || !picture.isConnected || right > width + 1 || bottom > height + 1) return;
  if (right - left >= width && bottom - top >= height) {
    find("crop-note").textContent = "The whole picture was looked at.";
    return;
  }
  const share = (part, whole) => `${(100 * part) / whole}%`;
  preview.querySelector(".crop")?.remove();
  preview.append(styled(h("div", { class: "crop" }), {
    left: share(left, width), top: share(top, height), width: share(right - left, width), height: share(bottom - top, height),
  }));
  find("crop-note").textContent = `Looked at ${right - left} × ${bottom - top} of ${width} × ${height} pixels.`;
}

export function drawExamples(view) {
  const part = (ids, key, title, style) => ids.length && h("div", { class: style },
    h("h3", {}, title),
    h("ul", {}, ids.map((id) => {
      const name = `Take ${id} away`;
      const drop = () => change({ [key]: ids.filter((one) => one !== id) });
      return h("li", {}, h("button", { type: "button", title: name, "aria-label": name, click: drop }, h("img", { src: thumbnail(id), alt: "" })));
    })));
  const parts = [part(view.like, "like", "More like these", "like"), part(view.unlike, "unlike", "Less like these", "unlike")].filter(Boolean);
  find("examples").replaceChildren(...(parts.length ? [h("div", { class: "examples" }, parts)] : []));
}

export function drawClasses(answer, view) {
  const likely = (answer?.labels ?? []).slice(0, 5);
  const rows = likely.map(({ label, probability }) => {
    const only = view.labels.length === 1 && view.labels[0] === label;
    const turn = () => change({ labels: only ? [] : [label], notLabels: view.notLabels.filter((one) => one !== label) }, { step: true });
    return h("button", { type: "button", "aria-pressed": String(only), title: only ? "Show all labels" : `Show only ${label}`, click: turn },
      styled(h("span", { class: "share" }), { width: `${100 * probability}%` }),
      h("span", {}, label), h("span", { class: "figure" }, `${Math.round(100 * probability)} %`));
  });
  find("classes").replaceChildren(...(rows.length ? [h("h3", {}, "Probably"), h("div", { class: "classes" }, rows)] : []));
}
