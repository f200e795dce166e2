// The answer to one search, from "waiting" to its hits.

import { isAbort, pause, Unreachable, wordsOf } from "./api.mjs";
import { howToRead, noHits, soFarWords, sumWords, waiting } from "./answer_parts.mjs";
import { appearancesView } from "./appearances.mjs";
import { button, el, notice, say } from "./dom.mjs";
import { HitList } from "./hits.mjs";
import { canWatch, watchRow } from "./watching.mjs";
import { convinces, count } from "./words.mjs";

const AGAIN_MS = 2000;

export class Answer {
  #root;
  #desk;
  #actions;
  #following = null;
  #query = null;
  #list = null;
  #marked = null; // the search that marks were taken up for
  #view = "hits";

  /**
   * `desk`: {api, pictures, marks, bar, evidence}. `actions`: known(query) once, open(rank),
   * and those of `watchRow`.
   */
  constructor(root, desk, actions) {
    this.#root = root;
    this.#desk = desk;
    this.#actions = actions;
  }

  get query() {
    return this.#query;
  }

  /** A hit by rank, null where there is none; waits for the answer. */
  async hit(rank) {
    if (!this.#list) await this.#ready;
    return (await this.#list?.hit(rank)) ?? null;
  }

  /** No search is shown. */
  clear() {
    this.#stop();
    this.#root.replaceChildren(
      notice("", "Nothing searched yet", [
        "1. Choose a camera and a time on which you see what you look for, or drop a picture of your own on this page.",
        "2. Draw a box around it, tightly.",
        "3. Search. Other pictures that look alike in that region appear here, with the region that matched.",
        "RIS shows candidates by appearance. It does not recognise faces or number plates; you decide, from the footage.",
      ]),
    );
  }

  /** While the search is being sent. */
  sending() {
    this.#stop();
    this.#root.replaceChildren(waiting("Sending the search …"));
  }

  /** The search was not accepted. */
  refused(error, again) {
    this.#stop();
    const title = error instanceof Unreachable ? wordsOf(error) : "The search was not accepted";
    const lines = error instanceof Unreachable ? ["Nothing was lost; try again."] : [wordsOf(error)];
    this.#root.replaceChildren(notice("bad", title, lines, [button("Try again", again)]));
    say(`${title}. ${lines.join(" ")}`);
  }

  /** Follow a search to its end and show it. */
  async follow(queryId) {
    this.#stop();
    const following = new AbortController();
    this.#following = following;
    this.#root.replaceChildren(waiting("Asking for the search …"));
    this.#ready = this.#followTo(queryId, following.signal).catch((error) => {
      if (isAbort(error) || following.signal.aborted) return;
      const again = button("Try again", () => this.follow(queryId));
      const title = error.code === "not_found" ? "This search is not known" : "The answer cannot be shown";
      const lines = error.code === "not_found" ? ["It was erased with its footage, or belongs to another key."] : [wordsOf(error)];
      this.#root.replaceChildren(notice("bad", title, lines, [again]));
      say(`${title}. ${lines.join(" ")}`);
    });
    await this.#ready;
  }

  #ready = Promise.resolve();

  #stop() {
    this.#following?.abort();
    this.#list?.stop();
    this.#list = null;
    this.#query = null;
  }

  async #followTo(queryId, signal) {
    const where = `/v1/queries/${queryId}`;
    const begun = Date.now();
    for (let first = true; ; first = false) {
      try {
        this.#query = await this.#desk.api.json(where, { signal });
        if (first) await this.#actions.known(this.#query);
        if (["done", "failed"].includes(this.#query.state)) break;
        await this.#showSoFar(begun, signal);
        for await (const event of this.#desk.api.events(`${where}/events`, signal)) {
          const { state, answer } = event;
          if (state === this.#query.state && answer === this.#query.answer) continue;
          if (["done", "failed"].includes(state)) break;
          this.#query = answer === this.#query.answer
            ? { ...this.#query, state, waiting: state === "running" ? null : this.#query.waiting }
            : await this.#desk.api.json(where, { signal });
          if (["done", "failed"].includes(this.#query.state)) break;
          await this.#showSoFar(begun, signal);
        }
      } catch (error) {
        if (!(error instanceof Unreachable)) throw error;
        this.#root.replaceChildren(
          waiting("The server does not answer.", "Asking again every two seconds. The search itself goes on there."),
        );
        await pause(AGAIN_MS, signal);
      }
    }
    if (this.#query.state === "failed") this.#showFailed();
    else await this.#showDone(signal);
  }

  /** What there is while the search goes on. */
  async #showSoFar(begun, signal) {
    if (this.#query.hits) await this.#showHits(signal);
    else this.#showOpen(begun, signal);
  }

  #showOpen(begun, signal) {
    const { state, waiting: why } = this.#query;
    const title = state === "running" ? "Searching …" : "Waiting for a free worker …";
    const clock = el("span", { class: "clock" });
    const tick = () => {
      clock.textContent = Date.now() - begun >= 1000 ? `${Math.round((Date.now() - begun) / 1000)} s` : "";
    };
    tick();
    const timer = setInterval(() => (clock.isConnected && !signal.aborted ? tick() : clearInterval(timer)), 1000);
    const cancel = button("Cancel the search", () => this.#cancel());
    const words = why ? `It is tried again: ${why.detail || why.code}` : "";
    this.#root.replaceChildren(waiting(title, words, clock, cancel));
    say(title);
    setTimeout(() => {
      const late = state === "queued" && clock.isConnected;
      if (late) clock.after(el("p", {}, "Other searches come first, or the workers are not running."));
    }, 10_000);
  }

  async #cancel() {
    const id = this.#query.query_id;
    try {
      await this.#desk.api.json(`/v1/queries/${id}`, { method: "DELETE" });
    } catch (error) {
      if (isAbort(error)) return;
      say(`It could not be cancelled: ${wordsOf(error)}`);
    }
    await this.follow(id);
  }

  #showFailed() {
    const { code, detail } = this.#query.error ?? { code: "internal", detail: "" };
    const taken = code === "cancelled";
    const title = taken ? "The search was cancelled" : "The search failed";
    const lines = taken ? [] : [detail, `Code: ${code}`].filter(Boolean);
    this.#root.replaceChildren(notice(taken ? "" : "bad", title, lines));
    say(`${title}. ${lines.join(" ")}`);
  }

  async #showDone(signal) {
    const query = this.#query;
    if (!query.hits) {
      this.#takeUp(query);
      this.#root.replaceChildren(this.#desk.bar, ...this.#warnings([]), noHits(query), ...this.#watch(query));
      say("No hits.");
      return;
    }
    await this.#showHits(signal);
  }

  /** The hits, final or not; where one had the focus, its place has it again. */
  async #showHits(signal) {
    const query = this.#query;
    let list = this.#list;
    if (!(await list?.renew(query, signal))) {
      this.#takeUp(query);
      list = new HitList(this.#desk, query, (rank) => this.#actions.open(rank));
      await list.start(signal);
    }
    const focused = this.#root.querySelector(".card:focus-within")?.dataset.rank;
    const { scrollX, scrollY } = window;
    if (list !== this.#list) this.#list?.stop();
    this.#list = list;
    if (query.state !== "done") {
      const cancel = button("Cancel the search", () => this.#cancel());
      const sum = el("p", { class: "sum" }, el("strong", {}, count(query.hits, "hit")), " so far");
      this.#root.replaceChildren(waiting(...soFarWords(query), cancel), sum, this.#desk.bar, list.shown);
      say(`${count(query.hits, "hit")} so far.`);
    } else this.#showFinal(query, list, signal);
    if (focused) this.#root.querySelector(`.card[data-rank="${focused}"] .shown`)?.focus({ preventScroll: true });
    scrollTo(scrollX, scrollY);
  }

  /** Marks stay while one search goes on; what was chosen as evidence is known by its rank. */
  #takeUp(query) {
    if (this.#marked !== query.query_id) this.#desk.marks.take(query.params);
    this.#marked = query.query_id;
    this.#desk.evidence.take(query);
  }

  #showFinal(query, list, signal) {
    const body = el("div", {}, list.shown);
    const cameras = new Set(list.hits.map((hit) => hit.camera_id)).size;
    this.#root.replaceChildren(
      el("p", { class: "sum" }, el("strong", {}, count(query.hits, "hit")), sumWords(query, cameras, list.hits)),
      ...this.#watch(query),
      this.#desk.bar,
      this.#desk.evidence.bar,
      ...this.#warnings(list.hits),
      this.#tabs(list.shown, body, signal),
      howToRead(),
      body,
    );
    say(`${count(query.hits, "hit")}.`);
    if (this.#view === "appearances") this.#root.querySelector("#view-appearances").click();
  }

  #watch(query) {
    return canWatch(query) ? [watchRow(this.#desk.api, query, this.#actions)] : [];
  }

  #tabs(shown, body, signal) {
    const show = async (view) => {
      this.#view = view;
      if (view === "hits") {
        body.replaceChildren(shown);
        return;
      }
      body.replaceChildren(waiting("Putting the hits in order of time …"));
      try {
        const open = (rank) => this.#actions.open(rank);
        body.replaceChildren(await appearancesView(this.#desk.api, this.#query, open, signal));
      } catch (error) {
        if (isAbort(error)) return;
        body.replaceChildren(notice("bad", wordsOf(error), [], [button("Try again", () => show(view))]));
      }
    };
    const choice = (view, words) =>
      el(
        "label",
        {},
        el("input", { type: "radio", name: "view", id: `view-${view}`, checked: view === "hits", onchange: () => show(view) }),
        el("span", {}, words),
      );
    return el(
      "fieldset",
      { class: "choice" },
      el("legend", { class: "unseen" }, "How the hits are shown"),
      choice("hits", "By rank"),
      choice("appearances", "By time and camera"),
    );
  }

  #warnings(hits) {
    const { stats, degraded } = this.#query;
    const found = [];
    if (degraded || stats?.frames_away) {
      const left = (stats?.frames_lost ?? 0) + (stats?.frames_away ?? 0);
      found.push(
        notice("bad", "This answer is degraded", [
          `${count(left, "stored frame")} could not be read and ${left === 1 ? "was" : "were"} not searched: what they show is missing here.`,
          "Whoever runs RIS can bring damaged ones back with “./ris repair”; then search again.",
        ]),
      );
    }
    if (hits.length && convinces(hits) === false) {
      found.push(
        notice("", "No convincing match", [
          "None of these stands out from what chance brings. That says something about likeness; it is no proof of absence.",
        ]),
      );
    }
    return found;
  }
}
