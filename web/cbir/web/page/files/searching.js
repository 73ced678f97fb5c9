// Searching: only the newest question is waited for, and answers are remembered for the way back.
import { search } from "./api.js";
import { sendAgain } from "./pictures.js";
import { change, wish, write } from "./view.js";

const MOST_REMEMBERED = 48;
const answers = new Map();
let running = null;

const keyOf = (view, number) => write({ ...view, queries: view.queries.slice(number, number + 1), at: 0 });

/** What is known of a query of the view without asking: an answer, or nothing. */
export const remembered = (view, number = view.at) => answers.get(keyOf(view, number));

export function forget() {
  answers.clear();
}

function remember(key, answer) {
  answers.delete(key);
  answers.set(key, answer);
  if (answers.size > MOST_REMEMBERED) answers.delete(answers.keys().next().value);
}

/** Answer the view; null if another question came meanwhile. */
export async function answer(view) {
  running?.abort();
  const known = remembered(view);
  if (known) return known;
  const mine = (running = new AbortController());
  try {
    const found = await search(wish(view), mine.signal);
    performance.mark("answered");
    remember(keyOf(view, view.at), found);
    return mine === running ? found : null;
  } catch (error) {
    if (mine !== running || error.name === "AbortError") return null;
    if (error.reason === "UPLOAD_GONE" && (await renewed(view))) return null;
    throw error;
  }
}

async function renewed(view) {
  const name = await sendAgain(view.queries[view.at]?.value).catch(() => null);
  if (name === null) return false;
  change({ queries: view.queries.map((query, number) => (number === view.at ? { kind: "upload", value: name } : query)) });
  return true;
}

/** Answer the other queries of the view too, one after the other, so that turning to them takes no time. */
export async function answerOthers(view, isCurrent, onAnswer) {
  for (let number = 0; number < view.queries.length && isCurrent(); number += 1) {
    if (number === view.at || remembered(view, number)) continue;
    try {
      remember(keyOf(view, number), await search(wish(view, number)));
    } catch {
      continue; // told when it is turned to
    }
    if (isCurrent()) onAnswer();
  }
}
