// What the engine does, over the last two minutes: plots by uPlot from the counters that the server reports.

import { byId, count, duration, element, percent, short } from "./elements.js";
import { cost, money } from "./prices.js";

const SECONDS = 120;
const HEIGHT = 110;
// Where the axis of time has words, in seconds before now.
const MARKS = [90, 45, 0];
// Seconds over which shares are taken, so that one answer more or less does not make them jump.
const SMOOTHED = 5;

// Title, how values are shown, and series: name, colour, and value from two samples `a` and `b`, null where there is none. `says` puts
// the last value into words, where a number is not enough; `least` is the least that the axis reaches.
const PLOTS = [
  {
    title: "tokens per second", show: short,
    series: [
      ["found", "--found", (a, b) => rate(a, b, "cached_tokens")],
      ["computed", "--computed", (a, b) => rate(a, b, "computed_tokens")],
      ["written", "--written", (a, b) => rate(a, b, "output_tokens")],
    ],
  },
  {
    title: "prefix hits", show: percent, max: 1, smoothed: SMOOTHED,
    series: [["of prompt tokens", "--found", (a, b) => ratio(b.cached_tokens - a.cached_tokens, b.prompt_tokens - a.prompt_tokens)]],
  },
  {
    title: "requests", show: count,
    series: [["waiting or running", "--computed", (a, b) => b.pending]],
  },
  {
    title: "KV pages in use", show: percent, max: 1,
    series: [["of the pool", "--written", (a, b) => ratio(b.kv_pages_used, b.kv_pages_total)]],
  },
  {
    title: "running queries", show: percent, max: 1,
    says: (share, sample) => `${percent(share)}, ${duration(sample.eta_s)} left${sample.running > 1 ? " of the longest" : ""}`,
    series: [["done", "--accent", (a, b) => b.progress]],
  },
  {
    title: "dollars per minute", show: money, smoothed: SMOOTHED, least: 0.01,
    series: [["spent", "--written", (a, b) => perMinute(cost(rate(a, b, "prompt_tokens"), rate(a, b, "output_tokens")))]],
  },
];

const samples = [];
let drawn = [];

/** Takes the state of the server and draws. */
export function samplePlots(state) {
  const totals = { at: state.now / 1000, ...longest(state.queries) };
  for (const model of state.models) {
    for (const [name, value] of Object.entries(model)) {
      if (typeof value === "number") {
        totals[name] = (totals[name] ?? 0) + value;
      }
    }
  }
  samples.push(totals);
  while (samples.length > 0 && samples[0].at < totals.at - SECONDS - SMOOTHED) {
    samples.shift();
  }
  if (drawn.length === 0) {
    drawn = PLOTS.map(newPlot);
  }
  drawn.forEach((plot) => plot.update());
}

/** Returns how far the query is that will take longest, how long that is, and how many run. */
function longest(queries) {
  const running = queries.filter((query) => query.state === "running" && query.eta_s !== null);
  const last = running.reduce((most, query) => (most !== null && most.eta_s >= query.eta_s ? most : query), null);
  return { running: running.length, progress: last?.progress ?? null, eta_s: last?.eta_s ?? null };
}

function newPlot({ title, show, says, series, max, smoothed, least }) {
  const value = series.map(([name, colour]) => {
    const now = element("b");
    const key = element("i.key");
    key.style.background = `var(${colour})`;
    return { now, label: element("span", {}, key, series.length > 1 ? `${name} ` : "", now) };
  });
  const canvas = element("div.canvas");
  const card = element("figure.card", {}, element("figcaption", {}, element("span.title", {}, title), ...value.map(({ label }) => label)), canvas);
  byId("plots").append(card);

  const options = () => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: colour("--muted"), font: "11px system-ui", grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    return {
      width: Math.max(canvas.clientWidth, 100), height: HEIGHT, legend: { show: false }, cursor: { y: false, points: { size: 5 } },
      padding: [6, 14, 0, 0],
      scales: {
        x: { range: () => [lastAt() - SECONDS, lastAt()] },
        y: { range: (_, low, high) => [0, max ?? Math.max(high ?? 0, least ?? 1)] },
      },
      series: [{}, ...series.map(([, stroke]) => ({ stroke: colour(stroke), width: 1.5, fill: `${colour(stroke)}1f`, points: { show: false }, spanGaps: false }))],
      axes: [
        { ...axis, size: 20, splits: () => MARKS.map((second) => lastAt() - second), values: () => MARKS.map(ago) },
        { ...axis, size: 48, space: 30, values: (_, at) => at.map((number) => show(number)) },
      ],
    };
  };

  let plot = new uPlot(options(), data(series, smoothed), canvas);
  new ResizeObserver(() => plot.setSize({ width: Math.max(canvas.clientWidth, 100), height: HEIGHT })).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    plot.destroy();
    plot = new uPlot(options(), data(series, smoothed), canvas);
  });
  return {
    update() {
      const columns = data(series, smoothed);
      plot.setData(columns);
      value.forEach(({ now }, at) => {
        const last = columns[at + 1][columns[at + 1].length - 1];
        now.textContent = last === null || last === undefined ? "–" : (says ?? show)(last, samples[samples.length - 1]);
      });
    },
  };
}

function data(series, smoothed = 1) {
  const times = samples.map((sample) => sample.at);
  const column = ([, , value]) => samples.map((sample, at) => {
    const before = samples[Math.max(at - smoothed, 0)];
    return at > 0 && sample.steps !== undefined ? value(before, sample) : null;
  });
  return [times, ...series.map(column)];
}

/** Returns the growth of a counter for each second; a model that was unloaded takes its counters with it. */
function rate(a, b, counter) {
  return Math.max((b[counter] ?? 0) - (a[counter] ?? 0), 0) / Math.max(b.at - a.at, 0.001);
}

function perMinute(perSecond) {
  return perSecond === null ? null : perSecond * 60;
}

function ratio(part, whole) {
  return whole > 0 ? Math.min(Math.max(part / whole, 0), 1) : null;
}

function lastAt() {
  return samples.length > 0 ? samples[samples.length - 1].at : Date.now() / 1000;
}

function ago(seconds) {
  return seconds === 0 ? "now" : `−${seconds} s`;
}
