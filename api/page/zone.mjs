// The zone: a part of the picture that a match must lie in, drawn on a camera that is searched.

import { address, isAbort, wordsOf } from "./api.mjs";
import { latest } from "./advice.mjs";
import { modes } from "./camera_parts.mjs";
import { button, el } from "./dom.mjs";
import { inWords, RegionEditor } from "./roi.mjs";
import { timeWords } from "./words.mjs";

export class ZoneField {
  #api;
  #pictures;
  #cameras;
  #onlyOn;
  #camera = null;
  #loading = null;
  #editor;
  #summary = el("summary", {});
  #note = el("div", { class: "row fine" });
  #words = el("p", { id: "zone-words", class: "fine" });
  #img = el("img", { alt: "", draggable: "false" });
  #stage;
  #root;

  /**
   * `cameras()`: {shown, chosen, all} of the search, `shown` being an id; `onlyOn(id)`: search that
   * camera alone.
   */
  constructor(api, pictures, cameras, onlyOn) {
    this.#api = api;
    this.#pictures = pictures;
    this.#cameras = cameras;
    this.#onlyOn = onlyOn;
    this.#stage = el(
      "div",
      {
        class: "stage zone-stage",
        tabindex: 0,
        role: "application",
        "aria-roledescription": "region editor",
        "aria-label": "Picture of a camera: draw the zone",
        "aria-describedby": "zone-words",
      },
      this.#img,
    );
    this.#editor = new RegionEditor(this.#stage, () => this.#describe());
    const drawing = modes("zone-mode", "What to draw as the zone", (mode) => (this.#editor.mode = mode));
    const none = button("No zone", () => this.#editor.clear());
    this.#root = el(
      "details",
      { class: "zone-field", ontoggle: () => this.refresh() },
      this.#summary,
      this.#note,
      this.#stage,
      el("div", { class: "row" }, drawing, none),
      this.#words,
    );
    this.#describe();
  }

  get root() {
    return this.#root;
  }

  /** The zone as `params` has it; null: the whole picture. */
  get zone() {
    return this.#editor.roi;
  }

  /** Show the zone of a search. */
  set zone(zone) {
    this.#editor.show(zone ?? null);
    this.#describe();
  }

  /** The cameras that are searched may be others now. */
  refresh() {
    if (!this.#root.open) return;
    const { shown, chosen, all } = this.#cameras();
    const held = (id) => all.find((one) => one.camera_id === id && one.frames);
    const camera = held(chosen.includes(shown) ? shown : chosen[0]) ?? held(shown) ?? latest(all);
    if (camera?.frames && camera !== this.#camera) this.#load(camera);
    else this.#describe();
  }

  async #load(camera) {
    this.#loading?.abort();
    this.#loading = new AbortController();
    const { signal } = this.#loading;
    this.#camera = camera;
    try {
      const asked = { camera_id: camera.camera_id, t_utc: camera.last_utc };
      const frame = await this.#api.json(address("/v1/frames/nearest", asked), { signal });
      this.#stage.style.setProperty("--ratio", String(frame.w_px / frame.h_px));
      this.#describe();
      await this.#pictures.show(this.#img, frame.picture, signal);
      this.#img.alt = `${camera.name}, ${timeWords(frame.t_utc)}`;
    } catch (error) {
      if (isAbort(error) || signal.aborted) return;
      this.#camera = null; // asked for again when it is opened again
      this.#note.textContent = `The picture cannot be shown: ${wordsOf(error)}`;
    }
  }

  #describe() {
    const { zone } = this;
    this.#summary.textContent = zone ? "Zone: a part of the picture" : "Zone: the whole picture";
    this.#words.textContent = zone
      ? `${inWords(zone)} Only what matches inside is a hit.`
      : "Draw where a match must lie. Your region may lie elsewhere.";
    const { chosen } = this.#cameras();
    const id = this.#camera?.camera_id;
    const where = `On ${this.#camera?.name}. Every camera shows something else there.`;
    this.#note.replaceChildren(id ? el("span", {}, where) : "");
    if (id && (chosen.length !== 1 || chosen[0] !== id)) {
      this.#note.append(button(`Search only ${this.#camera.name}`, () => this.#onlyOn(id)));
    }
  }
}
