"use strict";
/* What a dictionary looks like as a whole, before a latent is chosen. */

const BINS = 40;

async function overview(dictionary, marked, go) {
  const [columns, words] = [await dictionary.columns(), dictionary.words()];
  let known = null;
  words.then((found) => { known = found; });
  const alive = columns.density.filter((share) => share > 0);
  const facts = [["Latents", count(dictionary.size)], ["Site", dictionary.site || DASH], ["Kind", dictionary.kind || DASH],
    ["Tokens read", count(dictionary.n_tokens)], ["Never active", `${count(dictionary.size - alive.length)} (${percent(1 - alive.length / dictionary.size)})`],
    ["Active on a token", decimal(columns.density.reduce((sum, share) => sum + share, 0))]];
  const chart = alive.length > 0 && card("How often latents are active", "Latents by the share of tokens, on a logarithmic scale", densities(alive));
  const map = columns.x && latentMap(columns, {
    height: 420, marked, open: (i) => go(dictionary, i), label: (i) => `${i}  ${known ? known.name(i) : ""}`,
  });
  const body = el("div", { class: "panel-body" },
    el("dl", { class: "figures" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    chart,
    map && card("Map of directions", "Each point is a latent; found ones are colored. Drag, zoom, click.", map));
  body.mark = (found) => map && map.mark(found);
  return body;
}

function densities(alive) {
  const logs = Array.from(alive, (share) => Math.log10(share));
  const low = Math.floor(logs.reduce((least, log) => Math.min(least, log), -0.5));
  const counts = new Array(BINS).fill(0);
  for (const log of logs) counts[Math.min(BINS - 1, Math.floor((BINS * (log - low)) / -low))]++;
  return histogram(counts, low, 0, { label: "Densities", of: "latents", height: 170, steps: [1], tick: (log) => plainPercent(10 ** log) });
}
