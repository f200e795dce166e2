// Where the page is, kept in the address behind #, so that links, reload and the back button work.
//   #camera=3&t=2026-05-01T08:00:05Z&box=0.3,0.2,0.6,0.9     a frame and a region
//   #query=UUID                                               a search, `hit`: one of its hits

/** The place of an address: {camera, t, roi, query, hit}, null where it says nothing. */
export function readPlace(hash = location.hash) {
  const given = new URLSearchParams(hash.replace(/^#/, "").replaceAll("+", "%2B"));
  const hit = Number.parseInt(given.get("hit") ?? "", 10);
  const query = given.get("query");
  return {
    camera: given.get("camera"),
    t: time(given.get("t")),
    roi: box(given.get("box")) ?? polygon(given.get("polygon")),
    query: /^[0-9a-f-]{36}$/i.test(query ?? "") ? query : null,
    hit: hit > 0 ? hit : null,
  };
}

/** The address of a place. */
export function addressOf(place) {
  const parts = [];
  if (place.camera !== null) parts.push(`camera=${encodeURIComponent(place.camera)}`);
  if (place.t) parts.push(`t=${encodeURIComponent(place.t).replaceAll("%3A", ":")}`);
  if (place.roi?.box) parts.push(`box=${place.roi.box.map(short).join(",")}`);
  if (place.roi?.polygon) {
    parts.push(`polygon=${place.roi.polygon.map((point) => point.map(short).join(",")).join(";")}`);
  }
  if (place.query) parts.push(`query=${place.query}`);
  if (place.query && place.hit) parts.push(`hit=${place.hit}`);
  return `#${parts.join("&")}`;
}

/** Write the place: as a new entry of the history, or in place of the present one. */
export function writePlace(place, { anew = false } = {}) {
  const hash = addressOf(place);
  if (hash === location.hash) return;
  history[anew ? "pushState" : "replaceState"](null, "", hash === "#" ? location.pathname : hash);
}

/** Call `listener` with the place when the user goes back, forth, or changes the address. */
export function onPlace(listener) {
  addEventListener("popstate", () => listener(readPlace()));
}

function short(value) {
  return String(Math.round(value * 1e4) / 1e4);
}

function time(text) {
  return text && !Number.isNaN(Date.parse(text)) && /(Z|[+-]\d\d:\d\d)$/i.test(text) ? text : null;
}

function shares(text) {
  const values = text.split(",").map(Number);
  return values.every((value) => value >= 0 && value <= 1) ? values : [];
}

function box(text) {
  const values = text ? shares(text) : [];
  if (values.length !== 4 || values[0] >= values[2] || values[1] >= values[3]) return null;
  return { box: values };
}

function polygon(text) {
  const points = text ? text.split(";").map(shares) : [];
  const whole = points.length >= 3 && points.every((point) => point.length === 2);
  return whole ? { polygon: points } : null;
}
