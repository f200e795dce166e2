// Pictures are fetched with the key and shown from memory; those far outside the view are let go.

import { isAbort } from "./api.mjs";

const AT_ONCE = 6;
const KEPT_AROUND_PX = 3000;
const FETCHED_AROUND_PX = 300;
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
    this.#near = observer(FETCHED_AROUND_PX, (img, inside) => inside && this.#fetchLazy(img));
    this.#far = observer(KEPT_AROUND_PX, (img, inside) => inside || this.#letGo(img));
  }

  /** Show a picture now. Rejects as the API does, and with AbortError when `signal` says so. */
  async show(img, address, signal) {
    const url = URL.createObjectURL(await this.#api.blob(address, signal));
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
    this.#lazy.set(img, { address, abort: null });
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
    const { signal } = wanted.abort;
    await this.#turn();
    try {
      if (signal.aborted) return;
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
        await new Promise((resolve) => setTimeout(resolve, AGAIN_AFTER_MS));
        if (signal.aborted) throw error;
      }
    }
  }

  async #turn() {
    if (this.#running >= AT_ONCE) await new Promise((resolve) => this.#waiting.push(resolve));
    this.#running += 1;
  }

  #letGo(img) {
    const known = this.#lazy.get(img);
    known?.abort?.abort();
    if (known) known.abort = null;
    img.removeAttribute("src");
  }
}

function observer(aroundPx, tell) {
  return new IntersectionObserver(
    (entries) => entries.forEach((entry) => tell(entry.target, entry.isIntersecting)),
    { rootMargin: `${aroundPx}px` },
  );
}
