"use strict";
/* The live page: it asks the server which latents a text has, and what changing them does. */

const live = { token: location.hash.slice(1), about: null, reading: null, chosen: null, changes: [], asked: 0 };
const at = (id) => document.getElementById(id);

async function ask(path, request) {
  const response = await fetch(`/api/${path}`, {
    method: "POST", body: JSON.stringify(request), headers: { "Content-Type": "application/json", "X-Token": live.token },
  });
  const answer = await response.json();
  if (answer.error) throw new Error(answer.error.message);
  return answer;
}

function say(text, isFailed = false) {
  at("status").textContent = text;
  at("status").classList.toggle("failed", isFailed);
}

/** Runs something that may fail, and says so. */
async function tried(work) {
  try {
    await work();
  } catch (error) {
    say(error.message, true);
  }
}

const nameOf = () => at("dictionary").value;

async function read() {
  const text = at("prompt").value;
  if (!text) return;
  const asked = ++live.asked;
  say("Reading…");
  const reading = await ask("read", { dictionary: nameOf(), text, latents: live.changes.map((change) => change.latent) });
  if (asked !== live.asked) return; // the text has changed since
  live.reading = reading;
  if (!reading.latents.some(({ latent }) => latent === live.chosen)) live.chosen = reading.latents[0]?.latent ?? null;
  say(`${live.about.model}, ${reading.tokens.length} tokens`);
  showReading();
}

function largest({ values }) {
  return values.reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most), 0);
}

function showReading() {
  const { tokens, latents } = live.reading;
  const shown = latents.find(({ latent }) => latent === live.chosen);
  const most = shown ? Math.abs(largest(shown)) : 0;
  at("text").replaceChildren(...tokens.map((text, i) => token(text, shown ? shown.values[i] : 0, most)));
  const top = Math.max(...latents.map((one) => Math.abs(largest(one))), 1e-9);
  const list = [...latents].sort((a, b) => Math.abs(largest(b)) - Math.abs(largest(a)));
  at("latents").replaceChildren(...list.map((one) => el("li", {
    "aria-selected": String(one.latent === live.chosen), style: { "--w": `${(100 * Math.abs(largest(one))) / top}%` }, "data-latent": one.latent,
    onclick: () => { live.chosen = one.latent; showReading(); },
  }, el("span", { class: "number" }, String(one.latent)), el("span", { class: "grow" }, chip(tokens[one.values.indexOf(largest(one))] ?? "")),
  el("span", { class: "value" }, decimal(largest(one))),
  el("button", { type: "button", title: "Clamps it at twice this value", onclick: (event) => { event.stopPropagation(); change(one.latent, largest(one)); } }, "Change"))));
}

function change(latent, value = 0) {
  if (live.changes.some((one) => one.latent === latent)) return;
  const range = Math.max(10, Math.ceil(4 * Math.abs(value)));
  live.changes.push({ latent, way: "clamp", value: Number(decimal(2 * value)), range }); // as the page says
  showChanges();
}

function showChanges() {
  at("changes").replaceChildren(...live.changes.map((one) => {
    const slider = el("input", { type: "range", min: -one.range, max: one.range, step: one.range / 200, "aria-label": `Strength of latent ${one.latent}` });
    const box = el("input", { type: "number", step: "any", "aria-label": `Value of latent ${one.latent}` });
    slider.value = box.value = one.value;
    slider.addEventListener("input", () => { one.value = Number(slider.value); box.value = slider.value; });
    slider.addEventListener("change", () => tried(generate));
    box.addEventListener("change", () => { one.value = Number(box.value); slider.value = box.value; tried(generate); });
    const way = el("select", { "aria-label": `How latent ${one.latent} is changed`, onchange: (event) => { one.way = event.target.value; } },
      live.about.ways.map((name) => el("option", { value: name, selected: name === one.way }, name)));
    return el("li", {}, el("span", { class: "number" }, String(one.latent)), way, slider, box,
      el("button", { type: "button", "aria-label": `Leave latent ${one.latent} as it is`, onclick: () => {
        live.changes = live.changes.filter((other) => other !== one);
        showChanges();
      } }, "×"));
  }));
}

async function generate() {
  const asked = ++live.asked;
  say("Generating…");
  const request = {
    dictionary: nameOf(), text: at("prompt").value, n_tokens: Number(at("n_tokens").value),
    temperature: Number(at("temperature").value), seed: Number(at("seed").value),
    changes: live.changes.map(({ latent, way, value }) => ({ latent, way, value })),
  };
  const answer = await ask("generate", request);
  if (asked !== live.asked) return;
  const same = answer.clean.findIndex((text, i) => text !== answer.steered[i]);
  const shown = (tokens) => [el("span", { class: "given" }, inText(answer.prompt)),
    ...tokens.flatMap((text, i) => {
      const spaces = spacesBefore(text);
      return [spaces, el("span", { class: same >= 0 && i >= same ? "differs" : "" }, inText(text.slice(spaces.length)))];
    })];
  at("clean").replaceChildren(...shown(answer.clean));
  at("steered").replaceChildren(...shown(answer.steered));
  say(same < 0 ? "Both texts are the same." : `The texts differ from generated token ${same + 1} on.`);
}

async function start() {
  followTips();
  live.about = await ask("about", {});
  at("title").textContent = `Live latents of ${live.about.model}`;
  at("dictionary").replaceChildren(...live.about.dictionaries.map((one) => el("option", { value: one.name }, `${one.name} (${one.site})`)));
  let timer = 0;
  at("prompt").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => tried(read), 400); });
  at("dictionary").addEventListener("change", () => { live.changes = []; live.chosen = null; showChanges(); tried(read); });
  at("generate").addEventListener("click", () => tried(generate));
  at("add").addEventListener("click", () => change(Number(at("number").value)));
  await read();
}

tried(start).then(() => { document.documentElement.dataset.ready = "yes"; });
