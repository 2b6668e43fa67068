"use strict";
/* The map: a point for each latent, where latents of near directions are near. */

const NEAR = 14; // pixels around the pointer

/** Returns a canvas of all latents, on which a click opens the nearest. */
function latentMap(columns, { height, chosen = null, marked = null, label, open }) {
  const canvas = el("canvas", { class: "map", role: "img", "aria-label": "Map of the latents" });
  const host = el("div", { class: "chart" }, canvas);
  const view = { scale: 1, left: 0, top: 0, width: 0 };
  const box = bounds(columns);
  const place = (i) => {
    const inner = [view.width - 20, height - 20];
    const x = 10 + inner[0] * ((columns.x[i] - box.x) / box.width);
    const y = 10 + inner[1] * ((columns.y[i] - box.y) / box.height);
    return [x * view.scale + view.left, y * view.scale + view.top];
  };
  const draw = () => drawPoints(canvas, columns, view, height, place, chosen, marked);
  const nearest = (event) => {
    const at = canvas.getBoundingClientRect();
    let best = -1;
    let least = NEAR * NEAR;
    for (let i = 0; i < columns.x.length; i++) {
      const [x, y] = place(i);
      const distance = (x - event.clientX + at.left) ** 2 + (y - event.clientY + at.top) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  };
  moveAndZoom(canvas, view, height, draw, {
    hover: (event) => {
      const i = nearest(event);
      canvas.style.cursor = i < 0 ? "grab" : "pointer";
      if (i < 0) hideTip();
      else tipAt(label(i), event.clientX, event.clientY);
    },
    click: (event) => {
      const i = nearest(event);
      hideTip();
      if (i >= 0) open(i);
    },
  });
  const chart = { redraw: draw };
  charts.add(chart);
  whenResized(host, (width) => { view.width = width; draw(); }, () => charts.delete(chart));
  const zoom = (factor) => () => { zoomAt(view, factor, view.width / 2, height / 2); draw(); };
  host.append(el("div", { class: "zoom" },
    el("button", { type: "button", "aria-label": "Nearer", onclick: zoom(1.6) }, "+"),
    el("button", { type: "button", "aria-label": "Farther", onclick: zoom(1 / 1.6) }, "−")));
  host.mark = (found) => { marked = found; draw(); };
  return host;
}

function bounds({ x, y }) {
  const ends = (values) => {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
    return [low, high - low || 1];
  };
  const [[left, width], [top, height]] = [ends(x), ends(y)];
  return { x: left, y: top, width, height };
}

function drawPoints(canvas, columns, view, height, place, chosen, marked) {
  const ratio = devicePixelRatio || 1;
  canvas.width = view.width * ratio;
  canvas.height = height * ratio;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const size = Math.min(4, Math.max(1.6, 90 / Math.sqrt(columns.x.length))) * Math.sqrt(view.scale);
  const layers = [["--point", (i) => columns.density[i] > 0 && !(marked && marked[i])],
    ["--dead", (i) => !(columns.density[i] > 0) && !(marked && marked[i])],
    ["--hot-ink", (i) => marked && marked[i]]];
  for (const [name, isIn] of layers) {
    pen.fillStyle = color(name);
    for (let i = 0; i < columns.x.length; i++) {
      if (!isIn(i)) continue;
      const [x, y] = place(i);
      pen.fillRect(x - size / 2, y - size / 2, size, size);
    }
  }
  if (chosen === null) return;
  const [x, y] = place(chosen);
  pen.strokeStyle = color("--ink");
  pen.fillStyle = color("--hot-ink");
  pen.lineWidth = 1.5;
  pen.beginPath();
  pen.arc(x, y, 5, 0, 7);
  pen.fill();
  pen.stroke();
}

function zoomAt(view, factor, x, y) {
  const to = Math.min(64, Math.max(1, view.scale * factor));
  view.left = to === 1 ? 0 : x - (x - view.left) * (to / view.scale);
  view.top = to === 1 ? 0 : y - (y - view.top) * (to / view.scale);
  view.scale = to;
}

/** Lets a pointer drag the map, and tells clicks from drags; the wheel zooms with Ctrl or ⌘. */
function moveAndZoom(canvas, view, height, draw, { hover, click }) {
  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    from = { x: event.clientX, y: event.clientY, left: view.left, top: view.top, moved: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!from || !event.buttons) return hover(event);
    const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
    from.moved ||= Math.hypot(dx, dy) > 4;
    if (!from.moved || view.scale === 1) return undefined;
    canvas.setPointerCapture(event.pointerId);
    view.left = from.left + dx;
    view.top = from.top + dy;
    return draw();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (from && !from.moved) click(event);
    from = null;
  });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const at = canvas.getBoundingClientRect();
    zoomAt(view, Math.exp(-event.deltaY / 200), event.clientX - at.left, event.clientY - at.top);
    draw();
  }, { passive: false });
}
