// What the camera view is made of.

import { button, el } from "./dom.mjs";
import { onPictureGiven, ownParts, pictureButton } from "./own.mjs";
import { editorHelp } from "./roi.mjs";

/**
 * The elements, in `root`. `act`: choose(), step(±1), latest(), jump(time), mode(name), clear(),
 * own(file), back().
 */
export function cameraParts(root, act) {
  const select = el("select", { id: "camera-select", onchange: act.choose });
  const img = el("img", { alt: "", draggable: "false" });
  const stage = el(
    "div",
    {
      class: "stage",
      id: "stage",
      tabindex: 0,
      role: "application",
      "aria-roledescription": "region editor",
      "aria-label": "Picture of the camera: draw a region",
      "aria-describedby": "roi-words",
    },
    img,
  );
  const when = el("time", { class: "when" });
  const zone = el("span", { class: "fine zone" });
  const roi = el("p", { id: "roi-words", class: "fine" });
  const note = el("div", { class: "notes" });
  const timeline = el("div", { class: "timeline" });
  const field = el("input", { id: "time-field", type: "datetime-local", step: "1" });
  const jumping = el(
    "form",
    { class: "row jump", onsubmit: (event) => jump(event, field, act) },
    el("label", { for: "time-field" }, "Go to"),
    field,
    el("button", { type: "submit" }, "Go"),
    button("Latest", act.latest, { title: "Newest frame of this camera" }),
  );
  const steps = el(
    "div",
    { class: "row steps" },
    button("‹ Before", () => act.step(-1), { title: "The frame before" }),
    el("p", {}, when, zone),
    button("Next ›", () => act.step(1), { title: "The next frame" }),
  );
  const choosing = el(
    "div",
    { class: "row" },
    el("label", { for: "camera-select" }, "Camera"),
    select,
    pictureButton("Own picture …", act.own),
  );
  const { own, ownName } = ownParts(act);
  const clear = button("Clear", act.clear);
  const all = el(
    "div",
    { hidden: true },
    choosing,
    own,
    steps,
    stage,
    el(
      "div",
      { class: "row" },
      modes("mode", "What to draw", act.mode),
      clear,
      el("span", { class: "grow" }),
      el("span", { id: "search-place" }),
    ),
    el("div", { id: "search-note" }),
    roi,
    timeline,
    el("details", {}, el("summary", {}, "Go to a time, keys"), jumping, editorHelp()),
  );
  root.replaceChildren(note, all);
  onPictureGiven(root, act.own);
  const ofCamera = [choosing, steps, timeline, jumping];
  return { own, ownName, ofCamera, clear, all, select, stage, img, when, zone, roi, note, timeline, field };
}

/** Box or polygon: `name` of the choice, its words for screen readers, `choose(mode)`. */
export function modes(name, words, choose) {
  const mode = (value, shown) =>
    el(
      "label",
      {},
      el("input", {
        type: "radio",
        name,
        value,
        checked: value === "box",
        onchange: () => choose(value),
      }),
      el("span", {}, shown),
    );
  return el(
    "fieldset",
    { class: "choice" },
    el("legend", { class: "unseen" }, words),
    mode("box", "Box"),
    mode("polygon", "Polygon"),
  );
}

function jump(event, field, act) {
  event.preventDefault();
  const at = new Date(field.value);
  if (!Number.isNaN(at.getTime())) act.jump(at.toISOString());
}
