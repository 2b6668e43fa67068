"use strict";
/* The words by which latents are found: one long text with a line for each latent, and where lines start. */

class Lines {
  constructor(text) {
    this.text = text;
    this.low = text.toLowerCase(); // some letters change their length: lines start elsewhere
    this.starts = starts(text);
    this.lowStarts = starts(this.low);
  }

  at(i) {
    return this.text.slice(this.starts[i], this.starts[i + 1] - 1);
  }

  /** Marks the lines that hold a word. */
  mark(word, found) {
    let at = this.low.indexOf(word);
    while (at >= 0) {
      const line = lineOf(this.lowStarts, at);
      found[line] = 1;
      at = this.low.indexOf(word, this.lowStarts[line + 1]);
    }
  }
}

class Words {
  constructor({ tokens, explanations }) {
    this.tokens = new Lines(tokens);
    this.explanations = explanations === "" ? null : new Lines(explanations);
  }

  /** Returns what a latent is called in the list: an explanation, or the tokens that go with it. */
  name(i) {
    const explanation = this.explanation(i);
    return explanation || this.parts(i).active.map(visible).join(" ");
  }

  explanation(i) {
    return this.explanations ? this.explanations.at(i).split("\t")[0] : "";
  }

  /** Returns the tokens where a latent is active, and those that it promotes. */
  parts(i) {
    const all = this.tokens.at(i).split("\t");
    const gap = all.indexOf("");
    return { active: all.slice(0, gap), promoted: all.slice(gap + 1) };
  }

  /** Returns for each latent whether all words of a query are in its texts. */
  find(query, where, size) {
    const all = new Uint8Array(size).fill(1);
    for (const word of query.toLowerCase().split(/\s+/).filter(Boolean)) {
      const found = new Uint8Array(size);
      if (where !== "explanations") this.tokens.mark(word, found);
      if (where !== "tokens" && this.explanations) this.explanations.mark(word, found);
      const number = /^#?(\d+)$/.exec(word);
      if (number && Number(number[1]) < size) found[Number(number[1])] = 1;
      for (let i = 0; i < size; i++) all[i] &= found[i];
    }
    return all;
  }
}

function starts(text) {
  const found = [0];
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) found.push(at + 1);
  found.push(text.length + 1);
  return Uint32Array.from(found);
}

/** Returns the last line that starts at or before a place. */
function lineOf(lines, at) {
  let [low, high] = [0, lines.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (lines[middle] <= at) low = middle;
    else high = middle;
  }
  return low;
}
