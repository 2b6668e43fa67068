"use strict";
/* What is open, its address, and the keys. The address is #name/latent, or two of these with a +. */

const app = { dictionaries: [], views: [], active: 0, list: null };

function addressOf(views) {
  return views.map(({ dictionary, latent }) =>
    encodeURIComponent(dictionary.name) + (latent === null ? "" : `/${latent}`)).join("+");
}

/** Returns what an address opens; instead of what is not there, an overview that says so. */
function viewsOf(address) {
  const parts = address.split("+").filter(Boolean).slice(0, 2);
  return (parts.length ? parts : [""]).map((part) => {
    const [name, latent] = part.split("/").map(plain);
    const dictionary = app.dictionaries.find((one) => one.name === name);
    if (!dictionary) {
      return { dictionary: app.dictionaries[0], latent: null, missing: name && `There is no dictionary ${name} here.` };
    }
    if (!latent) return { dictionary, latent: null };
    if (/^\d+$/.test(latent) && Number(latent) < dictionary.size) return { dictionary, latent: Number(latent) };
    const last = count(dictionary.size - 1);
    return { dictionary, latent: null, missing: `There is no latent ${latent} here: ${dictionary.name} has latents 0 to ${last}.` };
  });
}

function plain(text) {
  try { return decodeURIComponent(text); } catch { return text; } // no address of ours
}

function openViews(views, active = app.active) {
  app.active = Math.min(active, views.length - 1);
  const address = addressOf(views);
  if (location.hash.slice(1) === address) return show(views);
  location.hash = address; // `hashchange` shows it
  return undefined;
}

function go(place, dictionary, latent, isBeside = false) {
  const views = app.views.map((view) => ({ ...view }));
  const to = isBeside ? 1 - place : place;
  views[Math.min(to, views.length)] = { dictionary, latent };
  openViews(views, isBeside ? place : to);
}

async function show(views) {
  const before = app.views;
  app.views = views;
  app.active = Math.min(app.active, views.length - 1);
  const { dictionary, latent } = views[app.active];
  document.getElementById("dictionary").value = String(dictionary.place);
  document.body.classList.toggle("reading", latent !== null);
  document.body.classList.toggle("two", views.length > 1);
  if (app.list.dictionary !== dictionary) {
    showSorts(await dictionary.columns());
    await app.list.show(dictionary);
  }
  app.list.choose(latent);
  const same = (a, b) => a && b && a.dictionary === b.dictionary && a.latent === b.latent && a.missing === b.missing;
  const host = document.getElementById("views");
  const shown = await Promise.all(views.map(async (view, place) => {
    const isKept = before.length === views.length && same(before[place], view) && host.children[place];
    return isKept ? host.children[place] : section(view, place);
  }));
  if (app.views !== views) return; // another was opened meanwhile
  // nodes that are put in again lose the click that is under way
  if (shown.length !== host.children.length || shown.some((one, at) => one !== host.children[at])) host.replaceChildren(...shown);
  shown.forEach((one, place) => one.classList.toggle("active", place === app.active));
}

