// The picture that is drawn on: camera, time, steps from frame to frame, region.

import { address, isAbort, wordsOf } from "./api.mjs";
import { advice, latest, noCameras } from "./advice.mjs";
import { cameraParts } from "./camera_parts.mjs";
import { button, el, notice, say } from "./dom.mjs";
import { ratioOf } from "./own.mjs";
import { inWords, RegionEditor } from "./roi.mjs";
import { Subjects } from "./subjects.mjs";
import { Timeline } from "./timeline.mjs";
import { fieldTime, spanWords, timeWords, utcWords, zoneWords } from "./words.mjs";

const FAR_MS = 10_000;

export class CameraView {
  #api;
  #pictures;
  #told;
  #cameras = [];
  #camera = null;
  #frame = null;
  #own = null; // a picture that is no frame: {picture, name, before}
  #going = null;
  #editor;
  #subjects;
  #timeline;
  #parts;

  /** `told()` hears that camera, frame or region changed. */
  constructor(root, api, pictures, told) {
    this.#api = api;
    this.#pictures = pictures;
    this.#told = told;
    this.#parts = cameraParts(root, {
      choose: () => this.#chosen(),
      step: (direction) => this.#step(direction),
      latest: () => this.#latest(),
      jump: (at) => this.#goTo(at),
      mode: (mode) => (this.#editor.mode = mode),
      clear: () => this.#editor.clear(),
      own: (file) => this.showOwn(file, file.name, null),
      back: () => this.show({ camera: this.#camera?.camera_id ?? null, t: this.#own.before ?? null, roi: null }),
    });
    const { stage } = this.#parts;
    this.#editor = new RegionEditor(stage, () => this.#roiChanged(), (at) => this.#subjects.clicked(at));
    this.#subjects = new Subjects(stage, api, (box) => this.#editor.take({ box }));
    this.#parts.clear.after(this.#subjects.toggle);
    this.#parts.roi.before(this.#subjects.note);
    this.#timeline = new Timeline(this.#parts.timeline, api, (ms) => this.#goTo(new Date(ms).toISOString()));
  }

  /** {camera, t, roi} as a place has them; an own picture is at no place. */
  get place() {
    if (this.#own) return { camera: null, t: null, roi: null };
    return {
      camera: this.#camera?.camera_id ?? null,
      t: this.#frame?.t_utc ?? null,
      roi: this.#editor.roi,
    };
  }

  get frame() {
    return this.#frame;
  }

  /** The own picture that is shown, as a Blob; null where it is a frame. */
  get own() {
    return this.#own?.picture ?? null;
  }

  get roi() {
    return this.#editor.roi;
  }

  get cameras() {
    return this.#cameras;
  }

  /** Ask which cameras there are. Rejects as the API does. */
  async load() {
    this.#cameras = await this.#api.all("/v1/cameras");
    this.#parts.select.replaceChildren(
      ...this.#cameras.map((one) => {
        const words = one.frames ? one.name : `${one.name} (nothing indexed yet)`;
        return el("option", { value: one.camera_id }, words);
      }),
    );
    this.#parts.all.hidden = !this.#cameras.length;
    if (!this.#cameras.length) this.#parts.note.replaceChildren(noCameras());
  }

  /** Show a place; without a camera the one that was filmed last. */
  async show({ camera, t, roi }) {
    const wanted = this.#cameras.find((one) => String(one.camera_id) === String(camera));
    const found = wanted ?? this.#cameras.find((one) => one.name === camera);
    if (camera !== null && !found && this.#cameras.length) {
      this.#tell("bad", `Camera ${camera} is not known`, ["It is gone, or not for this key."]);
      return;
    }
    const chosen = found ?? latest(this.#cameras);
    if (chosen) await this.#goTo(t ?? chosen.last_utc, chosen, roi);
  }

  /** Show a frame by its id, with a region. */
  async showFrame(frameId, roi) {
    const frame = await this.#api.json(`/v1/frames/${frameId}`);
    await this.show({ camera: String(frame.camera_id), t: frame.t_utc, roi });
  }

  /** Show a picture that is no frame, with a region. */
  async showOwn(picture, name, roi) {
    const ratio = await ratioOf(picture);
    if (!ratio) {
      this.#tell("bad", "This file cannot be shown as a picture", ["Give a JPEG, PNG, WebP, BMP or GIF."]);
      return;
    }
    const before = this.#own ? this.#own.before : this.#frame?.t_utc;
    this.#frame = null;
    this.#subjects.frame = null;
    this.#setOwn({ picture, name: name || "from the clipboard", before });
    const { stage, img } = this.#parts;
    stage.style.setProperty("--ratio", String(ratio));
    this.#editor.show(roi);
    this.#roiWords();
    this.#told();
    await this.#busy((signal) => this.#pictures.showBytes(img, picture, signal));
    img.alt = `Own picture: ${this.#own?.name}`;
    say(`Own picture: ${this.#own?.name}`, 300);
  }

  #setOwn(own) {
    this.#own = own;
    const { ofCamera, own: row, ownName, stage } = this.#parts;
    for (const part of ofCamera) part.hidden = own !== null;
    row.hidden = own === null;
    ownName.textContent = own?.name ?? "";
    stage.setAttribute("aria-label", `${own ? "Own picture" : "Picture of the camera"}: draw a region`);
  }

