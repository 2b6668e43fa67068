"use strict";
/* The list of all latents: sorted, filtered, and drawn only where it is seen. */

const ROW = 54; // pixels, as in style.css
const SORTS = { number: "number", density: "density", maximum: "largest activation", mean: "mean activation", score: "score" };

class LatentList {
  constructor(open) {
    this.host = document.getElementById("list");
    this.rows = document.getElementById("rows");
    this.open = open;
    this.order = new Uint32Array(0);
    this.query = "";
    this.where = "all";
    this.sort = "number";
    this.descending = false;
    this.ranges = new Map(); // column: [least, most]
    this.marked = null;
    this.chosen = null;
    this.host.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(this.host);
    this.rows.addEventListener("click", (event) => {
      const row = event.target.closest("[data-latent]");
      if (row) this.open(Number(row.dataset.latent));
    });
  }

  async show(dictionary) {
    this.dictionary = dictionary;
    this.words = null;
    this.columns = await dictionary.columns();
    if (!this.columns[this.sort]) this.sort = "number";
    if (this.query) this.words = await dictionary.words();
    this.update();
    this.words = await dictionary.words();
    if (this.dictionary === dictionary) this.draw();
  }

  /** Sorts and filters anew. */
  update() {
    const size = this.dictionary.size;
    const found = this.query.trim() ? this.words.find(this.query, this.where, size) : null;
    const ranges = [...this.ranges].filter(([name]) => this.columns[name]);
    const kept = new Uint32Array(size);
    let n = 0;
    for (let i = 0; i < size; i++) {
      if (found && !found[i]) continue;
      if (ranges.every(([name, [least, most]]) => this.columns[name][i] >= least && this.columns[name][i] <= most)) kept[n++] = i;
    }
    this.order = kept.slice(0, n);
    const column = this.columns[this.sort];
    const sign = this.descending ? -1 : 1;
    if (column) {
      // what is not known comes last, whichever way
      const key = (i) => (Number.isNaN(column[i]) ? Infinity : sign * column[i]);
      this.order.sort((a, b) => (key(a) === key(b) ? a - b : key(a) < key(b) ? -1 : 1));
    } else if (this.descending) this.order.reverse();
    this.marked = found;
    document.getElementById("count").textContent = n === size ? count(size) : `${count(n)} of ${count(size)}`;
    this.rows.style.height = `${n * ROW}px`;
    this.host.scrollTop = 0;
    this.host.dataset.query = this.query;
    this.draw();
  }

  draw() {
    if (!this.columns) return;
    const first = Math.max(0, Math.floor(this.host.scrollTop / ROW) - 4);
    const last = Math.min(this.order.length, Math.ceil((this.host.scrollTop + this.host.clientHeight) / ROW) + 4);
    const rows = [];
    for (let at = first; at < last; at++) rows.push(this.row(this.order[at], at));
    if (!this.order.length) rows.push(el("p", { class: "none" }, "No latent is like this."));
    this.rows.replaceChildren(...rows);
    this.host.setAttribute("aria-activedescendant", this.chosen === null ? "" : `row-${this.chosen}`);
  }

  row(i, at) {
    const { density, maximum, score } = this.columns;
    const numbers = [`${percent(density[i])} of tokens`, `max ${decimal(maximum[i])}`];
    if (score && !Number.isNaN(score[i])) numbers.push(`score ${decimal(score[i], 2)}`);
    const explanation = this.words && this.words.explanation(i);
    const name = !this.words ? el("span", { class: "name" }, "…")
      : explanation ? el("span", { class: "name" }, explanation)
        : el("span", { class: "name chips" }, this.words.parts(i).active.map(chip));
    return el("div", {
      class: `row${density[i] > 0 ? "" : " dead"}`, role: "option", id: `row-${i}`, "data-latent": i,
      "aria-selected": String(i === this.chosen), "aria-posinset": at + 1, "aria-setsize": this.order.length,
      style: { top: `${at * ROW}px` },
    }, el("span", { class: "number" }, String(i)), name,
    el("span", { class: "numbers" }, density[i] > 0 ? numbers.join("  ") : "never active"));
  }

  /** Marks the latent that is open, and brings it into view. */
  choose(i) {
    this.chosen = i;
    const at = i === null ? -1 : this.order.indexOf(i);
    if (at >= 0 && (at * ROW < this.host.scrollTop || (at + 1) * ROW > this.host.scrollTop + this.host.clientHeight)) {
      this.host.scrollTop = at * ROW - this.host.clientHeight / 2 + ROW / 2;
    }
    this.draw();
  }

  /** Returns the latent that is some places after the one that is open, in the order of the list. */
  after(i, places) {
    const at = i === null ? -1 : this.order.indexOf(i);
    const to = at < 0 ? 0 : at + places;
    return this.order[Math.max(0, Math.min(this.order.length - 1, to))];
  }
}
