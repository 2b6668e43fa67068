"use strict";
/* Texts come from strangers: they are set as text, never as markup. */

/** Returns an element; strings among the children become text. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [property, to] of Object.entries(value)) made.style.setProperty(property, to);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const SIGNS = { "\n": "↵", "\t": "→", "\r": "␍", "\u00a0": "⍽", "\u200b": "∅", "\ufeff": "∅" };

/** Returns a token by itself, with everything that cannot be seen shown by a sign. */
function visible(text) {
  if (text === "") return "∅";
  const shown = text.replace(/[\n\t\r\u00a0\u200b\ufeff]/g, (sign) => SIGNS[sign]);
  return shown.replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length));
}

/** Returns the nodes of a token within a text: signs for line breaks and tabs, spaces as they are. */
function inText(text) {
  return text.split(/([\n\t\r])/).filter(Boolean)
    .map((part) => (SIGNS[part] ? el("i", { class: "sign" }, SIGNS[part]) : part));
}

function chip(text) {
  return el("span", { class: "chip" }, visible(text));
}

const DASH = "—";

/** Returns a number with some significant digits, also where the last are zeros: 3.60 beside 3.56. */
function decimal(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return DASH;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
  const text = value.toPrecision(digits);
  return text.includes("e") ? String(Number(text)) : text; // of more digits before the point
}

function percent(share) {
  if (!Number.isFinite(share)) return DASH;
  return `${decimal(100 * share)}%`;
}

/** Returns a share without zeros at its end, as an axis has it: 0.01%. */
function plainPercent(share) {
  return `${Number((100 * share).toPrecision(3))}%`;
}

function count(n) {
  return n.toLocaleString("en-US");
}

/** Returns the spaces before a word. */
function spacesBefore(text) {
  return text.trim() ? text.match(/^ */)[0] : "";
}

/**
 * Returns a span of a text; the color says how large its value is, and hovering which value.
 * Spaces before a word have none: where a line breaks they would be slivers at its end.
 */
function token(text, value, largest, isPeak = false) {
  const spaces = spacesBefore(text);
  const share = largest > 0 ? Math.min(1, Math.abs(value) / largest) : 0;
  return el("span", {
    class: `token${value < 0 ? " cold" : ""}${isPeak ? " peak" : ""}`,
    style: share ? { "--a": share.toFixed(3) } : {},
    "data-tip": `${visible(text)}   ${value ? decimal(value, 4) : "0"}`,
  }, spaces, el("span", {}, inText(text.slice(spaces.length))));
}

/** Shows what `data-tip` of the element under the pointer says. */
function followTips() {
  const tip = document.getElementById("tip");
  const show = (event) => {
    const about = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
    if (about) tipAt(about.dataset.tip, event.clientX, event.clientY);
    else tip.hidden = true;
  };
  document.addEventListener("pointerover", show);
  document.addEventListener("click", show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { capture: true, passive: true });
}

function tipAt(text, x, y) {
  const tip = document.getElementById("tip");
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 10, innerWidth - width - 8))}px`;
  tip.style.top = `${y + 20 + height > innerHeight ? y - height - 12 : y + 18}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}
