// Asking the server of this page. Every failure becomes one kind of error, with a sentence for people.

/** status: of HTTP, 0 if nothing was answered; reason: stable, for programs; retryAfter: seconds or null. */
export class Failure extends Error {
  constructor(status, reason, message, retryAfter = null) {
    super(message);
    Object.assign(this, { status, reason, retryAfter });
  }

  /** Whether nobody is there to answer, so that waiting may help. */
  get isOutage() {
    return this.status === 0 || (this.status === 503 && this.reason !== "BUSY") || this.status === 504;
  }
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "PAGE_UNREACHABLE", "The server of this page does not answer.");
  }
  let document = null;
  try {
    document = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (response.ok && document) return document;
  const told = document?.error;
  const sentence = told?.message || `The server of this page answered with status ${response.status}.`;
  throw new Failure(response.status, told?.reason ?? "", sentence, told?.retry_after ?? null);
}

function post(path, body, type, signal) {
  return ask(path, { method: "POST", body, signal, headers: { "content-type": type, "x-cbir-web": "1" } });
}

export const info = () => ask("api/info");

/** What filters can name; servers of an earlier age cannot say. */
export const facets = () => ask("api/facets").catch(() => ({ labels: [], columns: {} }));

export const upload = async (blob) => (await post("api/uploads", blob, "application/octet-stream")).upload;

/** Search; an overloaded server is asked again when it says so, a few times. */
export async function search(wish, signal) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await post("api/search", JSON.stringify(wish), "application/json", signal);
    } catch (error) {
      const again = error.retryAfter !== null && error.retryAfter !== undefined && [429, 503].includes(error.status);
      if (!again || tries === 4) throw error;
      await pause(Math.min(error.retryAfter, 5) * 1000, signal);
    }
  }
}

function pause(milliseconds, signal) {
  return new Promise((done, failed) => {
    const timer = setTimeout(done, milliseconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); failed(signal.reason); }, { once: true });
  });
}

// The version stands in the address so that images of another version are asked for anew.
export const thumbnail = (id, version, size = 320) => `api/image?${new URLSearchParams({ id, size, v: version ?? "" })}`;
export const original = (id) => `api/image?${new URLSearchParams({ id })}`;
export const uploaded = (name) => `api/upload?${new URLSearchParams({ id: name })}`;
