// Pictures that were given here: sent to the server once, kept by the browser while the page is open.
import { Failure, upload, uploaded } from "./api.js";

const MOST_AT_ONCE = 24;
const given = new Map(); // name at the server -> { blob, url, title }

export const addressOf = (name) => given.get(name)?.url ?? uploaded(name);
export const titleOf = (name) => given.get(name)?.title ?? "your picture";

/** Send pictures, one after the other; told of each that arrived and of each that did not. */
export async function send(files, mostBytes, onSent, onFailed) {
  if (files.length > MOST_AT_ONCE) {
    onFailed(null, new Failure(413, "TOO_MANY", `These are ${files.length} pictures: at most ${MOST_AT_ONCE} at once.`));
    return;
  }
  for (const file of files) {
    const title = file.name || "pasted picture";
    try {
      if (file.size === 0) throw new Failure(400, "EMPTY_IMAGE", "The file is empty.");
      if (file.size > mostBytes) throw new Failure(413, "TOO_LARGE", `It has ${megabytes(file.size)}; at most ${megabytes(mostBytes)} are taken.`);
      const name = await upload(file);
      given.set(name, { blob: file, url: URL.createObjectURL(file), title });
      onSent(name);
    } catch (error) {
      onFailed(title, error);
    }
  }
}

/** Send a picture again that the server has forgotten; its new name, or null if it is not here either. */
export async function sendAgain(name) {
  const known = given.get(name);
  if (!known) return null;
  const again = await upload(known.blob);
  given.set(again, known);
  given.delete(name);
  return again;
}

export const megabytes = (bytes) => `${(bytes / 2 ** 20).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;
