// What a search is asked with besides the region: cameras, times, strategy.

import { byId, el } from "./dom.mjs";
import { count, fieldTime } from "./words.mjs";
import { ZoneField } from "./zone.mjs";

const HOUR_MS = 3_600_000;
const STRATEGIES = [
  ["default", "Balanced (recommended)"],
  ["grow-rigid", "Same shape and size"],
  ["grow-elastic", "Shape may bend or scale"],
  ["max-sim", "Likeness of cells only"],
  ["vote-majority", "Votes, majority"],
  ["vote-unique", "Votes, one per cell"],
  ["vote-weighted", "Votes, weighted"],
  ["vote-weighted-unique", "Votes, weighted, one per cell"],
  ["whole-frame", "Whole picture (ignores the region)"],
];
const PAPER = [
  ["paper-majority", "Paper: majority"],
  ["paper-unique", "Paper: unique"],
  ["paper-weighted", "Paper: weighted"],
  ["paper-weighted-unique", "Paper: weighted, unique"],
  ["paper-rigid", "Paper: rigid growth"],
  ["paper-elastic", "Paper: elastic growth"],
];

export class AskForm {
  #place;
  #cameras = [];
  #zone;
  #chosen = new Set();
  #parts;

  /**
   * `desk`: {api, pictures}. `ask(params)` submits; `place()` is {camera, t} of the picture, null
   * where it has none.
   */
  constructor(root, desk, ask, place) {
    this.#place = place;
    this.#zone = new ZoneField(
      desk.api,
      desk.pictures,
      () => ({ shown: place().camera, chosen: [...this.#chosen], all: this.#cameras }),
      (id) => this.#choose([id]),
    );
    const parts = {
      span: select("span", [
        ["all", "Any time"],
        ["hour", "Within an hour of the picture"],
        ["day", "Within a day of the picture"],
        ["between", "Between …"],
      ]),
      from: el("input", { id: "from", type: "datetime-local", step: "1" }),
      to: el("input", { id: "to", type: "datetime-local", step: "1" }),
      strategy: select("strategy", STRATEGIES),
      group: select("group", [
        ["appearance", "Appearances, each by its best frame"],
        ["frame", "Every frame"],
      ]),
      limit: select("limit", [
        [50, "the 50 best frames"],
        [200, "the 200 best frames"],
        [1000, "the 1000 best frames"],
      ]),
      cameras: el("div", { class: "ticks" }),
      filter: el("input", { type: "search", id: "camera-filter", placeholder: "Filter", "aria-label": "Filter the cameras" }),
      summary: el("summary", {}),
      note: el("p", { class: "fine bad-words", role: "alert" }),
      go: el("button", { type: "submit", form: "ask-form", class: "main", id: "search" }, "Search"),
    };
    this.#parts = parts;
    const group = el("optgroup", { label: "As in the paper" }, ...PAPER.map(([v, w]) => el("option", { value: v }, w)));
    parts.strategy.append(group);
    const between = el(
      "div",
      { class: "pair", hidden: true },
      field("From", "from", parts.from),
      field("To", "to", parts.to),
    );
    parts.span.addEventListener("change", () => {
      between.hidden = parts.span.value !== "between";
    });
    parts.between = between;
    parts.filter.addEventListener("input", () => this.#filter());
    root.replaceChildren(
      el(
        "form",
        {
          class: "ask",
          id: "ask-form",
          novalidate: true,
          onsubmit: (event) => {
            event.preventDefault();
            this.#submit(ask);
          },
        },
        el("details", { class: "cameras" }, parts.summary, parts.filter, parts.cameras),
        field("Time", "span", parts.span),
        between,
        this.#zone.root,
        el(
          "details",
          {},
          el("summary", {}, "Strategy and length of the answer"),
          field("Strategy", "strategy", parts.strategy),
          el("div", { class: "pair" }, field("List", "group", parts.group), field("of", "limit", parts.limit)),
        ),
      ),
    );
    byId("search-place").replaceChildren(parts.go); // beside the picture
    byId("search-note").replaceChildren(parts.note);
  }

  /** The cameras that can be searched. */
  setCameras(cameras) {
    this.#cameras = cameras;
    const known = new Set(cameras.map((one) => one.camera_id));
    this.#chosen = new Set([...this.#chosen].filter((id) => known.has(id)));
    this.#parts.filter.hidden = cameras.length < 9;
    this.#parts.cameras.replaceChildren(
      ...cameras.map((one) =>
        el(
          "label",
          { "data-name": one.name.toLowerCase() },
          el("input", {
            type: "checkbox",
            value: one.camera_id,
            onchange: (event) => this.#tick(one.camera_id, event.target.checked),
          }),
          el("span", {}, one.name),
        ),
      ),
    );
    this.#summarise();
  }

  /** Show how a search was asked. */
  showParams(params) {
    const { strategy, group, limit, span, from, to, between } = this.#parts;
    strategy.value = params.strategy === "fused" ? "default" : params.strategy;
    group.value = params.group;
    limit.value = [...limit.options].find((one) => Number(one.value) >= params.limit)?.value ?? "1000";
    this.#zone.zone = params.zone;
    span.value = params.t_from_utc || params.t_to_utc ? "between" : "all";
    from.value = params.t_from_utc ? fieldTime(params.t_from_utc) : "";
    to.value = params.t_to_utc ? fieldTime(params.t_to_utc) : "";
    between.hidden = span.value !== "between";
    this.#choose(params.camera_ids ?? []);
  }

  #choose(ids) {
    this.#chosen = new Set(ids);
    for (const box of this.#parts.cameras.querySelectorAll("input")) box.checked = this.#chosen.has(Number(box.value));
    this.#summarise();
  }

  /** The parameters as the API takes them; what is left out takes its default. */
  get params() {
    const { strategy, group, limit } = this.#parts;
    const params = { strategy: strategy.value, group: group.value, limit: Number(limit.value) };
    if (this.#zone.zone) params.zone = this.#zone.zone;
    if (this.#chosen.size) params.camera_ids = [...this.#chosen].sort((a, b) => a - b);
    return { ...params, ...this.#times() };
  }

  /** Whether the picture has a time, which the times to search can be near to. */
  set timed(timed) {
    const { span } = this.#parts;
    const near = [...span.options].filter((one) => ["hour", "day"].includes(one.value));
    for (const one of near) one.disabled = !timed;
    if (!timed && near.some((one) => one.selected)) span.value = "all";
  }

  /** Say why nothing is searched. */
  refuse(words) {
    this.#parts.note.textContent = words;
  }

  set busy(busy) {
    this.#parts.go.disabled = busy;
  }

  focus() {
    this.#parts.go.focus();
  }

  #submit(ask) {
    this.refuse("");
    const { span, from, to } = this.#parts;
    if (span.value === "between" && from.value && to.value && from.value >= to.value) {
      this.refuse("“From” must be before “To”.");
      return;
    }
    ask(this.params);
  }

  #times() {
    const { span, from, to } = this.#parts;
    const at = this.#place().t;
    if (span.value === "between") {
      return {
        ...(from.value ? { t_from_utc: new Date(from.value).toISOString() } : {}),
        ...(to.value ? { t_to_utc: new Date(to.value).toISOString() } : {}),
      };
    }
    const reach = { hour: HOUR_MS, day: 24 * HOUR_MS }[span.value];
    if (!reach || !at) return {};
    const ms = Date.parse(at);
    return {
      t_from_utc: new Date(ms - reach).toISOString(),
      t_to_utc: new Date(ms + reach).toISOString(),
    };
  }

  #tick(id, ticked) {
    this.#chosen[ticked ? "add" : "delete"](id);
    this.#summarise();
  }

  #filter() {
    const wanted = this.#parts.filter.value.trim().toLowerCase();
    for (const label of this.#parts.cameras.children) label.hidden = !label.dataset.name.includes(wanted);
  }

  #summarise() {
    const all = this.#parts.cameras.children.length;
    this.#parts.summary.textContent = this.#chosen.size
      ? `Cameras: ${this.#chosen.size} of ${all}`
      : `Cameras: all (${count(all, "camera")})`;
    this.#zone.refresh();
  }
}

function select(id, options) {
  return el("select", { id }, ...options.map(([value, words]) => el("option", { value }, words)));
}

function field(words, id, input) {
  return el("div", { class: "field" }, el("label", { for: id }, words), input);
}
