// The HTTP API, asked with the key; what it refuses, and what does not answer, as errors.

const TRIES = 5;

/** The API said no: `code` for programs, `message` for people. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `status ${status}`);
    this.status = status;
    this.code = problem.code || "internal";
  }
}

/** Nothing answered. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

/** A path with the parameters that have a value. */
export function address(path, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined);
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

/** A name for a request that may be sent again. */
export function freshName() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Api {
  #key;
  #whenUnknown;

  /** `whenUnknown` is called once a key that worked is refused as unknown, expired or revoked. */
  constructor(key, whenUnknown = () => {}) {
    this.#key = key;
    this.#whenUnknown = whenUnknown;
  }

  /** A JSON answer; null where there is none. */
  async json(path, options = {}) {
    const answer = await this.#ask(path, options);
    return answer.status === 204 ? null : await read(() => answer.json());
  }

  /** A picture's bytes. */
  async blob(path, signal) {
    const answer = await this.#ask(path, { signal });
    return await read(() => answer.blob());
  }

  /** Send JSON. The same `name` again makes nothing new. */
  async post(path, body, name) {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": name };
    return await this.json(path, { method: "POST", body: JSON.stringify(body), headers });
  }

  /** Send what was drawn on a frame, or on the picture beside it. */
  async postDrawn(path, body, picture, name) {
    if (!picture) return await this.post(path, body, name);
    const form = new FormData();
    form.append("query", JSON.stringify(body));
    form.append("picture", picture, "picture");
    return await this.json(path, { method: "POST", body: form, headers: { "Idempotency-Key": name } });
  }

  /** Every row of a list. */
  async all(path, parameters = {}) {
    const rows = [];
    let cursor = null;
    do {
      const page = await this.json(address(path, { ...parameters, limit: 1000, cursor }));
      rows.push(...page.items);
      cursor = page.next_cursor;
    } while (cursor);
    return rows;
  }

  /** Server-sent events, as they come; the browser's own reader cannot send a key. */
  async *events(path, signal) {
    const answer = await this.#ask(path, { signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await read(() => reader.read());
      if (done) return;
      text += value;
      const parts = text.split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        const line = part.split("\n").find((one) => one.startsWith("data: "));
        if (line) yield JSON.parse(line.slice(6));
      }
    }
  }

  async #ask(path, { method = "GET", headers = {}, body, signal } = {}) {
    for (let tried = 1; ; tried += 1) {
      const answer = await read(() =>
        fetch(path, {
          method,
          body,
          signal,
          headers: { ...headers, Authorization: `Bearer ${this.#key}` },
          credentials: "omit",
        }),
      );
      if (answer.ok) return answer;
      const problem = await answer.json().catch(() => ({}));
      // Too much at once, or Postgres is away for a moment.
      const passes = problem.code === "too_many_requests" || (answer.status === 503 && problem.code);
      if (passes && method === "GET" && tried < TRIES) {
        await pause(1000 * Number(answer.headers.get("Retry-After") || 1), signal);
        continue;
      }
      if (answer.status === 401) this.#whenUnknown();
      // What a proxy says without a problem document while RIS is away.
      if (answer.status >= 502 && !problem.code) throw new Unreachable();
      throw new Refused(answer.status, problem);
    }
  }
}

async function read(step) {
  try {
    return await step();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable();
  }
}

/** Wait; ends early, with AbortError, when `signal` says so. */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    });
  });
}

/** The words of an error; one that nobody foresaw is a fault of the page and goes to the console. */
export function wordsOf(error) {
  if (!(error instanceof Refused || error instanceof Unreachable)) console.error(error);
  return error.message;
}

/** Whether an error only says that somebody no longer wanted the answer. */
export function isAbort(error) {
  return error?.name === "AbortError";
}