async function section({ dictionary, latent, missing }, place) {
  const move = (by) => () => go(place, dictionary, neighborInOrder(place, dictionary, latent, by));
  const title = latent === null
    ? el("h2", {}, dictionary.name)
    : el("h2", {}, `Latent ${latent}`, el("small", {}, dictionary.name));
  const others = el("select", { "aria-label": "Compare with", onchange: (event) => compare(place, Number(event.target.value)) },
    el("option", { value: "" }, "Beside…"), app.dictionaries.map((one) => el("option", { value: one.place }, one.name)));
  const head = el("div", { class: "head" },
    latent !== null && el("button", { type: "button", class: "back", onclick: () => go(place, dictionary, null) }, "← All"),
    title,
    latent !== null && el("button", { type: "button", "aria-label": "Previous", onclick: move(-1) }, "‹"),
    latent !== null && el("button", { type: "button", "aria-label": "Next", onclick: move(1) }, "›"),
    app.views.length > 1
      ? el("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => openViews(app.views.filter((_, i) => i !== place)) }, "×")
      : others);
  const host = el("section", { class: "view", onpointerdown: () => activate(place) }, head, missing && el("p", { class: "missing", role: "alert" }, missing));
  try {
    host.append(latent === null
      ? await overview(dictionary, app.list.dictionary === dictionary ? app.list.marked : null, (to, i) => go(place, to, i))
      : await latentPanel(dictionary, latent, app.dictionaries, (to, i, isBeside) => go(place, to, i, isBeside)));
  } catch (error) {
    host.append(el("p", { class: "none" }, `${error.message} Write the dashboard again.`));
  }
  return host;
}

function neighborInOrder(place, dictionary, latent, by) {
  if (place === app.active) return app.list.after(latent, by);
  return Math.max(0, Math.min(dictionary.size - 1, latent + by));
}

function compare(place, other) {
  const latent = app.views[place].dictionary.place === other ? app.views[place].latent : null;
  openViews([app.views[place], { dictionary: app.dictionaries[other], latent }], 1);
}

function activate(place) {
  if (place === app.active || app.views.length < 2) return;
  app.active = place;
  show(app.views);
}

function showSorts(columns) {
  const select = document.getElementById("sort");
  select.replaceChildren(...Object.entries(SORTS).filter(([name]) => name === "number" || columns[name])
    .map(([name, text]) => el("option", { value: name, selected: name === app.list.sort }, text)));
  const host = document.getElementById("ranges");
  const limit = (name, end, text, factor) => el("input", {
    type: "number", step: "any", placeholder: text, "aria-label": `${text} ${SORTS[name]}`,
    onchange: (event) => {
      const range = app.list.ranges.get(name) || [-Infinity, Infinity];
      range[end] = event.target.value === "" ? [-Infinity, Infinity][end] : Number(event.target.value) / factor;
      if (range[0] === -Infinity && range[1] === Infinity) app.list.ranges.delete(name);
      else app.list.ranges.set(name, range);
      refresh();
    },
  });
  app.list.ranges.clear();
  host.replaceChildren(...[["density", "density, %", 100], ["maximum", "largest activation", 1], ["score", "explanation score", 1]]
    .filter(([name]) => columns[name])
    .map(([name, text, factor]) => el("div", { class: "range" }, el("span", {}, text), limit(name, 0, "least", factor), limit(name, 1, "most", factor))));
}

function refresh() {
  app.list.update();
  app.list.choose(app.views[app.active].latent);
  document.getElementById("list").scrollTop = 0;
  const body = document.getElementById("views").children[app.active]?.querySelector(".panel-body");
  if (body && body.mark) body.mark(app.list.marked);
}

function listen() {
  const query = document.getElementById("query");
  let timer = 0;
  app.search = async () => {
    clearTimeout(timer);
    app.list.words ??= await app.list.dictionary.words();
    app.list.query = query.value;
    app.list.where = document.getElementById("where").value;
    refresh();
  };
  const search = () => {
    clearTimeout(timer);
    timer = setTimeout(app.search, 80); // not at every letter
  };
  query.addEventListener("input", search);
  document.getElementById("where").addEventListener("change", search);
  document.getElementById("sort").addEventListener("change", (event) => {
    app.list.sort = event.target.value;
    app.list.descending = app.list.sort !== "number"; // the largest are asked for
    turned();
    refresh();
  });
  document.getElementById("direction").addEventListener("click", () => {
    app.list.descending = !app.list.descending;
    turned();
    refresh();
  });
  document.getElementById("filters").addEventListener("click", (event) => {
    const host = document.getElementById("ranges");
    host.hidden = !host.hidden;
    event.target.setAttribute("aria-expanded", String(!host.hidden));
  });
  document.getElementById("dictionary").addEventListener("change", (event) =>
    go(app.active, app.dictionaries[Number(event.target.value)], null));
  document.addEventListener("keydown", press);
  addEventListener("hashchange", () => show(viewsOf(location.hash.slice(1))));
}

function turned() {
  document.getElementById("direction").textContent = app.list.descending ? "↓" : "↑";
}

async function press(event) {
  const query = document.getElementById("query");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyping = event.target instanceof Element && event.target.closest("input, select, textarea");
  const { dictionary, latent } = app.views[app.active];
  if (event.key === "Escape") {
    if (isTyping) document.getElementById("list").focus();
    else if (latent !== null) go(app.active, dictionary, null);
  } else if (event.key === "/" && !isTyping) {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (isTyping && !(event.target === query && ["ArrowDown", "Enter"].includes(event.key))) {
    return;
  } else {
    const by = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 10, PageUp: -10, Enter: 0, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || !app.list.order.length) return;
    if (event.key === "Enter" && event.target !== query && event.target !== app.list.host) return; // a button's
    event.preventDefault();
    if (isTyping) {
      await app.search();
      app.list.host.focus();
    }
    const to = isTyping ? app.list.order[0] : app.list.after(latent, by);
    if (to !== undefined && to !== latent) go(app.active, dictionary, to);
  }
}

async function start() {
  followTips();
  try {
    const manifest = await load("manifest", true);
    document.title = manifest.title;
    document.getElementById("title").textContent = manifest.title;
    document.getElementById("about").textContent = manifest.about;
    app.dictionaries = manifest.dictionaries.map((facts, place) => new Dictionary(facts, place));
    document.getElementById("dictionary").replaceChildren(
      ...app.dictionaries.map((one) => el("option", { value: one.place }, one.site ? `${one.name} (${one.site})` : one.name)));
    app.list = new LatentList((latent) => go(app.active, app.views[app.active].dictionary, latent));
    turned();
    listen();
    await show(viewsOf(location.hash.slice(1)));
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    document.getElementById("views").replaceChildren(el("p", { class: "none" }, `${error.message} Write the dashboard again.`));
  }
}

start();
