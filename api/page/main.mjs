// Puts the page together: signed out or at the desk, and the place of the address.

import { Answer } from "./answer.mjs";
import { Api, freshName, isAbort, Refused, wordsOf } from "./api.mjs";
import { AskForm } from "./ask.mjs";
import { CameraView } from "./camera.mjs";
import { button, byId, el, notice } from "./dom.mjs";
import { Evidence } from "./evidence.mjs";
import { HitView } from "./hit.mjs";
import { Marks } from "./marks.mjs";
import { Pictures } from "./pictures.mjs";
import { onPlace, readPlace, writePlace } from "./place.mjs";
import { forgetKey, keepKey, keptKey, showDoor, whoIs } from "./session.mjs";
import { Watching } from "./watching.mjs";

class Desk {
  #api;
  #view;
  #form;
  #answer;
  #hit;
  #marks;
  #watching;
  #place = readPlace();
  #sent = null; // a submission that may be sent again: {body, picture, name}
  #drawn = null; // the own picture of a search: {query, picture}

  constructor(api, mayExport) {
    this.#api = api;
    const pictures = new Pictures(api);
    const bar = el("div", { class: "row bar", role: "region", "aria-label": "Marked hits" });
    this.#marks = new Marks(bar, () => this.#searchWithMarks());
    const evidence = new Evidence(api, mayExport);
    const desk = { api, pictures, marks: this.#marks, bar, evidence };
    this.#view = new CameraView(byId("camera"), api, pictures, () => this.#moved());
    this.#form = new AskForm(byId("form"), desk, (params) => this.#search(params), () => this.#view.place);
    this.#answer = new Answer(byId("found"), desk, {
      known: (query) => this.#showQuery(query),
      open: (rank) => this.#openHit(rank),
      begun: () => this.#watching.refresh(),
      pictureOf: (query) => this.#pictureOf(query),
    });
    this.#watching = new Watching(byId("watching"), api, pictures);
    this.#hit = new HitView(desk, {
      closed: () => this.#write({ hit: null }),
      go: (rank) => this.#openHit(rank, false),
      searchFrom: (hit) => this.#searchFrom(hit),
      openAt: (hit) => this.#openAt(hit),
    });
    onPlace((place) => this.#go(place));
  }

  /** Cameras, then what the address says. */
  async start() {
    this.#answer.clear();
    await this.#view.load();
    this.#form.setCameras(this.#view.cameras);
    await Promise.all([this.#go(this.#place, true), this.#watching.refresh()]);
  }

  async #go(place, first = false) {
    const before = this.#place;
    this.#place = place;
    const changedQuery = first ? place.query : place.query !== before.query;
    const names = place.camera !== null;
    if (names || (first && !place.query)) await this.#view.show(place);
    if (changedQuery && place.query) {
      if (!place.hit) revealAnswer();
      await this.#answer.follow(place.query);
    } else if (!place.query) this.#answer.clear();
    if (place.query && place.hit) await this.#openHit(place.hit, false);
    else this.#hit.close();
  }

  /** The user moved in time, to another camera, or changed the region. */
  #moved() {
    this.#form.timed = this.#view.frame !== null;
    this.#write(this.#view.place);
  }

  #write(changes, anew = false) {
    this.#place = { ...this.#place, ...changes };
    writePlace(this.#place, { anew });
  }

  // --- searching

  async #search(params) {
    const { frame, own, roi } = this.#view;
    if (!(frame || own) || !roi) {
      this.#form.refuse(frame || own ? "Draw a region on the picture first." : "There is no picture to search from.");
      this.#view.focusPicture();
      return;
    }
    await (own ? this.#submit({ roi, params }, own) : this.#submit({ frame_id: frame.frame_id, roi, params }));
  }

  async #searchWithMarks() {
    const { query } = this.#answer;
    await this.#searchLike(query, { ...query.params, ...this.#marks.params });
  }

  /** What a search was drawn on, asked with other parameters. */
  async #searchLike(query, params) {
    const { frame_id: frameId, roi } = query;
    let picture = null;
    try {
      picture = await this.#pictureOf(query);
    } catch (error) {
      if (!isAbort(error)) this.#answer.refused(error, () => this.#searchLike(query, params));
      return;
    }
    await this.#submit(picture ? { roi, params } : { frame_id: frameId, roi, params }, picture);
  }

  async #searchFrom(hit) {
    this.#hit.close();
    const params = this.#form.params;
    await this.#view.showFrame(hit.frame_id, { box: hit.box });
    await this.#submit({ frame_id: hit.frame_id, roi: { box: hit.box }, params });
  }

  /** `picture`: the own one that it was drawn on, where it was no frame. */
  async #submit(body, picture = null) {
    const before = this.#sent;
    const same = before?.picture === picture && JSON.stringify(before.body) === JSON.stringify(body);
    this.#sent = same ? before : { body, picture, name: freshName() };
    this.#form.busy = true;
    this.#form.refuse("");
    this.#answer.sending();
    revealAnswer();
    try {
      const query = await this.#api.postDrawn("/v1/queries", body, picture, this.#sent.name);
      this.#sent = null;
      if (picture) this.#drawn = { query: query.query_id, picture };
      this.#write({ query: query.query_id, hit: null }, true);
      this.#form.busy = false;
      await this.#answer.follow(query.query_id);
    } catch (error) {
      if (isAbort(error)) return;
      this.#answer.refused(error, () => this.#submit(body, picture));
    } finally {
      this.#form.busy = false;
    }
  }

  /** A search was opened: show what it was drawn on, unless the address says something else. */
  async #showQuery(query) {
    this.#form.showParams(query.params);
    if (this.#place.camera !== null) return;
    try {
      if (query.frame_id !== null) await this.#view.showFrame(query.frame_id, query.roi);
      else await this.#showDrawn(query);
    } catch (error) {
      if (!(error instanceof Refused)) throw error; // the camera is not for this key
    }
  }

  async #showDrawn(query) {
    const picture = await this.#pictureOf(query);
    const shown = this.#view.own === picture;
    if (!shown) await this.#view.showOwn(picture, "of this search", query.roi);
  }

  /** The own picture of a search; null where it was a frame. */
  async #pictureOf(query) {
    if (query.frame_id !== null) return null;
    if (this.#drawn?.query !== query.query_id) {
      const picture = await this.#api.blob(`/v1/queries/${query.query_id}/picture`);
      this.#drawn = { query: query.query_id, picture };
    }
    return this.#drawn.picture;
  }

  // --- hits

  async #openHit(rank, anew = true) {
    const hit = await this.#answer.hit(rank);
    if (!hit) return;
    this.#write({ hit: rank }, anew);
    await this.#hit.show(this.#answer.query, hit);
  }

  async #openAt(hit) {
    this.#hit.close();
    await this.#view.showFrame(hit.frame_id, null);
    byId("look").scrollIntoView({ block: "start" });
    this.#view.focusPicture();
  }
}

