// What matched, drawn over a picture: the cells of the region and the box of the subject.

import { svg } from "./dom.mjs";
import { corners } from "./shape.mjs";

/** An overlay of a hit, for a card: not interactive. */
export function hitOverlay(hit) {
  return svg(
    "svg",
    { class: "overlay", viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" },
    ...cellsPath(hit.region_cells, hit.grid, "cells"),
    ...boxParts(hit.box),
  );
}

/** One path for a set of cells; none for none. */
export function cellsPath(cells, { h, w }, name) {
  if (!cells.length) return [];
  const d = [...new Set(cells)]
    .map((cell) => `M${(cell % w) / w} ${Math.floor(cell / w) / h}h${1 / w}v${1 / h}h${-1 / w}z`)
    .join("");
  return [svg("path", { class: name, d })];
}

/** The box of the subject, readable on light and dark. */
export function boxParts(box) {
  if (!box) return [];
  const [x0, y0, x1, y1] = box;
  const at = { x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
  return [svg("rect", { class: "box-under", ...at }), svg("rect", { class: "box", ...at })];
}

/** The outline of the zone that was searched; none for the whole picture. */
export function zoneParts(zone) {
  if (!zone) return [];
  const points = corners(zone).map(([x, y]) => `${x} ${y}`);
  return [svg("path", { class: "zone-edge", d: `M${points.join("L")}z` })];
}

/** The square of one cell. */
export function cellRect(cell, { h, w }, attributes) {
  const at = { x: (cell % w) / w, y: Math.floor(cell / w) / h, width: 1 / w, height: 1 / h };
  return svg("rect", { ...at, ...attributes });
}
