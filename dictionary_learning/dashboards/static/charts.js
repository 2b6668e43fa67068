"use strict";
/* Histograms, drawn by uPlot in the colors of the page. */

const charts = new Set();

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Returns a chart of counts in bins of equal width from `low` to `high`. */
function histogram(counts, low, high, { label, of, fill = "--blue", height = 130, tick = (v) => decimal(v), steps }) {
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
      axis({ grid: { show: false }, size: 24, space: 60, values: (_, at) => at.map(tick), ...(steps && { incrs: steps }) }),
      axis({ size: 44, space: 32, values: (_, at) => at.map(short) }),
    ],
    series: [{}, { fill: () => color(fill), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.92, 100], align: 0 }) }],
    hooks: {
      setCursor: [(plot) => {
        const at = plot.cursor.idx;
        if (at === null || at === undefined || plot.cursor.left < 0) return hideTip();
        const box = plot.over.getBoundingClientRect();
        const ends = `${tick(low + at * width)} to ${tick(low + (at + 1) * width)}`;
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
  return n >= 1e6 ? `${decimal(n / 1e6)}M` : n >= 1e3 ? `${decimal(n / 1e3)}k` : decimal(n);
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
    if (width > 0 && width !== was) draw((was = width));
    return undefined;
  });
  observer.observe(host);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of charts) chart.redraw(false);
});
