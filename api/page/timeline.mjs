// Time of one camera: where there are frames, where not, and which one is shown.

import { address, isAbort, wordsOf } from "./api.mjs";
import { button, el, svg } from "./dom.mjs";
import { clockWords, count, spanWords, timeWords, utcWords } from "./words.mjs";

const H_PX = 46;
const BAR_PX = 22;
const GAP_MS = 10_000; // shorter ones lie between two sampled frames
const SMALLEST_MS = 5000;
const S = 1000;
const MINUTE = 60 * S;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const STEPS = [
  ...[1, 2, 5, 10, 15, 30].map((n) => n * S),
  ...[1, 2, 5, 10, 15, 30].map((n) => n * MINUTE),
  ...[1, 2, 3, 6, 12].map((n) => n * HOUR),
  ...[1, 2, 7, 14, 28, 91, 364].map((n) => n * DAY),
];

export class Timeline {
  #api;
  #go;
  #camera = null;
  #span = [0, 0]; // of the camera, ms
  #shown = [0, 0]; // of the drawing
  #at = null;
  #coverage = null;
  #asking = null;
  #svg = svg("svg", { class: "time", height: H_PX, "aria-hidden": "true" });
  #slider = el(
    "div",
    {
      class: "time-slider",
      role: "slider",
      tabindex: 0,
      "aria-label": "Time of the picture",
      "aria-valuenow": 0,
    },
    this.#svg,
  );
  #sum = el("p", { class: "fine time-sum" });

  /** `go(ms)`: the user wants the picture of that time. */
  constructor(root, api, go) {
    this.#api = api;
    this.#go = go;
    const zoom = el(
      "div",
      { class: "row time-zoom", role: "group", "aria-label": "Span of the timeline" },
      button("◂", () => this.#pan(-0.5), { "aria-label": "Earlier", title: "Earlier" }),
      button("▸", () => this.#pan(0.5), { "aria-label": "Later", title: "Later" }),
      button("−", () => this.#zoom(4), { "aria-label": "Longer span", title: "Longer span" }),
      button("+", () => this.#zoom(1 / 4), { "aria-label": "Shorter span", title: "Shorter span" }),
      button("All", () => this.#show(this.#span), { "aria-label": "Whole span", title: "Whole span" }),
    );
    root.replaceChildren(this.#slider, el("div", { class: "row spread" }, this.#sum, zoom));
    this.#slider.addEventListener("keydown", (event) => this.#key(event));
    this.#slider.addEventListener("pointerdown", (event) => this.#press(event));
    new ResizeObserver(() => this.#draw()).observe(this.#slider);
  }

  /** Another camera, or the same with more frames. */
  setCamera(camera) {
    const same = this.#camera?.camera_id === camera?.camera_id;
    this.#camera = camera;
    this.#coverage = same ? this.#coverage : null;
    if (!camera?.first_utc) {
      this.#shown = [0, 0];
      this.#draw();
      return;
    }
    const first = Date.parse(camera.first_utc);
    const last = Date.parse(camera.last_utc);
    const margin = Math.max(SMALLEST_MS / 2, (last - first) * 0.03);
    this.#span = [first - margin, last + margin];
    if (!same || this.#shown[0] === this.#shown[1]) this.#show(this.#span);
    else this.#load();
  }

  /** The time of the picture. */
  set at(ms) {
    this.#at = ms;
    const [from, to] = this.#shown;
    if (ms !== null && to > from && (ms < from || ms > to)) this.#around(ms, to - from);
    else this.#draw();
  }

  #around(ms, length) {
    this.#show([ms - length / 2, ms + length / 2]);
  }

  #zoom(factor) {
    const [from, to] = this.#shown;
    const longest = this.#span[1] - this.#span[0];
    const length = Math.min(longest, Math.max(SMALLEST_MS, (to - from) * factor));
    if (length >= longest) this.#show(this.#span);
    else this.#around(this.#at ?? (from + to) / 2, length);
  }

  #pan(share) {
    const [from, to] = this.#shown;
    const by = share * (to - from);
    const most = [this.#span[0] - from, this.#span[1] - to];
    const moved = Math.min(most[1], Math.max(most[0], by));
    if (to > from) this.#show([from + moved, to + moved]);
  }

  #show(span) {
    this.#shown = [...span];
    this.#draw();
    this.#load();
  }

  async #load() {
    this.#asking?.abort();
    this.#asking = new AbortController();
    const { signal } = this.#asking;
    const [from, to] = this.#shown;
    const bucket = STEPS.find((step) => (to - from) / step <= 250) ?? STEPS.at(-1);
    const asked = {
      from_utc: new Date(from).toISOString(),
      to_utc: new Date(to).toISOString(),
      bucket_s: bucket / S,
    };
    const where = `/v1/cameras/${this.#camera.camera_id}/coverage`;
    try {
      this.#coverage = await this.#api.json(address(where, asked), { signal });
      this.#draw();
    } catch (error) {
      if (isAbort(error)) return;
      this.#coverage = null;
      this.#sum.textContent = `Coverage is not known: ${wordsOf(error)}`;
    }
  }

  // --- input

  #timeAt(event) {
    const box = this.#slider.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    return this.#shown[0] + share * (this.#shown[1] - this.#shown[0]);
  }

  #press(event) {
    if (event.button !== 0 || this.#shown[0] === this.#shown[1]) return;
    event.preventDefault();
    this.#slider.focus({ preventScroll: true });
    this.#slider.setPointerCapture(event.pointerId);
    const follow = (moving) => {
      this.#at = this.#timeAt(moving);
      this.#draw();
    };
    const end = (ended) => {
      this.#slider.removeEventListener("pointermove", follow);
      this.#slider.removeEventListener("pointerup", end);
      this.#slider.removeEventListener("pointercancel", end);
      this.#go(this.#timeAt(ended));
    };
    follow(event);
    this.#slider.addEventListener("pointermove", follow);
    this.#slider.addEventListener("pointerup", end);
    this.#slider.addEventListener("pointercancel", end);
  }

  #key(event) {
    const [from, to] = this.#shown;
    const length = to - from;
    const at = this.#at ?? from;
    const wanted = {
      ArrowLeft: at - length / 100,
      ArrowDown: at - length / 100,
      ArrowRight: at + length / 100,
      ArrowUp: at + length / 100,
      PageDown: at - length / 10,
      PageUp: at + length / 10,
      Home: this.#span[0],
      End: this.#span[1],
    }[event.key];
    if (wanted === undefined || !length) return;
    event.preventDefault();
    this.#at = Math.min(this.#span[1], Math.max(this.#span[0], wanted));
    this.#draw();
    this.#go(this.#at);
  }

  // --- drawing

  #draw() {
    const [from, to] = this.#shown;
    const width = this.#slider.clientWidth;
    if (to <= from || !width) {
      this.#svg.replaceChildren();
      this.#sum.textContent = "";
      return;
    }
    const x = (ms) => ((ms - from) / (to - from)) * width;
    const parts = [svg("rect", { class: "time-ground", width, height: BAR_PX })];
    if (this.#coverage) parts.push(...this.#drawCoverage(x, from, to));
    parts.push(...ticks(from, to, width).map((at) => drawTick(at, x(at), to - from, width)));
    if (this.#at !== null) {
      const here = Math.min(width - 1, Math.max(1, x(this.#at)));
      parts.push(
        svg("path", { class: "time-now", d: `M${here} 0v${BAR_PX + 3}` }),
        svg("circle", { class: "time-now", cx: here, cy: BAR_PX + 3, r: 3.5 }),
      );
    }
    this.#svg.replaceChildren(...parts);
    this.#slider.setAttribute("aria-valuemin", Math.round(this.#span[0] / S));
    this.#slider.setAttribute("aria-valuemax", Math.round(this.#span[1] / S));
    this.#slider.setAttribute("aria-valuenow", Math.round((this.#at ?? from) / S));
    this.#slider.setAttribute("aria-valuetext", this.#at === null ? "none" : timeWords(this.#at));
  }

  #drawCoverage(x, from, to) {
    const { buckets, bucket_s: bucketS, gaps, frames } = this.#coverage;
    const parts = [];
    const real = gaps
      .map((gap) => [Math.max(from, Date.parse(gap.from_utc)), Math.min(to, Date.parse(gap.to_utc))])
      .filter(([begin, end]) => end - begin >= GAP_MS && end > this.#first && begin < this.#last);
    for (const [begin, end] of real) {
      const title = svg("title", {}, `No frames: ${timeWords(begin)} to ${timeWords(end)}`);
      const box = { x: x(begin), width: Math.max(1, x(end) - x(begin)), height: BAR_PX };
      parts.push(svg("rect", { class: "time-gap", fill: "url(#hatch)", ...box }, title));
    }
    for (const bucket of buckets) {
      const begin = Date.parse(bucket.from_utc);
      const wide = Math.max(1.5, x(begin + bucketS * S) - x(begin) - 0.5);
      parts.push(svg("rect", { class: "time-held", x: x(begin), width: wide, height: BAR_PX }));
    }
    const longest = real.reduce((most, [begin, end]) => Math.max(most, end - begin), 0);
    const gapWords = real.length
      ? `${count(real.length, "gap")} (hatched), the longest ${spanWords(longest)}`
      : "no gaps";
    this.#sum.textContent = `${count(frames, "frame")} in ${spanWords(to - from)}, ${gapWords}`;
    this.#sum.title = `${utcWords(from)} to ${utcWords(to)}`;
    return [hatch(), ...parts];
  }

  get #first() {
    return Date.parse(this.#camera.first_utc);
  }

  get #last() {
    return Date.parse(this.#camera.last_utc);
  }
}

function hatch() {
  const line = svg("path", { d: "M0 8L8 0", class: "time-hatch" });
  const box = { id: "hatch", width: 8, height: 8, patternUnits: "userSpaceOnUse" };
  return svg("defs", {}, svg("pattern", box, line));
}

/** Round times of the viewer's zone, about one for 90 px. */
export function ticks(from, to, width) {
  const most = Math.max(2, Math.floor(width / 90));
  const step = STEPS.find((one) => (to - from) / one <= most) ?? STEPS.at(-1);
  const shift = new Date(from).getTimezoneOffset() * MINUTE;
  const found = [];
  for (let at = Math.ceil((from - shift) / step) * step + shift; at <= to; at += step) found.push(at);
  return found;
}

function drawTick(at, x, length, width) {
  const words =
    length > 3 * DAY
      ? new Date(at).toLocaleDateString(undefined, { month: "short", day: "numeric" })
      : clockWords(at).slice(0, length > 10 * MINUTE ? 5 : 8);
  const anchor = x < 25 ? "start" : x > width - 25 ? "end" : "middle";
  return svg(
    "g",
    { class: "time-tick" },
    svg("path", { d: `M${x} ${BAR_PX}v5` }),
    svg("text", { x, y: H_PX - 5, "text-anchor": anchor }, words),
  );
}
