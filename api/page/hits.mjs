// The hits as cards, page by page as the list is scrolled.

import { address, isAbort, wordsOf } from "./api.mjs";
import { button, el, say } from "./dom.mjs";
import { hitOverlay } from "./overlay.mjs";
import { chanceWords, count, number, percent, spanWords, timeWords, utcWords } from "./words.mjs";

const PAGE = 50;
const AHEAD_PX = 800;

export class HitList {
  #desk;
  #query;
  #open;
  #hits = [];
  #cursor = null;
  #ended = false;
  #loading = null;
  #list = el("ol", { class: "hits", "aria-label": "Hits by rank" });
  #more = button("Show more hits", () => this.#append());
  #foot = el("div", { class: "foot" });
  #shown = el("div", {});
  #seen;

  /** `desk`: {api, pictures, marks, evidence}. `open(rank)` shows a hit large. */
  constructor(desk, query, open) {
    this.#desk = desk;
    this.#query = query;
    this.#open = open;
    this.#seen = new IntersectionObserver(
      (entries) => entries.some((entry) => entry.isIntersecting) && this.#append(),
      { rootMargin: `${AHEAD_PX}px` },
    );
  }

  /** The hits that were loaded so far, by rank. */
  get hits() {
    return this.#hits;
  }

  /** The list, with its first page. Rejects as the API does. */
  async start(signal) {
    await this.#load(signal);
    this.#seen.observe(this.#foot);
    this.#shown.replaceChildren(this.#list, this.#foot);
  }

  /** Take over what the same hits have become; false where they are others by now. */
  async renew(query, signal) {
    if (this.#query.answer === "early") return false; // chance and scores are others with all footage
    await this.#loading?.catch(() => {});
    const loaded = this.#hits.length;
    const where = address(`/v1/queries/${query.query_id}/hits`, { limit: Math.max(1, loaded) });
    const { items, next_cursor: next } = await this.#desk.api.json(where, { signal });
    if (this.#hits.length !== loaded) return false;
    const same = items.length === loaded && items.every((hit, at) => hit.frame_id === this.#hits[at].frame_id);
    if (!same) return false;
    this.#query = query;
    this.#hits = items;
    this.#cursor = next;
    this.#ended = !next || loaded >= query.hits;
    for (const [at, card] of [...this.#list.children].entries()) {
      const frame = card.querySelector(".card-frame");
      frame.replaceChildren(frame.firstElementChild, hitOverlay(items[at]));
    }
    this.#showFoot();
    return true;
  }

  /** All of it. */
  get shown() {
    return this.#shown;
  }

  stop() {
    this.#seen.disconnect();
    this.#desk.pictures.forget(this.#list);
  }

  /** A hit by rank; null where there is none. */
  async hit(rank) {
    const known = this.#hits.find((one) => one.rank === rank);
    if (known) return known;
    if (rank > this.#query.hits) return null;
    const where = address(`/v1/queries/${this.#query.query_id}/hits`, { limit: rank });
    const { items } = await this.#desk.api.json(where);
    return items.find((one) => one.rank === rank) ?? null;
  }

  async #append() {
    if (this.#ended || this.#loading) return;
    this.#loading = this.#load();
    try {
      await this.#loading;
    } catch (error) {
      if (!isAbort(error)) this.#showFoot(wordsOf(error));
    } finally {
      this.#loading = null;
    }
    // The end of the list may still be in view; the observer only tells of changes.
    this.#seen.unobserve(this.#foot);
    if (!this.#ended) this.#seen.observe(this.#foot);
  }

  async #load(signal) {
    const asked = { limit: PAGE, cursor: this.#cursor };
    const where = address(`/v1/queries/${this.#query.query_id}/hits`, asked);
    const { items, next_cursor: next } = await this.#desk.api.json(where, { signal });
    this.#hits.push(...items);
    this.#cursor = next;
    this.#ended = !next || !items.length || this.#hits.length >= this.#query.hits;
    this.#list.append(...items.map((hit) => this.#card(hit)));
    if (this.#hits.length > PAGE) say(`${this.#hits.length} hits are shown.`, 500);
    this.#showFoot();
  }

  #showFoot(trouble = null) {
    const shown = `${this.#hits.length} of ${count(this.#query.hits, "hit")}`;
    this.#foot.replaceChildren(
      el("p", { class: "fine" }, trouble ? `${shown}. ${trouble}` : shown),
      this.#ended ? "" : this.#more,
    );
  }

  #card(hit) {
    const img = el("img", { alt: "" });
    const frame = el("span", { class: "card-frame" }, img, hitOverlay(hit));
    frame.style.setProperty("--ratio", String(hit.w_px / hit.h_px));
    const title = `Hit ${hit.rank}: ${hit.camera_name}, ${timeWords(hit.t_utc)}`;
    const { tone, words, meaning } = chanceWords(hit);
    const shown = el(
      "button",
      { type: "button", class: "shown", "aria-label": `${title}. ${words}. Open large`, onclick: () => this.#open(hit.rank) },
      frame,
      el("span", { class: "rank", "aria-hidden": "true" }, String(hit.rank)),
    );
    this.#desk.pictures.lazily(img, `${hit.thumbnail}?max_side_px=480`);
    return el(
      "li",
      { class: "card", "data-rank": hit.rank },
      shown,
      el(
        "div",
        { class: "card-words" },
        el("strong", { class: "card-title" }, hit.camera_name),
        el("time", { datetime: hit.t_utc, title: utcWords(hit.t_utc) }, timeWords(hit.t_utc)),
        el("p", { class: `chance ${tone}`, title: meaning }, words),
        el("p", { class: "fine" }, scoreWords(hit)),
        this.#desk.marks.buttons(hit),
        this.#desk.evidence.box(hit),
      ),
    );
  }
}

/** The numbers of a hit in one line. */
export function scoreWords(hit) {
  const parts = [`score ${number(hit.score)}`, `${percent(hit.coverage)} of the region matched`];
  if (hit.appearance.frames > 1) {
    const span = Date.parse(hit.appearance.to_utc) - Date.parse(hit.appearance.from_utc);
    parts.push(`${hit.appearance.frames} frames in ${spanWords(span)}`);
  }
  return parts.join(" · ");
}
