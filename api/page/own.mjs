// A picture of one's own to search with: chosen, dropped anywhere on the page, or pasted. It stays
// in this page until it is searched with.

import { button, el } from "./dom.mjs";

/** A button that asks for a file. `take(file)` gets it; `words` are what it says. */
export function pictureButton(words, take) {
  const input = el("input", {
    type: "file",
    accept: "image/*",
    hidden: true,
    onchange: () => {
      if (input.files.length) take(input.files[0]);
      input.value = ""; // the same file may be chosen again
    },
  });
  const ask = button(words, () => input.click(), { title: "Search with a picture from a file" });
  return el("span", {}, ask, input);
}

/** What stands above an own picture in place of camera and time. `act`: own(file), back(). */
export function ownParts(act) {
  const ownName = el("strong", { class: "own-name" });
  const own = el(
    "div",
    { class: "own", hidden: true },
    el("p", {}, "Own picture: ", ownName),
    el("p", { class: "fine" }, WARNING),
    el("div", { class: "row" }, button("Back to the camera", act.back), pictureButton("Another picture …", act.own)),
  );
  return { own, ownName };
}

const WARNING =
  "It is sent when you search. Nothing is followed from it and its background is not known: if you" +
  " have a frame of a camera, search from that.";

/** Files that are dropped on the page or pasted go to `take(file)`; `shown` looks ready meanwhile. */
export function onPictureGiven(shown, take) {
  let leaving = 0;
  const holdsFile = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault(); // or the browser leaves the page for the file
    event.dataTransfer.dropEffect = "copy";
    shown.classList.add("dropping");
    clearTimeout(leaving); // dragover comes again and again; when it ends, the file has left
    leaving = setTimeout(() => shown.classList.remove("dropping"), 400);
  });
  document.addEventListener("drop", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    shown.classList.remove("dropping");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) take(event.clipboardData.files[0]);
  });
}

/** Width over height of a picture, as it is shown; null where this browser cannot show it. */
export async function ratioOf(picture) {
  try {
    const bitmap = await createImageBitmap(picture);
    const ratio = bitmap.width / bitmap.height;
    bitmap.close();
    return ratio;
  } catch {
    return null;
  }
}
