// Elements without markup in strings: foreign text only ever becomes text.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. Attributes: false or null leaves one out, a function listens ("onclick"). */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** An SVG element, likewise. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** The element of the document with an id; it must be there. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/** A button that does not submit a form. */
export function button(words, onclick, attributes = {}) {
  return el("button", { type: "button", onclick, ...attributes }, words);
}

let saying = 0;

/** Tell screen readers, after `wait` ms without another word. */
export function say(words, wait = 0) {
  clearTimeout(saying);
  saying = setTimeout(() => {
    byId("say").textContent = words;
  }, wait);
}

/** A message with a heading, an explanation and things to do. `tone`: "", "wait", "bad". */
export function notice(tone, title, lines = [], actions = []) {
  return el(
    "div",
    { class: `notice ${tone}` },
    el("p", { class: "notice-title" }, title),
    lines.map((line) => (typeof line === "string" ? el("p", {}, line) : line)),
    actions.length ? el("p", { class: "notice-actions" }, ...actions) : null,
  );
}
