// What an answer says in words: what is waited for, what was found, and how to read it.

import { el, notice } from "./dom.mjs";
import { count, spanWords } from "./words.mjs";

export function soFarWords(query) {
  if (query.waiting) return ["Not finished yet", `It is tried again: ${query.waiting.detail || query.waiting.code}`];
  return query.answer === "early"
    ? ["Still searching …", "These come from the footage nearest to your picture. All the rest is being searched; hits will move."]
    : ["Still looking closer …", "All footage was searched. The boxes of the first hits are being made finer."];
}

export function sumWords(query, cameras, loaded) {
  const searched = query.stats?.frames_searched;
  const on = loaded.length === query.hits ? ` on ${count(cameras, "camera")}` : "";
  const within = query.params.zone ? " within the zone" : "";
  if (searched === undefined) return `${within}${on}`;
  return `${within}${on}; ${count(searched, "frame")} searched in ${took(query.stats)}`;
}

function took(stats) {
  const ms = (stats.describe_ms ?? 0) + (stats.early_ms ?? 0) + (stats.search_ms ?? 0) + (stats.look_ms ?? 0);
  return ms < 10_000 ? `${(ms / 1000).toFixed(1)} s` : spanWords(ms);
}

export function waiting(title, words = "", ...more) {
  const made = notice("wait", title, words ? [words] : [], []);
  made.prepend(el("span", { class: "spinner", "aria-hidden": "true" }));
  made.append(...more);
  return made;
}

export function noHits(query) {
  const everything = `Search all cameras and times${query.params.zone ? ", and the whole picture" : ""}.`;
  const limited = query.params.camera_ids || query.params.t_from_utc || query.params.t_to_utc || query.params.zone;
  const searched = query.stats?.frames_searched ?? 0;
  if (searched === 0) {
    return notice("", "There was nothing to search", [
      "No frame of these cameras and times is indexed: nothing was compared, so this says nothing of the subject.",
      el("ul", {}, el("li", {}, "Search all cameras and times.")),
    ]);
  }
  return notice("", "Nothing that looks alike was found", [
    `${count(searched, "frame")} were searched. Nothing found means little: the subject may be too small, or look different elsewhere.`,
    el(
      "ul",
      {},
      limited ? el("li", {}, everything) : null,
      el("li", {}, "Draw the box tighter, around what is particular."),
      el("li", {}, "Take a frame where the subject is nearer to the camera."),
      el("li", {}, "Try the strategy “Shape may bend or scale”."),
    ),
  ]);
}

export function howToRead() {
  return el(
    "details",
    { class: "how" },
    el("summary", {}, "How to read a hit"),
    el("p", {}, "Green cells matched; the white box says where the subject should be. A region on the background is no lead, whatever the numbers."),
    el("p", {}, "The score gives the order within this answer. It is no probability and no degree of identity, and there is no value above which a hit is right."),
    el("ul", {}, el("li", {}, "Followed: traced from frame to frame from your region."), el("li", {}, "Stands out: unlike everything else that was searched."), el("li", {}, "May be chance, no more than chance: other frames look as alike without showing the subject.")),
    el("p", {}, "A person decides, from the footage. A hit is no evidence of identity."),
  );
}
