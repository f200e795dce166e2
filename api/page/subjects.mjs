// Proposed subjects: boxes around what the frames before and after do not show. One is clicked, or
// chosen with Tab and Enter, instead of drawing.

import { isAbort, wordsOf } from "./api.mjs";
import { button, el, say } from "./dom.mjs";
import { count, percent } from "./words.mjs";

const FINGER = 0.02; // of the picture, beside a box that is hard to hit

export class Subjects {
  #api;
  #choose;
  #frame = null;
  #boxes = [];
  #asking = null;
  #layer = el("div", { class: "subjects" });
  #note = el("p", { class: "fine", role: "status", hidden: true });
  #toggle = button("Subjects", () => this.#switch(), {
    "aria-pressed": "false",
    title: "Show what moves here as boxes to choose from",
  });

  /** In a positioned element of the picture's size. `choose(box)` takes the box that was chosen. */
  constructor(stage, api, choose) {
    this.#api = api;
    this.#choose = choose;
    stage.append(this.#layer);
  }

  /** The button that shows and hides them. */
  get toggle() {
    return this.#toggle;
  }

  /** What is said of them. */
  get note() {
    return this.#note;
  }

  /** The frame that is shown now; null for a picture that is none. */
  set frame(frame) {
    if (frame?.frame_id === this.#frame?.frame_id) return;
    this.#frame = frame;
    this.#toggle.hidden = frame === null;
    this.#ask();
  }

  /** A click on the picture: the smallest box there is chosen, else the smallest close by. */
  clicked([x, y]) {
    const near = (reach) => ([x0, y0, x1, y1]) =>
      x0 - reach <= x && x < x1 + reach && y0 - reach <= y && y < y1 + reach;
    const inside = this.#boxes.filter(near(0));
    const at = inside.length ? inside : this.#boxes.filter(near(FINGER));
    const size = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
    if (at.length) this.#choose(at.reduce((best, one) => (size(one) < size(best) ? one : best)));
  }

  get #shown() {
    return this.#toggle.getAttribute("aria-pressed") === "true";
  }

  #switch() {
    this.#toggle.setAttribute("aria-pressed", String(!this.#shown));
    this.#ask();
  }

  async #ask() {
    this.#asking?.abort();
    this.#show([]);
    this.#note.hidden = !this.#shown || !this.#frame;
    if (this.#note.hidden) return;
    this.#asking = new AbortController();
    const { signal } = this.#asking;
    this.#note.textContent = "Looking for what moves …";
    try {
      const told = await this.#api.json(`/v1/frames/${this.#frame.frame_id}/proposals`, { signal });
      this.#show(told.boxes);
      this.#note.textContent = inWords(told);
      say(inWords(told), 500);
    } catch (error) {
      if (!isAbort(error)) this.#note.textContent = `No subjects are proposed: ${wordsOf(error)}`;
    }
  }

  #show(boxes) {
    this.#boxes = boxes;
    // From left to right, as Tab goes through them.
    const ordered = [...boxes].sort((a, b) => a[0] - b[0]);
    this.#layer.replaceChildren(...ordered.map((box, place) => this.#box(box, place + 1)));
  }

  #box(box, number) {
    const [x0, y0, x1, y1] = box;
    const at = `${percent((x0 + x1) / 2)} across, ${percent((y0 + y1) / 2)} down`;
    const made = button("", () => this.#choose(box), {
      class: "subject",
      "aria-label": `Proposed subject ${number}: ${at}`,
    });
    const sides = { left: x0, top: y0, width: x1 - x0, height: y1 - y0 };
    for (const [side, share] of Object.entries(sides)) made.style[side] = `${share * 100}%`;
    return made;
  }
}

function inWords({ boxes, compared }) {
  if (boxes.length) return `${count(boxes.length, "proposed subject")}: click one. What stands still is not among them; a shadow may be.`;
  if (compared < 4) return "Too few frames around this one to tell what moves. Draw a box.";
  return "Nothing here moves, or all of it does. Draw a box.";
}
