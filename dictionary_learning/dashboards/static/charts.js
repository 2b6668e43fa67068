"use strict";
/* Histograms, drawn by uPlot in the colors of the page. */

const charts = new Set();

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

const WHOLE = Array.from({ length: 30 }, (_, i) => [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3));

/** Returns ticks with as many digits as tell them apart. */
function ticks(at, step) {
  const size = Math.abs(at[at.length - 1] ?? 0) + Math.abs(at[0] ?? 0);
  if (size >= 1e5 || (size > 0 && size < 1e-3)) return at.map((value) => decimal(value, 2));
  const digits = Math.min(8, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
  return at.map((value) => value.toFixed(Number((step * 10 ** digits).toFixed(6)) % 1 ? digits + 1 : digits));
}

/** Returns a chart of counts in bins of equal width from `low` to `high`. */
function histogram(counts, low, high, { label, of, fill = "--blue", height = 130, tick, steps }) {
  const host = el("div", { class: "chart", role: "img", "aria-label": `${label}: ${count(counts.reduce((a, b) => a + b, 0))} ${of}` });
  const width = (high - low) / counts.length || 1;
  const centers = counts.map((_, i) => low + (i + 0.5) * width);
  const axis = (more) => ({
    stroke: () => color("--muted"), font: "11px system-ui, sans-serif", size: 28,
    grid: { stroke: () => color("--rule"), width: 1 }, ticks: { show: false }, ...more,
  });
  const options = {
    width: 300, height, legend: { show: false }, padding: [6, 16, 0, 0],
    cursor: { y: false, drag: { setScale: false }, points: { show: false } },
    scales: { x: { time: false, range: [low, low + width * counts.length] }, y: { range: (_, __, top) => [0, (top || 1) * 1.05] } },
    axes: [
      axis({ grid: { show: false }, size: 24, space: 60, values: (_, at, __, ___, step) => (tick ? at.map(tick) : ticks(at, step)), ...(steps && { incrs: steps }) }),
      axis({ size: 44, space: 32, values: (_, at) => at.map(short), incrs: WHOLE }),
    ],
    series: [{}, { fill: () => color(fill), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.92, 100], align: 0 }) }],
    hooks: {
      setCursor: [(plot) => {
        const at = plot.cursor.idx;
        if (at === null || at === undefined || plot.cursor.left < 0) return hideTip();
        const box = plot.over.getBoundingClientRect();
        const ends = [at, at + 1].map((end) => (tick ?? decimal)(low + end * width)).join(" to ");
        return tipAt(`${ends}: ${count(counts[at])} ${of}`, box.left + plot.cursor.left, box.top + plot.cursor.top);
      }],
    },
  };
  const plot = new uPlot(options, [centers, counts], host);
  plot.over.addEventListener("pointerleave", hideTip);
  whenResized(host, (size) => plot.setSize({ width: size, height }), () => { charts.delete(plot); plot.destroy(); });
  charts.add(plot);
  return host;
}

function short(n) {
  return n >= 1e6 ? `${n / 1e6}M` : n >= 1e3 ? `${n / 1e3}k` : String(n);
}

/** Calls `draw` with the width of an element whenever it changes, and `end` once it is gone. */
function whenResized(host, draw, end = () => {}) {
  let was = 0;
  let wasShown = false;
  const observer = new ResizeObserver(() => {
    if (!host.isConnected && wasShown) {
      observer.disconnect();
      return end();
    }
    wasShown ||= host.isConnected;
    const width = Math.floor(host.clientWidth);
    if (width > 0 && width !== was) requestAnimationFrame(() => draw((was = width))); // what is drawn here may resize again
    return undefined;
  });
  observer.observe(host);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of charts) chart.redraw(false);
});
