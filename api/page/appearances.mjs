// The subject's way: appearances in order of time, one row for each camera.

import { button, el } from "./dom.mjs";
import { ticks } from "./timeline.mjs";
import { chanceWords, clockWords, count, spanWords, timeWords, utcWords } from "./words.mjs";

const LEAST_MS = 10_000;

/** Timeline and list of an answer's appearances. `open(rank)` shows the best hit of one. */
export async function appearancesView(api, query, open, signal) {
  const { items } = await api.json(`/v1/queries/${query.query_id}/appearances`, { signal });
  const rows = new Map();
  for (const one of items) {
    if (!rows.has(one.camera_id)) rows.set(one.camera_id, []);
    rows.get(one.camera_id).push(one);
  }
  return el(
    "div",
    { class: "appearances" },
    el("p", { class: "fine" }, `${count(items.length, "appearance")} on ${count(rows.size, "camera")}, in order of time. Each opens its best frame.`),
    drawTracks(items, [...rows.values()], open),
    el("ol", { class: "way" }, ...items.map((one) => listed(one, open))),
  );
}

function drawTracks(items, rows, open) {
  const from = Math.min(...items.map((one) => Date.parse(one.from_utc)));
  const to = Math.max(...items.map((one) => Date.parse(one.to_utc)), from + LEAST_MS);
  const margin = (to - from) * 0.02;
  const share = (ms) => ((ms - from + margin) / (to - from + 2 * margin)) * 100;
  const axis = el("div", { class: "axis", "aria-hidden": "true" });
  for (const at of ticks(from, to, 420)) {
    axis.append(placed(el("span", { class: "tick" }, axisWords(at, to - from)), share(at)));
  }
  const tracks = rows.map((appearances) => {
    const lane = el("div", { class: "lane" });
    for (const one of appearances) {
      const begin = share(Date.parse(one.from_utc));
      const { tone } = chanceWords(one.best);
      const bar = button("", () => open(one.best.rank), {
        class: `bar ${tone}`,
        "aria-label": inWords(one),
        title: inWords(one),
      });
      bar.style.width = `${share(Date.parse(one.to_utc)) - begin}%`;
      lane.append(placed(bar, begin));
    }
    return el("div", { class: "track" }, el("span", { class: "track-name" }, appearances[0].camera_name), lane);
  });
  return el("div", { class: "tracks" }, ...tracks, el("div", { class: "track" }, el("span", {}), axis));
}

function placed(element, percent) {
  element.style.left = `min(${percent}%, calc(100% - 14px))`;
  return element;
}

function axisWords(at, length) {
  const date = new Date(at);
  if (length > 2 * 86_400_000) {
    return date.toLocaleDateString(undefined, { month: "short", day: "numeric" });
  }
  return clockWords(at).slice(0, length > 600_000 ? 5 : 8);
}

function listed(one, open) {
  const { tone, words } = chanceWords(one.best);
  return el(
    "li",
    {},
    el(
      "button",
      { type: "button", class: "way-line", onclick: () => open(one.best.rank) },
      el("time", { datetime: one.from_utc, title: utcWords(one.from_utc) }, timeWords(one.from_utc)),
      el("strong", {}, one.camera_name),
      el("span", { class: "fine" }, lengthWords(one)),
      el("span", { class: `chance ${tone}` }, words),
    ),
  );
}

function lengthWords(one) {
  if (one.frames === 1) return "1 frame";
  return `${one.frames} frames in ${spanWords(Date.parse(one.to_utc) - Date.parse(one.from_utc))}`;
}

function inWords(one) {
  const { words } = chanceWords(one.best);
  return `${one.camera_name}, ${timeWords(one.from_utc)}, ${lengthWords(one)}: ${words}`;
}
