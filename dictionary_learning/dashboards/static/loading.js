"use strict";
/* Data come as scripts, which call `receive`: a page from a disk may load nothing else. */

const FILES_KEPT = 24;
const arrived = new Map();
const files = new Map(); // promises by key, the least recently used first

function receive(key, data) {
  arrived.set(key, data);
}

/** Returns a promise of a file's data; files of latents that were not used for long are dropped. */
function load(key, kept = false) {
  const known = files.get(key);
  if (known) {
    files.delete(key);
    files.set(key, known);
    return known.data;
  }
  const data = new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `data/${key}.js`;
    script.onload = () => {
      const found = arrived.get(key);
      arrived.delete(key);
      script.remove();
      if (found === undefined) reject(new Error(`The file data/${key}.js is damaged.`));
      else resolve(found);
    };
    script.onerror = () => {
      script.remove();
      files.delete(key);
      reject(new Error(`The file data/${key}.js is missing.`));
    };
    document.head.append(script);
  });
  files.set(key, { data, kept });
  const loose = [...files].filter(([, file]) => !file.kept);
  for (const [old] of loose.slice(0, Math.max(0, loose.length - FILES_KEPT))) files.delete(old);
  return data;
}

/** Returns the numbers of a column, which is 32-bit floats in base64. */
function unpacked(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Float32Array(bytes.buffer);
}

/** A dictionary whose data are loaded when they are asked for. */
class Dictionary {
  constructor(facts, place) {
    Object.assign(this, facts);
    this.place = place;
  }

  columns() {
    this._columns ??= load(`${this.place}/columns`).then((packed) =>
      Object.fromEntries(Object.entries(packed).map(([name, text]) => [name, unpacked(text)])));
    return this._columns;
  }

  words() {
    this._words ??= load(`${this.place}/words`).then((words) => new Words(words));
    return this._words;
  }

  async latent(number) {
    const file = await load(`${this.place}/panels-${Math.floor(number / this.per_file)}`);
    return { ...file.latents[number % this.per_file], texts: file.tokens };
  }
}
