// The key: asked for once, kept by this tab until it is closed or signed out.

import { Api, wordsOf } from "./api.mjs";
import { button, byId, el, notice } from "./dom.mjs";

const KEPT_AS = "ris-key";

/** The key of this tab, or null. */
export function keptKey() {
  return sessionStorage.getItem(KEPT_AS);
}

export function keepKey(key) {
  sessionStorage.setItem(KEPT_AS, key);
}

/** Forget the key, and all that was shown with it. */
export function forgetKey() {
  sessionStorage.removeItem(KEPT_AS);
}

/** Who a key is, as `/v1/me` says. Rejects as the API does. */
export async function whoIs(key) {
  return await new Api(key).json("/v1/me");
}

/** Ask for the key; `use(key)` may reject, and is asked again then. */
export function showDoor(use, why = null) {
  const door = byId("door");
  const field = el("input", {
    id: "key",
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
    "aria-describedby": "key-note",
  });
  const enter = el("button", { type: "submit", class: "main" }, "Sign in");
  const note = el("div", { id: "key-note", role: "alert" }, why);
  const submit = async (event) => {
    event.preventDefault();
    enter.disabled = true;
    note.replaceChildren(el("p", { class: "fine" }, "Asking the server …"));
    try {
      await use(field.value.trim());
    } catch (error) {
      note.replaceChildren(refusal(error, () => submit(event)));
      field.focus();
    } finally {
      enter.disabled = false;
    }
  };
  door.replaceChildren(
    el(
      "form",
      { class: "panel door", onsubmit: submit, novalidate: true },
      el("h2", {}, "Sign in"),
      el("p", {}, "RIS shows footage only to those who have a key."),
      el("label", { for: "key" }, "API key"),
      field,
      note,
      enter,
      el("p", { class: "fine" }, "The key stays in this tab and is forgotten when you close it."),
      el("p", { class: "fine" }, "No key? Whoever runs RIS makes one: ", el("code", {}, "./ris keys --create NAME --action view --action search")),
    ),
  );
  door.hidden = false;
  field.focus();
}

function refusal(error, again) {
  if (error.status === 401) {
    return notice("bad", "This key is not accepted", [
      "It is mistyped, has expired or was revoked.",
    ]);
  }
  if (error.status === 403) return notice("bad", "This key may not search", [wordsOf(error)]);
  return notice("bad", wordsOf(error), ["Is RIS running?"], [button("Try again", again)]);
}
