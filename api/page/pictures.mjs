// Pictures are fetched with the key and shown from memory; those far outside the view are let go.

import { isAbort, pause } from "./api.mjs";

const AT_ONCE = 6;
const KEPT_AROUND_PX = 3000;
const FETCHED_AROUND_PX = 300;
// A list that is scrolled past asks for nothing.
const SETTLED_MS = 80;
const TRIES = 10;
const AGAIN_AFTER_MS = 1000;

export class Pictures {
  #api;
  #running = 0;
  #waiting = [];
  #lazy = new Map();
  #near;
  #far;

  constructor(api) {
    this.#api = api;
    this.#near = observer(FETCHED_AROUND_PX, (img, inside) => (inside ? this.#fetchLazy(img) : this.#forgo(img)));
    this.#far = observer(KEPT_AROUND_PX, (img, inside) => inside || this.#letGo(img));
  }

  /** Show a picture now. Rejects as the API does, and with AbortError when `signal` says so. */
  async show(img, address, signal) {
    await this.showBytes(img, await this.#api.blob(address, signal), signal);
  }

  /** Show a picture that is here. Rejects with AbortError when `signal` says so. */
  async showBytes(img, blob, signal) {
    const url = URL.createObjectURL(blob);
    try {
      if (signal?.aborted) throw new DOMException("aborted", "AbortError");
      // Not decode(): it may wait for ever for a picture that is out of view.
      await new Promise((resolve, reject) => {
        img.onload = resolve;
        img.onerror = () => reject(new Error("not a picture"));
        signal?.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")));
        img.src = url;
      });
    } finally {
      URL.revokeObjectURL(url); // the element keeps what it has decoded
    }
  }

  /** Show a picture while it is near the view. */
  lazily(img, address) {
    this.#lazy.set(img, { address, abort: null, begun: false });
    this.#near.observe(img);
    this.#far.observe(img);
  }

  /** Let go of all pictures below an element that goes away. */
  forget(root) {
    for (const img of root.querySelectorAll("img")) {
      if (!this.#lazy.has(img)) continue;
      this.#letGo(img);
      this.#near.unobserve(img);
      this.#far.unobserve(img);
      this.#lazy.delete(img);
    }
  }

  async #fetchLazy(img) {
    const wanted = this.#lazy.get(img);
    if (!wanted || wanted.abort || img.hasAttribute("src")) return;
    wanted.abort = new AbortController();
    wanted.begun = false;
    const { signal } = wanted.abort;
    try {
      await pause(SETTLED_MS, signal);
    } catch {
      return; // it is out of view again
    }
    await this.#turn();
    try {
      if (signal.aborted) return;
      wanted.begun = true;
      img.classList.remove("missing");
      await this.#showPatiently(img, wanted.address, signal);
    } catch (error) {
      if (!isAbort(error) && !signal.aborted) img.classList.add("missing");
    } finally {
      if (wanted.abort?.signal === signal) wanted.abort = null;
      this.#running -= 1;
      this.#waiting.shift()?.();
    }
  }

  /** A busy server says so (429, 503): the picture is asked for again. */
  async #showPatiently(img, address, signal) {
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.show(img, address, signal);
      } catch (error) {
        const busy = error.status === 429 || error.status === 503;
        if (!busy || tries === TRIES || signal.aborted) throw error;
        await pause(AGAIN_AFTER_MS, signal);
      }
    }
  }

  async #turn() {
    if (this.#running >= AT_ONCE) await new Promise((resolve) => this.#waiting.push(resolve));
    this.#running += 1;
  }

  /** It left the view: what was not asked for yet is not. */
  #forgo(img) {
    const known = this.#lazy.get(img);
    if (!known?.abort || known.begun) return;
    known.abort.abort();
    known.abort = null;
  }

  #letGo(img) {
    const known = this.#lazy.get(img);
    known?.abort?.abort();
    if (known) known.abort = null;
    img.removeAttribute("src");
  }
}

function observer(aroundPx, tell) {
  const lastOnly = (entries) => {
    // On a busy machine one call tells of several moments. What was no longer is must not count:
    // an observer that let go of a picture on it would undo what the other has shown.
    const last = new Map(entries.map((entry) => [entry.target, entry.isIntersecting]));
    for (const [img, inside] of last) tell(img, inside);
  };
  return new IntersectionObserver(lastOnly, { rootMargin: `${aroundPx}px` });
}
