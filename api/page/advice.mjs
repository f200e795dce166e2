// What the page advises: on a region's size, and where nothing is indexed.

import { button, el, notice } from "./dom.mjs";
import { cellsOf } from "./shape.mjs";
import { count } from "./words.mjs";

const USUAL_GRID = { h: 16, w: 16 };
const FEW_CELLS = 9;
const MUCH = 0.5;

/** On the size of a region. */
export function advice(roi) {
  const cells = cellsOf(roi, USUAL_GRID).length;
  const about = `About ${count(cells, "cell")} of the picture.`;
  if (cells < FEW_CELLS) {
    return `${about} Under nine there is little to be found by: take a frame where it is nearer.`;
  }
  if (cells > MUCH * USUAL_GRID.h * USUAL_GRID.w) {
    return `${about} That is much: the background inside is searched for too.`;
  }
  return about;
}

/** The camera that was filmed last. */
export function latest(cameras) {
  const held = cameras.filter((one) => one.frames);
  return held.reduce((best, one) => (best && best.last_utc >= one.last_utc ? best : one), held[0]) ?? cameras[0];
}

/** Where there is nothing to choose from. */
export function noCameras() {
  return notice("", "There is no camera yet", [
    el("p", {}, "Index a recorded file: ", el("code", {}, "./ris ingest yard.mp4 --camera yard")),
    el("p", {}, "or add a live camera: ", el("code", {}, "./ris feed add gate rtsp://…")),
    "If there are cameras, this key was not made for them.",
  ], [button("Look again", () => location.reload())]);
}
