// Hits chosen as evidence, and exported as one signed file.

import { freshName, isAbort, pause, Refused, wordsOf } from "./api.mjs";
import { button, el, say } from "./dom.mjs";
import { count } from "./words.mjs";

const MOST = 50; // of one bundle, as the API has it
const POLL_MS = 400;

export class Evidence {
  #api;
  #allowed;
  #query = null;
  #ranks = new Set();
  #listeners = [];
  #making = null;
  #note = el("span", { class: "fine grow", role: "status" });
  #words = el("span", {});
  #export = button("Export evidence", () => this.#make(), { class: "main" });
  #none = button("Choose none", () => this.#chooseNone());
  #bar = el(
    "div",
    { class: "row bar", role: "region", "aria-label": "Evidence" },
    this.#words,
    this.#note,
    this.#none,
    this.#export,
  );

  /** `allowed`: whether the key may export; without it nothing of this is shown. */
  constructor(api, allowed) {
    this.#api = api;
    this.#allowed = allowed;
  }

  /** What shows the choice, above the hits. */
  get bar() {
    return this.#bar;
  }

  /** The search whose hits are shown now. */
  take(query) {
    this.#making?.abort();
    this.#making = null;
    this.#query = query;
    this.#ranks.clear();
    this.#listeners = [];
    this.#note.textContent = "";
    this.#draw();
  }

  /** A box that chooses a hit; null for a key that may not export. */
  box(hit) {
    if (!this.#allowed) return null;
    const input = el("input", {
      type: "checkbox",
      "aria-label": `Choose hit ${hit.rank} as evidence`,
      onchange: () => this.#choose(hit.rank, input.checked),
    });
    const show = () => {
      input.checked = this.#ranks.has(hit.rank);
    };
    this.#listeners.push(show);
    show();
    return el("label", { class: "row choose" }, input, el("span", { "aria-hidden": "true" }, "Evidence"));
  }

  #choose(rank, chosen) {
    if (!chosen) this.#ranks.delete(rank);
    else if (this.#ranks.size < MOST) this.#ranks.add(rank);
    this.#note.textContent = chosen && !this.#ranks.has(rank) ? `At most ${MOST} hits in one file.` : "";
    this.#draw();
  }

  #chooseNone() {
    this.#ranks.clear();
    this.#draw();
    say("No hits are chosen.");
  }

  #draw() {
    this.#bar.hidden = !this.#allowed || !this.#ranks.size;
    this.#words.textContent = `${count(this.#ranks.size, "hit")} chosen as evidence`;
    this.#export.disabled = this.#making !== null;
    this.#listeners.forEach((show) => show());
  }

  async #make() {
    const making = new AbortController();
    this.#making = making;
    this.#note.textContent = "Making the file …";
    this.#draw();
    let words = "";
    try {
      const made = await this.#made(making.signal);
      save(await this.#api.blob(made.bundle, making.signal), `evidence-${made.evidence_id}.zip`);
      words = `Saved, signed by ${made.signed_by.slice(0, 16)}…`;
    } catch (error) {
      if (isAbort(error) || making.signal.aborted) return;
      words = `It could not be exported: ${wordsOf(error)}`;
    }
    if (this.#making !== making) return;
    this.#making = null;
    this.#note.textContent = words;
    this.#draw();
  }

  /** Order the bundle and wait until it is made. */
  async #made(signal) {
    const path = `/v1/queries/${this.#query.query_id}/evidence`;
    const ranks = [...this.#ranks].sort((a, b) => a - b);
    let told = await this.#api.post(path, { ranks }, freshName());
    while (!told.bundle) {
      if (told.state === "failed") throw new Refused(200, told.error);
      await pause(POLL_MS, signal);
      told = await this.#api.json(`${path}/${told.evidence_id}`, { signal });
    }
    return told;
  }
}

/** Have the browser save bytes as a file. */
function save(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = el("a", { href: address, download: name });
  link.click();
  // The browser has begun by then; later the bytes would only fill its memory.
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