  /** Say why the region or the frame was refused, beside the picture. */
  refuse(words) {
    this.#tell("bad", words);
  }

  focusPicture() {
    this.#parts.stage.focus();
  }

  // --- going to frames

  async #chosen() {
    const id = Number(this.#parts.select.value);
    const camera = this.#cameras.find((one) => one.camera_id === id);
    const at = this.#frame?.t_utc;
    const covered = at && camera.first_utc <= at && at <= camera.last_utc;
    await this.#goTo(covered ? at : camera.last_utc, camera, null);
  }

  async #latest() {
    await this.#busy(async (signal) => {
      const id = this.#camera.camera_id;
      const camera = await this.#api.json(`/v1/cameras/${id}`, { signal });
      this.#cameras = this.#cameras.map((one) => (one.camera_id === id ? camera : one));
      this.#camera = camera;
      this.#timeline.setCamera(camera);
      await this.#showNearest(camera.last_utc, signal);
    });
  }

  async #step(direction) {
    if (!this.#frame) return;
    const { t_utc: at, frame_id: id } = this.#frame;
    const asked =
      direction > 0
        ? { from_utc: at, order: "oldest", limit: 5 }
        : { to_utc: at, order: "newest", limit: 1 };
    await this.#busy(async (signal) => {
      const where = address("/v1/frames", { camera_id: this.#camera.camera_id, ...asked });
      const { items } = await this.#api.json(where, { signal });
      const next = items.find((one) => one.t_utc !== at || one.frame_id > id);
      if (next) await this.#showFrame(next, signal);
      else say(direction > 0 ? "This is the newest frame." : "This is the oldest frame.");
    });
  }

  async #goTo(t, camera = this.#camera, roi = undefined) {
    if (this.#own) this.#setOwn(null);
    if (camera !== this.#camera) {
      this.#camera = camera;
      this.#frame = null;
      this.#timeline.setCamera(camera);
      this.#parts.select.value = String(camera.camera_id);
    }
    if (roi !== undefined) this.#editor.show(roi);
    this.#roiWords();
    if (!camera.frames) {
      this.#blank();
      this.#tell("", "Nothing of this camera is indexed yet", [
        "Frames appear here while they are ingested.",
      ]);
      this.#told();
      return;
    }
    await this.#busy((signal) => this.#showNearest(t, signal));
  }

  async #showNearest(t, signal) {
    const asked = { camera_id: this.#camera.camera_id, t_utc: t };
    const frame = await this.#api.json(address("/v1/frames/nearest", asked), { signal });
    await this.#showFrame(frame, signal);
    const off = Date.parse(frame.t_utc) - Date.parse(t);
    if (Math.abs(off) >= FAR_MS) {
      const way = off > 0 ? "later" : "earlier";
      this.#tell("", `No frame at ${timeWords(t)}`, [
        `The nearest one is shown: ${spanWords(off)} ${way}.`,
      ]);
    }
  }

  async #showFrame(frame, signal) {
    const { stage, img, when, zone, field } = this.#parts;
    this.#frame = frame;
    this.#subjects.frame = frame;
    stage.style.setProperty("--ratio", String(frame.w_px / frame.h_px));
    when.textContent = timeWords(frame.t_utc);
    zone.textContent = zoneWords(frame.t_utc);
    when.dateTime = frame.t_utc;
    when.title = utcWords(frame.t_utc);
    field.value = fieldTime(frame.t_utc);
    this.#timeline.at = Date.parse(frame.t_utc);
    this.#told();
    await this.#pictures.show(img, frame.picture, signal);
    img.alt = `${this.#camera.name}, ${timeWords(frame.t_utc)}`;
    say(`${this.#camera.name}, ${timeWords(frame.t_utc)}`, 300);
  }

  /** One step at a time: a newer one ends those before it. */
  async #busy(work) {
    this.#going?.abort();
    const going = new AbortController();
    this.#going = going;
    const { stage, note } = this.#parts;
    note.replaceChildren();
    stage.setAttribute("aria-busy", "true");
    try {
      await work(going.signal);
    } catch (error) {
      if (isAbort(error) || going.signal.aborted) return;
      const again = button("Try again", () => this.#busy(work));
      this.#tell("bad", "This picture cannot be shown", [wordsOf(error)], [again]);
    } finally {
      if (this.#going === going) stage.removeAttribute("aria-busy");
    }
  }

  #blank() {
    this.#going?.abort();
    this.#frame = null;
    this.#subjects.frame = null;
    this.#parts.img.removeAttribute("src");
    this.#parts.when.textContent = "";
    this.#timeline.at = null;
  }

  #tell(tone, title, lines = [], actions = []) {
    this.#parts.note.replaceChildren(notice(tone, title, lines, actions));
    say([title, ...lines].join(" "));
  }

  // --- the region in words

  #roiChanged() {
    this.#parts.note.replaceChildren();
    this.#roiWords();
    this.#told();
  }

  #roiWords() {
    const roi = this.#editor.roi;
    const words = roi ? `${inWords(roi)} ${advice(roi)}` : "Draw a box around what you look for, tightly.";
    this.#parts.roi.textContent = words;
  }
}
