// The members' colours, the same as on the command line's sheets.
import { find, h, styled } from "./dom.js";

const COLOURS = ["#4c6fe7", "#22b8cf", "#f5b13d", "#a65fd8", "#f08cae", "#8a6f5c", "#7c93b2", "#b9c04a"];
const LABEL_VOTE = "label vote";
const LABEL_COLOUR = "#5c6573";

let members = [];

export function setMembers(names) {
  members = names;
}

const colour = (name) => (name === LABEL_VOTE ? LABEL_COLOUR : COLOURS[Math.max(members.indexOf(name), 0) % COLOURS.length]);

export const coloured = (element, name) => styled(element, { "--member": colour(name) });

/** Who added how much to a hit's score, the vote of the labels last. */
export function shares(hit) {
  const found = hit.votes.map((vote) => [vote.member, vote.contribution]);
  if (hit.label_contribution) found.push([LABEL_VOTE, hit.label_contribution]);
  return found;
}

/** One bar in as many parts; its whole length is the most that any hit has. */
export function bar(hit, most) {
  const told = shares(hit).map(([name, value]) => `${name} ${value.toFixed(2)}`).join(", ");
  const parts = shares(hit).filter(([, value]) => value > 0).map(([name, value]) =>
    styled(coloured(h("i"), name), { width: `${(100 * value) / most}%` }));
  return h("div", { class: "votes", role: "img", "aria-label": `Votes: ${told}`, title: told }, parts);
}

export function drawLegend(hits) {
  const names = new Set(hits.flatMap((hit) => shares(hit).map(([name]) => name)));
  find("legend").replaceChildren(...[...names].map((name) => h("li", {}, coloured(h("span", { class: "dot" }), name), name)));
}
