// Hits that the user marked: "more like this", "not like this"; searched again with all of them.

import { button, el } from "./dom.mjs";
import { count } from "./words.mjs";

const MOST = 16; // of each kind, as the API has it

export class Marks {
  #marks = new Map(); // frame id -> {kind, example}
  #bar;
  #again;
  #listeners = [];

  /** `again()` searches with the marks. */
  constructor(bar, again) {
    this.#bar = bar;
    this.#again = again;
  }

  /** What was marked when a search was asked. */
  take(params) {
    this.#marks.clear();
    this.#listeners = [];
    for (const kind of ["more", "less"]) {
      for (const example of params?.[kind] ?? []) this.#marks.set(example.frame_id, { kind, example });
    }
    this.fresh = false;
    this.#draw();
  }

  /** The marks as `params` has them. */
  get params() {
    const of = (kind) =>
      [...this.#marks.values()].filter((one) => one.kind === kind).map((one) => one.example);
    return { more: of("more"), less: of("less") };
  }

  kindOf(hit) {
    return this.#marks.get(hit.frame_id)?.kind ?? null;
  }

  /** Mark a hit, or take the mark away again. */
  toggle(hit, kind) {
    if (this.kindOf(hit) === kind) this.#marks.delete(hit.frame_id);
    else if (this.params[kind].length < MOST) {
      const example = { frame_id: hit.frame_id, box: hit.box };
      this.#marks.set(hit.frame_id, { kind, example });
    }
    this.fresh = true;
    this.#draw();
    this.#listeners.forEach((listener) => listener());
  }

  /** Two buttons of a hit that show and change its mark. */
  buttons(hit) {
    const made = [
      ["more", "More like this"],
      ["less", "Not like this"],
    ].map(([kind, words]) => {
      const one = button(words, () => this.toggle(hit, kind), { class: `mark ${kind}` });
      const show = () => one.setAttribute("aria-pressed", String(this.kindOf(hit) === kind));
      this.#listeners.push(show);
      show();
      return one;
    });
    return el("div", { class: "row marks", role: "group", "aria-label": `Mark hit ${hit.rank}` }, ...made);
  }

  #draw() {
    const { more, less } = this.params;
    const words = [
      more.length ? `${count(more.length, "hit")} “more like this”` : null,
      less.length ? `${count(less.length, "hit")} “not like this”` : null,
    ].filter(Boolean);
    this.#bar.hidden = !words.length && !this.fresh;
    this.#bar.replaceChildren(
      el("span", {}, words.length ? `${this.fresh ? "Marked" : "Searched with"}: ${words.join(", ")}` : "No marks left"),
      el("span", { class: "grow" }),
      this.fresh ? button("Search again with these", () => this.#again(), { class: "main" }) : "",
    );
  }
}