/** Where the answer stands below the desk, a link to a search leads to the answer. */
function revealAnswer() {
  const below = matchMedia("(max-width: 999px)").matches;
  if (below) byId("answer").scrollIntoView({ block: "start" });
}

// --- signed in or not

function signOut(why = null) {
  forgetKey();
  // All that the key showed is in this document: a fresh one has none of it.
  sessionStorage.setItem("ris-said", why ?? "");
  location.reload();
}

async function signIn(key) {
  const me = await whoIs(key);
  const lacks = ["view", "search"].filter((one) => !me.actions.includes(one) && !me.actions.includes("admin"));
  if (lacks.length) {
    throw new Refused(403, { code: "forbidden", detail: `It lacks: ${lacks.join(", ")}. Ask for one that allows both.` });
  }
  keepKey(key);
  byId("door").hidden = true;
  byId("door").replaceChildren();
  byId("who").hidden = false;
  byId("who-words").textContent = `Key ${me.key_id}`;
  byId("desk").hidden = false;
  const unknown = () => signOut("This key is not accepted any more: it has expired or was revoked.");
  const mayExport = ["export", "admin"].some((one) => me.actions.includes(one));
  const desk = new Desk(new Api(key, unknown), mayExport);
  await begin(desk);
}

async function begin(desk) {
  try {
    await desk.start();
  } catch (error) {
    if (isAbort(error) || error.status === 401) return;
    const again = button("Try again", () => begin(desk));
    byId("found").replaceChildren(notice("bad", wordsOf(error), ["Cameras and searches cannot be shown."], [again]));
  }
}

async function open() {
  byId("sign-out").addEventListener("click", () => signOut());
  byId("to-answer").addEventListener("click", () => {
    byId("answer-title").focus();
    byId("answer-title").scrollIntoView();
  });
  const said = sessionStorage.getItem("ris-said");
  sessionStorage.removeItem("ris-said");
  const key = keptKey();
  if (!key) {
    showDoor(signIn, said ? notice("bad", said) : null);
    return;
  }
  try {
    await signIn(key);
  } catch (error) {
    if (error.status === 401) signOut("This key is not accepted any more: it has expired or was revoked.");
    else showDoor(signIn, notice("bad", wordsOf(error), [], [button("Try again", () => location.reload())]));
  }
}

await open();
