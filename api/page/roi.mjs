// The region: a box or polygon drawn on the picture with mouse, finger, pen or keys.

import { el, say, svg } from "./dom.mjs";
import { bounds, boxBetween, dragged, grown, handles, moved, within } from "./shape.mjs";
import { percent } from "./words.mjs";

const STEP = 0.01;
const CLICK_PX = 4;
const FIRST_BOX = { box: [0.35, 0.3, 0.65, 0.7] };
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class RegionEditor {
  #stage;
  #layer = svg("svg", { class: "roi", "aria-hidden": "true" });
  #roi = null;
  #mode = "box";
  #draft = []; // corners of a polygon that is not closed
  #pen = [0.5, 0.5]; // where the keyboard would put the next corner
  #drag = null;
  #told;
  #clicked;

  /**
   * On a positioned element that has the picture's size. `told(roi)` hears of each change,
   * `clicked(point)` of clicks that draw nothing.
   */
  constructor(stage, told, clicked = () => {}) {
    this.#stage = stage;
    this.#told = told;
    this.#clicked = clicked;
    stage.append(this.#layer);
    stage.addEventListener("keydown", (event) => this.#key(event));
    this.#layer.addEventListener("pointerdown", (event) => this.#press(event));
    this.#layer.addEventListener("pointermove", (event) => this.#move(event));
    this.#layer.addEventListener("pointerup", (event) => this.#release(event));
    this.#layer.addEventListener("pointercancel", () => this.#giveUp());
    stage.addEventListener("focus", () => this.#draw());
    stage.addEventListener("blur", () => this.#draw());
    new ResizeObserver(() => this.#draw()).observe(stage);
  }

  get roi() {
    return this.#roi;
  }

  /** Show a region, or none; nobody is told. */
  show(roi) {
    this.#roi = roi;
    this.#draft = [];
    this.#drag = null;
    this.#draw();
  }

  /** Take a region as if it had been drawn. */
  take(roi) {
    this.#set(roi);
    this.#stage.focus({ preventScroll: true });
    say(inWords(roi));
  }

  /** "box" or "polygon": what is drawn next. */
  set mode(mode) {
    this.#mode = mode;
    this.#draft = [];
    this.#draw();
  }

  clear() {
    this.#set(null);
    say("Region removed.");
  }

  #set(roi) {
    this.#roi = roi;
    this.#draft = [];
    this.#draw();
    this.#told(roi);
  }

  // --- pointers

  #at(event) {
    const box = this.#layer.getBoundingClientRect();
    return [
      within((event.clientX - box.left) / box.width, 0, 1),
      within((event.clientY - box.top) / box.height, 0, 1),
    ];
  }

  #press(event) {
    if (event.button !== 0 || !event.isPrimary) return;
    event.preventDefault(); // no text selection, no picture dragging
    this.#stage.focus({ preventScroll: true });
    const at = this.#at(event);
    const { handle, corner, body } = event.target.dataset;
    if (this.#draft.length && corner === "0") {
      this.#close();
      return;
    }
    if (this.#mode === "polygon" && !handle && !corner && !body) {
      this.#addCorner(at);
      return;
    }
    this.#layer.setPointerCapture(event.pointerId);
    const kind = handle ? "handle" : corner && this.#roi?.polygon ? "corner" : body ? "body" : "new";
    this.#drag = { kind, handle, corner: Number(corner), from: at, before: this.#roi, event };
  }

  #move(event) {
    const drag = this.#drag;
    if (!drag) return;
    const far = Math.hypot(event.clientX - drag.event.clientX, event.clientY - drag.event.clientY);
    if (!drag.begun && far < CLICK_PX) return;
    drag.begun = true;
    const at = this.#at(event);
    if (drag.kind === "new") this.#roi = { box: boxBetween(drag.from, at) };
    if (drag.kind === "handle") this.#roi = { box: dragged(drag.before.box, drag.handle, at) };
    if (drag.kind === "body") {
      this.#roi = moved(drag.before, at[0] - drag.from[0], at[1] - drag.from[1]);
    }
    if (drag.kind === "corner") {
      const polygon = drag.before.polygon.map((one, place) => (place === drag.corner ? at : one));
      this.#roi = { polygon };
    }
    this.#draw();
  }

  #release(event) {
    if (!this.#drag) return;
    this.#move(event);
    const { begun, kind, from } = this.#drag;
    this.#drag = null;
    if (begun) this.#set(this.#roi);
    else if (kind === "new" || kind === "body") this.#clicked(from);
  }

  #giveUp() {
    if (this.#drag) this.show(this.#drag.before);
  }

  // --- polygons

  #addCorner(at) {
    const box = this.#layer.getBoundingClientRect();
    const near = (point) =>
      Math.hypot((point[0] - at[0]) * box.width, (point[1] - at[1]) * box.height) < 3 * CLICK_PX;
    if (this.#draft.length >= 3 && near(this.#draft[0])) {
      this.#close();
      return;
    }
    if (this.#draft.length && near(this.#draft.at(-1))) return; // second half of a double click
    if (!this.#draft.length) this.#roi = null;
    this.#draft.push(at);
    this.#pen = at;
    this.#draw();
    say(`Corner ${this.#draft.length} set.`);
  }

  #close() {
    if (this.#draft.length < 3) {
      say("A polygon needs three corners.");
      return;
    }
    this.#set({ polygon: this.#draft });
    say(`Polygon closed: ${inWords(this.#roi)}`);
  }

  // --- keys

  #key(event) {
    if (event.target !== this.#stage || event.ctrlKey || event.metaKey || event.altKey) return;
    const [x, y] = KEYS[event.key] ?? [0, 0];
    let handled = true;
    if (x || y) this.#arrow(x * STEP, y * STEP, event.shiftKey);
    else if (event.key === "Delete" || event.key === "Backspace") this.clear();
    else if (event.key === "Enter") this.#enter();
    else if (event.key === " " && this.#mode === "polygon") this.#addCorner([...this.#pen]);
    else if (event.key === "Escape" && this.#draft.length) {
      this.#draft = [];
      this.#draw();
      say("Polygon given up.");
    } else handled = false;
    if (handled) event.preventDefault();
  }

  #arrow(dx, dy, resize) {
    if (!this.#roi) {
      if (this.#mode === "polygon") {
        this.#pen = [within(this.#pen[0] + dx, 0, 1), within(this.#pen[1] + dy, 0, 1)];
        this.#draw();
        say(`At ${percent(this.#pen[0])} across, ${percent(this.#pen[1])} down.`, 300);
      }
      return;
    }
    this.#set(resize ? grown(this.#roi, dx, dy) : moved(this.#roi, dx, dy));
    say(inWords(this.#roi), 400);
  }

  #enter() {
    if (this.#draft.length) this.#close();
    else if (!this.#roi && this.#mode === "box") {
      this.#set(FIRST_BOX);
      say(inWords(FIRST_BOX));
    }
  }

  // --- drawing

  #draw() {
    const { width, height } = this.#stage.getBoundingClientRect();
    if (!width || !height) return;
    const px = ([x, y]) => [x * width, y * height];
    const parts = [];
    if (this.#roi) parts.push(...this.#drawRegion(px, width, height));
    if (this.#draft.length) parts.push(...drawDraft(this.#draft.map(px)));
    const keyboard = this.#mode === "polygon" && !this.#roi && this.#stage.matches(":focus-visible");
    if (keyboard) {
      const [x, y] = px(this.#pen);
      parts.push(svg("path", { class: "pen", d: `M${x - 12} ${y}h24M${x} ${y - 12}v24` }));
    }
    this.#layer.replaceChildren(...parts);
  }

  #drawRegion(px, width, height) {
    const roi = this.#roi;
    const outline = `${path(roi.polygon ? roi.polygon.map(px) : Object.values(cornersOf(roi)).map(px))}Z`;
    const shade = svg("path", { class: "shade", d: `M0 0H${width}V${height}H0Z${outline}` });
    const parts = [
      shade,
      svg("path", { class: "body", d: outline, "data-body": "1" }),
      svg("path", { class: "edge-under", d: outline }),
      svg("path", { class: "edge", d: outline }),
    ];
    const [x0, y0, x1, y1] = bounds(roi);
    const room = Math.min((x1 - x0) * width, (y1 - y0) * height) / 3;
    const reach = within(room, 7, matchMedia("(pointer: coarse)").matches ? 22 : 12);
    const places = roi.box
      ? Object.entries(handles(roi.box)).map(([name, at]) => ["handle", name, at])
      : roi.polygon.map((at, place) => ["corner", place, at]);
    for (const [kind, name, at] of places) {
      const [x, y] = px(at);
      const grip = { class: `grip ${name}`, cx: x, cy: y, r: reach, [`data-${kind}`]: name };
      parts.push(svg("circle", { class: "knob", cx: x, cy: y, r: 5 }), svg("circle", grip));
    }
    return parts;
  }
}

function cornersOf(roi) {
  const { nw, ne, se, sw } = handles(roi.box);
  return { nw, ne, se, sw };
}

function path(points) {
  return `M${points.map(([x, y]) => `${x} ${y}`).join("L")}`;
}

function drawDraft(points) {
  const parts = [
    svg("path", { class: "edge-under", d: path(points) }),
    svg("path", { class: "edge", d: path(points) }),
  ];
  points.forEach(([x, y], place) => {
    parts.push(svg("circle", { class: place ? "knob" : "knob first", cx: x, cy: y, r: 5 }));
    if (!place) parts.push(svg("circle", { class: "grip", cx: x, cy: y, r: 14, "data-corner": 0 }));
  });
  return parts;
}

/** A region for those who do not see it. */
export function inWords(roi) {
  const [x0, y0, x1, y1] = bounds(roi);
  const what = roi.box ? "Box" : `Polygon of ${roi.polygon.length} corners`;
  return (
    `${what}: from ${percent(x0)} to ${percent(x1)} across,` +
    ` from ${percent(y0)} to ${percent(y1)} down.`
  );
}

/** How the region is drawn, for the page. */
export function editorHelp() {
  const row = (keys, does) => el("li", {}, ...keys.flatMap((key) => [el("kbd", {}, key), " "]), does);
  return el(
    "ul",
    { class: "help" },
    row(["Drag"], "draws a box; its handles and its inside can be dragged"),
    row(["Enter"], "puts a box in the middle, or closes a polygon"),
    row(["Arrows"], "move the region by 1 % of the picture"),
    row(["Shift", "Arrows"], "resize it"),
    row(["Click", "Space"], "sets a corner of a polygon; arrows move the cross"),
    row(["Delete"], "removes the region"),
    row(["Esc"], "gives up a polygon that is not closed"),
  );
}
