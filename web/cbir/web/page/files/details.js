// All that is known of one hit.
import { original, thumbnail } from "./api.js";
import { find, h, icon, styled } from "./dom.js";
import { coloured } from "./members.js";

/** acts: more(hit), onlyLabel(label), notLabel(label), onlyColumn(column, value). */
export function showDetails(hit, version, acts) {
  const dialog = find("details");
  const close = () => dialog.close();
  const then = (act, ...given) => () => { close(); act(...given); };
  const top = Math.max(...hit.votes.map((vote) => Math.abs(vote.contribution)), Math.abs(hit.label_contribution), 1e-9);
  const meter = (name, value) => h("div", { class: "meter" }, styled(coloured(h("i"), name), { width: `${(100 * Math.max(value, 0)) / top}%` }));
  const row = (name, rank, similarity, value) => h("tr", {},
    h("td", { class: "name" }, coloured(h("span", { class: "dot" }), name), name),
    h("td", {}, rank), h("td", {}, similarity), h("td", {}, value.toFixed(3)), h("td", {}, meter(name, value)));
  const votes = hit.votes.map((vote) => row(vote.member, vote.rank || "", vote.similarity.toFixed(3), vote.contribution));
  if (hit.label_contribution) votes.push(row("label vote", "", "", hit.label_contribution));
  const columns = Object.entries(hit.metadata).map(([name, value]) => h("tr", {},
    h("th", { scope: "row" }, name), h("td", {}, value),
    h("td", {}, h("button", { type: "button", class: "button small", "aria-label": `Only ${name} ${value}`, click: then(acts.onlyColumn, name, value) }, "Only these"))));
  dialog.replaceChildren(h("div", { class: "inside" },
    h("div", { class: "shown" }, h("img", { src: thumbnail(hit.image_id, version, 960), alt: `Image ${hit.image_id}` })),
    h("div", { class: "told" },
      h("div", {},
        h("h2", { id: "details-title", tabindex: "-1" }, hit.label ?? "No label"),
        h("p", { class: "hint" }, hit.image_id),
        h("p", { class: "hint" }, `Score ${hit.score.toFixed(3)}, before calibration ${hit.fused_score.toFixed(3)}`)),
      h("div", { class: "row" },
        h("button", { type: "button", class: "button primary small", click: then(acts.more, hit) }, "More like this"),
        h("a", { class: "button small", href: original(hit.image_id), download: "" }, icon("download"), "Image"),
        hit.label === null ? null : h("button", { type: "button", class: "button small", click: then(acts.onlyLabel, hit.label) }, `Only ${hit.label}`),
        hit.label === null ? null : h("button", { type: "button", class: "button small", click: then(acts.notLabel, hit.label) }, `No ${hit.label}`)),
      h("table", {},
        h("thead", {}, h("tr", {}, ["Member", "Rank", "Cosine", "Adds"].map((name) => h("th", { scope: "col" }, name)), h("td"))),
        h("tbody", {}, votes)),
      columns.length ? h("table", {}, h("tbody", {}, columns)) : null,
      h("div", { class: "row" }, h("button", { type: "button", class: "button small", click: close }, "Close")))));
  dialog.onclick = (event) => { if (event.target === dialog) close(); };
  dialog.showModal();
}
