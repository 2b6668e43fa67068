"use strict";
/* The page of one latent. */

const SHOWN = 8; // examples of a part, before all are asked for
const AROUND = 14; // tokens on each side of the peak, before the whole window is asked for

async function latentPanel(dictionary, number, dictionaries, go) {
  const [columns, latent] = await Promise.all([dictionary.columns(), dictionary.latent(number)]);
  const words = await dictionary.words();
  const isAlive = columns.density[number] > 0;
  return el("div", { class: "panel-body" },
    explanations(latent.explanations),
    figures(dictionary, columns, number),
    el("div", { class: "sides" }, el("div", { class: "grid charts" },
      isAlive && card("Activations", "Tokens where it is active",
        activations(latent.histogram)),
      latent.logits && card("Added to logits", "By its decoder row, to how many tokens of the vocabulary",
        histogram(latent.logits[2], latent.logits[0], latent.logits[1], { label: "Effects on logits", of: "tokens", fill: "--green", height: 112 }))),
      latent.promoted && el("div", { class: "grid words" },
        card("Promoted tokens", "Added to their logits", tokenTable(latent.promoted, latent.texts, "hot")),
        card("Suppressed tokens", "Added to their logits", tokenTable(latent.suppressed, latent.texts, "cold")))),
    contexts(latent, columns.maximum[number]),
    el("div", { class: "grid wide" },
      latent.neighbors && card("Nearest latents", "Cosine similarity", neighborTable(dictionary, words, latent.neighbors, go)),
      (latent.matches || []).map(([place, found]) => card(`Nearest in ${dictionaries[place].name}`, "Cosine similarity",
        neighborTable(dictionaries[place], null, found, go, true))),
      columns.x && card("On the map", "", latentMap(columns, {
        height: 210, chosen: number, label: (i) => `${i}  ${words.name(i)}`, open: (i) => go(dictionary, i),
      }))));
}

/** Returns a histogram without the bins above the largest activation. */
function activations([upper, counts]) {
  const n = counts.findLastIndex((one) => one > 0) + 1;
  return histogram(counts.slice(0, n), 0, (upper * n) / counts.length, { label: "Activations", of: "tokens", height: 112 });
}

function card(title, note, ...children) {
  return el("section", { class: "card" }, el("h3", {}, title, note && el("small", {}, note)), ...children);
}

function explanations(found) {
  if (!found) return null;
  return el("ul", { class: "explanations" }, found.map(([text, explainer, scores]) => el("li", {},
    el("span", { class: "said" }, text), " ",
    el("span", { class: "muted" }, [explainer, ...Object.entries(scores).map(([name, score]) => `${name} ${decimal(score, 2)}`)].join(" · ")))));
}

function figures(dictionary, columns, number) {
  const tokens = Math.round(columns.density[number] * dictionary.n_tokens);
  const all = [["Active on", percent(columns.density[number]), `${count(tokens)} of ${count(dictionary.n_tokens)} tokens`],
    ["Largest activation", decimal(columns.maximum[number]), ""], ["Mean activation", decimal(columns.mean[number]), "where it is active"]];
  if (columns.score && !Number.isNaN(columns.score[number])) all.push(["Explanation score", decimal(columns.score[number], 2), "the best mean"]);
  return el("dl", { class: "figures" }, all.map(([name, value, note]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value, note && el("small", {}, note)))));
}

function tokenTable([places, logits], texts, kind) {
  const largest = Math.max(...logits.map(Math.abs), 1e-9);
  return el("ul", { class: `bars ${kind}` }, places.map((place, i) => el("li", { style: { "--w": `${(100 * Math.abs(logits[i])) / largest}%` } },
    chip(texts[place]), el("span", { class: "value" }, `${logits[i] > 0 ? "+" : ""}${decimal(logits[i])}`))));
}

function neighborTable(dictionary, words, [latents, similarities], go, isBeside = false) {
  const list = el("ul", { class: "neighbors" });
  const fill = (known) => list.replaceChildren(...latents.map((i, at) => el("li", {},
    el("a", { href: `#${addressOf([{ dictionary, latent: i }])}`, onclick: (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      go(dictionary, i, isBeside);
    } }, el("span", { class: "number" }, String(i)), el("span", { class: "name" }, known ? known.name(i) : "")),
    el("span", { class: "value" }, decimal(similarities[at], 2)))));
  fill(words);
  if (!words) dictionary.words().then(fill);
  return list;
}

function contexts(latent, maximum) {
  const shares = latent.quantiles.length;
  const title = (i) => `${Math.round((100 * i) / shares)} to ${Math.round((100 * (i + 1)) / shares)}% of its activations, from the largest`;
  return el("section", { class: "contexts" },
    part("Largest activations", latent.top, latent.texts, maximum, true),
    latent.quantiles.map((examples, i) => part(title(i), examples, latent.texts, maximum, true)),
    part("Where it is not active", latent.quiet, latent.texts, maximum, false));
}

function part(title, examples, texts, maximum, isOpen) {
  if (!examples.length) return null;
  const list = el("ol", { class: "examples" }, examples.slice(0, SHOWN).map((one) => example(one, texts, maximum)));
  const rest = examples.slice(SHOWN);
  const more = rest.length > 0 && el("button", { type: "button", class: "more", onclick: (event) => {
    list.append(...rest.map((one) => example(one, texts, maximum)));
    event.target.remove();
  } }, `Show ${rest.length} more`);
  return el("details", { open: isOpen }, el("summary", {}, title), list, more);
}

function example([ids, places, values, peak, document_, position], texts, maximum) {
  const activations = new Map(places.map((place, i) => [place, values[i]]));
  const spans = (from, to) => ids.slice(from, to).map((id, i) => token(texts[id], activations.get(from + i) ?? 0, maximum, from + i === peak));
  const [from, to] = [Math.max(0, peak - AROUND), Math.min(ids.length, peak + AROUND + 1)];
  const text = el("p", { class: "text" });
  const short = [from > 0 && el("span", { class: "muted" }, "… "), ...spans(from, to), to < ids.length && el("span", { class: "muted" }, " …")];
  text.append(...short.filter(Boolean));
  const isCut = from > 0 || to < ids.length;
  const whole = isCut && el("button", { type: "button", class: "whole", "aria-expanded": "false", title: "The whole window", onclick: (event) => {
    const isWhole = event.target.getAttribute("aria-expanded") === "true";
    event.target.setAttribute("aria-expanded", String(!isWhole));
    text.replaceChildren(...(isWhole ? short.filter(Boolean) : spans(0, ids.length)));
  } }, "⋯");
  return el("li", {}, el("span", { class: "value", "data-tip": `document ${count(document_)}, token ${count(position)}` },
    decimal(activations.get(peak) ?? 0)), text, whole);
}
