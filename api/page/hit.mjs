// A hit large: its picture, which of its cells match which cells of the region, and what to do.

import { isAbort, wordsOf } from "./api.mjs";
import { button, byId, el, svg } from "./dom.mjs";
import { boxParts, cellRect, cellsPath, zoneParts } from "./overlay.mjs";
import { cellsOf } from "./shape.mjs";
import { chanceWords, number, percent, spanWords, timeWords, utcWords } from "./words.mjs";

export class HitView {
  #desk;
  #actions;
  #dialog = byId("hit");
  #loading = null;

  /**
   * `desk`: {api, pictures, marks, evidence}. `actions`: closed(), go(rank), searchFrom(hit), openAt(hit).
   */
  constructor(desk, actions) {
    this.#desk = desk;
    this.#actions = actions;
    this.#dialog.onclose = () => {
      this.#loading?.abort();
      this.#dialog.replaceChildren();
      actions.closed();
    };
    this.#dialog.onkeydown = (event) => {
      const to = { ArrowLeft: "Hit before", ArrowRight: "Next hit" }[event.key];
      if (to && !event.target.closest(".cell")) this.#named(to).click();
    };
    this.#dialog.onclick = (event) => {
      if (event.target === this.#dialog) this.close(); // beside the window
    };
  }

  get isOpen() {
    return this.#dialog.open;
  }

  close() {
    if (this.#dialog.open) this.#dialog.close();
  }

  /** Show a hit of a query. */
  async show(query, hit) {
    const held = this.#dialog.open ? document.activeElement?.getAttribute("aria-label") : null;
    this.#loading?.abort();
    this.#loading = new AbortController();
    const picture = el("img", { alt: `Hit ${hit.rank}`, width: hit.w_px, height: hit.h_px });
    const drawn = el("img", { alt: "Picture of the search" });
    const pairs = new Pairs(query, hit);
    const note = el("p", { class: "fine", role: "alert" });
    this.#dialog.replaceChildren(
      this.#head(query, hit),
      el(
        "div",
        { class: "hit-body" },
        stage(hit.w_px / hit.h_px, picture, pairs.found, "hit-stage"),
        el(
          "div",
          { class: "hit-side" },
          el("h3", {}, "What was searched"),
          stage(hit.w_px / hit.h_px, drawn, pairs.asked, "asked-stage"),
          pairs.words,
          note,
          facts(hit),
          this.#buttons(hit),
        ),
      ),
    );
    if (!this.#dialog.open) this.#dialog.showModal();
    const again = ["Hit before", "Next hit"].includes(held) ? this.#named(held) : null;
    (again && !again.disabled ? again : this.#dialog.querySelector(".close")).focus();
    const { signal } = this.#loading;
    try {
      await Promise.all([
        this.#desk.pictures.show(picture, hit.picture, signal),
        this.#desk.pictures.show(drawn, `/v1/queries/${query.query_id}/picture`, signal),
      ]);
      const ratio = drawn.naturalWidth / drawn.naturalHeight;
      drawn.parentElement.style.setProperty("--ratio", String(ratio));
    } catch (error) {
      if (!isAbort(error) && !signal.aborted) note.textContent = `A picture cannot be shown: ${wordsOf(error)}`;
    }
  }

  #bare(toggle) {
    const bare = toggle.getAttribute("aria-pressed") === "false";
    toggle.setAttribute("aria-pressed", String(bare));
    this.#dialog.querySelector(".hit-body").classList.toggle("bare", bare);
  }

  #named(name) {
    return this.#dialog.querySelector(`[aria-label="${name}"]`);
  }

  #head(query, hit) {
    const step = (words, rank, name) =>
      button(words, () => this.#actions.go(rank), { disabled: rank < 1 || rank > query.hits, "aria-label": name, title: name });
    return el(
      "header",
      { class: "row hit-head" },
      el("h2", { id: "hit-title" }, `Hit ${hit.rank} of ${query.hits}`),
      el("span", { class: "grow" }),
      button("Hide marks", (event) => this.#bare(event.currentTarget), { "aria-pressed": "false" }),
      step("‹", hit.rank - 1, "Hit before"),
      step("›", hit.rank + 1, "Next hit"),
      button("✕", () => this.close(), { class: "close", "aria-label": "Close", title: "Close" }),
    );
  }

  #buttons(hit) {
    return el(
      "div",
      { class: "hit-actions" },
      this.#desk.marks.buttons(hit),
      this.#desk.evidence.box(hit),
      button("Search from this hit", () => this.#actions.searchFrom(hit), { class: "main" }),
      button("Open at its time", () => this.#actions.openAt(hit)),
    );
  }
}

function stage(ratio, img, overlay, name) {
  const made = el("div", { class: `hit-stage ${name}` }, img, overlay);
  made.style.setProperty("--ratio", String(ratio));
  return made;
}

function facts(hit) {
  const { tone, words, meaning } = chanceWords(hit);
  const row = (name, value, title = null) => [el("dt", { title }, name), el("dd", {}, value)];
  const span = hit.appearance;
  return el(
    "div",
    {},
    el("p", { class: `chance ${tone}` }, words),
    el("p", {}, meaning),
    el(
      "dl",
      { class: "facts" },
      row("Camera", hit.camera_name),
      row("Time", el("time", { datetime: hit.t_utc, title: utcWords(hit.t_utc) }, timeWords(hit.t_utc))),
      row("Score", number(hit.score), "Gives the order within this answer; no probability"),
      row("Likeness", number(hit.similarity), "Mean cosine over the pairs of matching cells"),
      row("Matched", `${percent(hit.coverage)} of the region's cells`),
      row("By chance", hit.on_trail ? "followed, not found by likeness" : chanceNumber(hit), "Frames that chance brings to such a likeness"),
      span.frames > 1
        ? row("Appearance", `${span.frames} frames in ${spanWords(Date.parse(span.to_utc) - Date.parse(span.from_utc))}`)
        : [],
    ),
  );
}

function chanceNumber(hit) {
  return hit.false_matches === null ? "not stated" : `${number(hit.false_matches)} frames`;
}

/** Cells of the hit and the cells of the region they match, shown together. */
class Pairs {
  #partners = new Map(); // cell of the hit -> cells of the query picture
  #grid;
  #light = svg("g", { class: "lit" });
  #askedLight = svg("g", { class: "lit" });

  constructor(query, hit) {
    this.#grid = hit.grid;
    const asked = cellsOf(query.roi, hit.grid);
    // The API tells places in the region, not cells; only a list of the same length is that list.
    const known = asked.length === query.stats?.query_patches;
    hit.region_cells.forEach((cell, place) => {
      if (!this.#partners.has(cell)) this.#partners.set(cell, []);
      const partner = known ? asked[hit.region_query_patches[place]] : undefined;
      if (partner !== undefined) this.#partners.get(cell).push(partner);
    });
    const overlay = (...parts) =>
      svg("svg", { class: "overlay", viewBox: "0 0 1 1", preserveAspectRatio: "none" }, ...parts);
    this.words = el("p", { class: "fine pair-words", role: "status" }, PROMPT);
    this.asked = overlay(...cellsPath(asked, hit.grid, "cells asked"), this.#askedLight);
    this.asked.setAttribute("aria-hidden", "true");
    this.found = overlay(
      ...zoneParts(query.params.zone),
      ...cellsPath(hit.region_cells, hit.grid, "cells"),
      ...boxParts(hit.box),
      this.#light,
      this.#cells(),
    );
  }

  #cells() {
    const cells = [...this.#partners.keys()].sort((a, b) => a - b);
    const group = svg("g", { role: "group", "aria-label": "Matching cells; arrow keys go from one to the next" });
    cells.forEach((cell, place) => {
      group.append(
        cellRect(cell, this.#grid, {
          class: "cell",
          role: "img",
          tabindex: place ? -1 : 0,
          "aria-label": this.#inWords(cell),
          onpointerenter: () => this.#lit(cell),
          onpointerdown: () => this.#lit(cell),
          onpointerleave: () => this.#lit(null),
          onfocus: () => this.#lit(cell),
          onblur: () => this.#lit(null),
          onkeydown: (event) => step(event, group),
        }),
      );
    });
    return group;
  }

  #lit(cell) {
    const partners = cell === null ? [] : this.#partners.get(cell);
    const rect = (one) => cellRect(one, this.#grid, {});
    this.#light.replaceChildren(...(cell === null ? [] : [rect(cell)]));
    this.#askedLight.replaceChildren(...partners.map(rect));
    this.words.textContent = cell === null ? PROMPT : this.#inWords(cell);
  }

  #inWords(cell) {
    const partners = this.#partners.get(cell);
    const at = (one) => `row ${Math.floor(one / this.#grid.w) + 1}, column ${(one % this.#grid.w) + 1}`;
    if (!partners.length) return `Cell ${at(cell)} matches.`;
    return `Cell ${at(cell)} matches your region's cell ${partners.map(at).join(" and ")}.`;
  }
}

const PROMPT = "Point at a green cell to see what it matches in your region.";

function step(event, group) {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  const cells = [...group.children];
  const from = cells.indexOf(event.currentTarget);
  const to = cells[(from + by + cells.length) % cells.length];
  cells[from].setAttribute("tabindex", "-1");
  to.setAttribute("tabindex", "0");
  to.focus();
}
