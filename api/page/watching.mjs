// Standing queries: a finished search that goes on with new frames, and the alerts that come of it.

import { freshName, isAbort, wordsOf } from "./api.mjs";
import { button, el, notice, say } from "./dom.mjs";
import { count, timeWords, utcWords } from "./words.mjs";

const SHOWN = 12;
const AGAIN_MS = 15_000;
const STRATEGIES = ["default", "fused", "grow-rigid", "grow-elastic"];

/** Whether a search can go on: its likeness must be one that chance is known of. */
export function canWatch(query) {
  return STRATEGIES.includes(query.params.strategy) && query.params.tau === null;
}

/**
 * "Watch for this" beside an answer. `pictureOf(query)`: the own picture it was drawn on, or null;
 * `begun()` is told when it stands.
 */
export function watchRow(api, query, { pictureOf, begun }) {
  const name = freshName();
  const said = el("span", { class: "fine", role: "status" });
  const go = button("Watch for this", async () => {
    go.disabled = true;
    try {
      await api.postDrawn("/v1/standing-queries", bodyOf(query), await pictureOf(query), name);
      said.textContent = "New pictures are compared with it from now on. Alerts appear below the search form.";
      begun();
    } catch (error) {
      if (isAbort(error)) return;
      go.disabled = false;
      said.textContent = `It is not watched: ${wordsOf(error)}`;
    }
  });
  return el("div", { class: "row" }, go, said);
}

function bodyOf(query) {
  // Times of the search lie behind us: what is to come must not be left out for them.
  const { t_from_utc: _from, t_to_utc: _to, ...params } = query.params;
  const second = Math.floor(Date.parse(query.created_at) / 1000) * 1000;
  const frame = query.frame_id === null ? {} : { frame_id: query.frame_id };
  return { name: `Search of ${timeWords(second)}`, ...frame, roi: query.roi, params };
}

/** What is watched for, and the newest alerts. */
export class Watching {
  #root;
  #api;
  #pictures;
  #timer = 0;
  #newest = null;

  constructor(root, api, pictures) {
    this.#root = root;
    this.#api = api;
    this.#pictures = pictures;
  }

  /** Show what there is, and look again now and then. */
  async refresh() {
    clearTimeout(this.#timer);
    try {
      const standing = (await this.#api.all("/v1/standing-queries")).filter((one) => one.state !== "ended" || one.alerts);
      const { items: alerts } = standing.length ? await this.#api.json(`/v1/alerts?limit=${SHOWN}`) : { items: [] };
      this.#show(standing, alerts);
      if (standing.some((one) => one.state === "running")) this.#timer = setTimeout(() => this.refresh(), AGAIN_MS);
    } catch (error) {
      if (isAbort(error) || error.status === 401) return;
      this.#root.hidden = false;
      this.#pictures.forget(this.#root);
      const again = button("Try again", () => this.refresh());
      this.#root.replaceChildren(title(), notice("bad", wordsOf(error), ["Alerts cannot be shown."], [again]));
    }
  }

  #show(standing, alerts) {
    const state = JSON.stringify([standing, alerts]);
    if (state === this.#newest) return;
    const before = this.#newest;
    this.#newest = state;
    this.#root.hidden = !standing.length;
    this.#pictures.forget(this.#root);
    this.#root.replaceChildren(
      title(),
      el("ul", { class: "watched" }, standing.map((one) => this.#standing(one))),
      alerts.length
        ? el("ul", { class: "alerts" }, alerts.map((one) => this.#alert(one)))
        : el("p", { class: "fine" }, "No alert so far. That says little: the subject may be too small, or look different."),
    );
    if (before !== null) say(count(alerts.length, "alert"));
  }

  #standing(one) {
    const words = { running: "watched", paused: "paused", ended: `ended: ${one.ended?.detail ?? ""}` }[one.state];
    const act = (verb, method, path) =>
      button(verb, () => this.#act(method, `/v1/standing-queries/${one.standing_query_id}${path}`), {
        class: "quiet",
        "aria-label": `${verb}: ${one.name}`,
      });
    return el(
      "li",
      { class: "row spread" },
      el("span", {}, el("strong", {}, one.name), ` ${words}, ${count(one.alerts, "alert")}`),
      el(
        "span",
        { class: "row" },
        one.state === "running" ? act("Pause", "POST", "/pause") : null,
        one.state === "paused" ? act("Resume", "POST", "/resume") : null,
        act("Remove", "DELETE", ""),
      ),
    );
  }

  async #act(method, path) {
    try {
      await this.#api.json(path, { method });
    } catch (error) {
      if (!isAbort(error)) say(wordsOf(error));
    }
    await this.refresh();
  }

  #alert(one) {
    const img = el("img", { alt: `${one.camera_name}, ${timeWords(one.t_utc)}` });
    this.#pictures.lazily(img, `${one.overlay}?max_side_px=480`);
    const place = `#camera=${one.camera_id}&t=${one.t_utc}`;
    return el(
      "li",
      {},
      img,
      el("a", { href: place }, one.camera_name),
      el("time", { datetime: one.t_utc, title: utcWords(one.t_utc) }, timeWords(one.t_utc)),
      el("p", { class: "fine" }, `${one.name}: ${chance(one.false_per_day)}`),
    );
  }
}

function title() {
  return el("h2", {}, "Watched for");
}

function chance(perDay) {
  const days = 1 / perDay;
  if (days < 1) return `chance brings about ${Math.round(perDay)} as alike a day on this camera`;
  if (days < 1000) return `chance brings one as alike in about ${count(Math.round(days), "day")} of this camera`;
  return "chance hardly brings one as alike on this camera";
}
