"use strict";
const study = JSON.parse(document.getElementById("data").textContent);
const unit = study.unit;
const inUnit = (joules) => joules / unit.factor;
const byId = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

/* A legend under the axis title of a chart that is so many pixels high. */
const legendBelow = (tall) => ({ orientation: "h", yanchor: "top", y: -62 / (tall - 130), x: 0 });
const layout = (tall, extra) => ({
  font: { family: 'system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif', size: 13, color: "#1f2328" },
  paper_bgcolor: "#fff", plot_bgcolor: "#fff", margin: { l: 64, r: 24, t: 16, b: 56 },
  hoverlabel: { bgcolor: "#fff", bordercolor: "#57606a", font: { color: "#1f2328" }, align: "left" },
  height: tall, legend: legendBelow(tall), ...extra,
});
const axis = (title, extra) => ({
  title: { text: title, standoff: 10 }, gridcolor: "#e6e8eb", zeroline: false,
  linecolor: "#8a9099", ticks: "outside", tickcolor: "#8a9099", ...extra,
});
/* How wide charts are while they are printed; 0 on the screen. */
let paper = 0;
const narrow = () => document.documentElement.clientWidth < 640;
const config = { responsive: true, displayModeBar: narrow() ? false : "hover", displaylogo: false, showSendToCloud: false, plotlyServerURL: "", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  toImageButtonOptions: { format: "svg", filename: "angelshare" } };
const rounded = (value) => Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });
/* 1, 2, 5 (in a short range all digits, then even steps) times powers of ten, written out: Plotly's
   own log ticks drop the power. */
function logTicks(low, high) {
  const between = (digits) => {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
      for (const digit of digits) ticks.push(digit * 10 ** power);
    }
    return ticks.filter((tick) => tick >= low && tick <= high);
  };
  let ticks = between([1, 2, 5]);
  if (ticks.length < 3) ticks = between([1, 2, 3, 4, 5, 6, 7, 8, 9]);
  if (ticks.length < 3) ticks = [0.1, 0.3, 0.5, 0.7, 0.9].map((at) => Number((low + at * (high - low)).toPrecision(3)));
  /* A tick too near to the one before it has no text. */
  const near = 40 / Math.max(200, (paper || document.documentElement.clientWidth) - 150);
  let last = -1;
  const text = ticks.map((tick) => {
    const at = Math.log(tick / low) / Math.log(high / low), free = at - last >= near;
    if (free) last = at;
    return free ? rounded(tick) : "";
  });
  return { tickvals: ticks, ticktext: text, tickangle: 0 };
}
const inPercent = (share) => share > 0.995 ? "> 99 %" : share < 0.005 ? "< 1 %" : `${Math.round(100 * share)} %`;

/* The energy of a point under the chosen view; "what_if" divides the teacher's whole bill. */
function energyOf(point, view, runs) {
  if (view !== "what_if") return point.energy[view];
  return point.energy.one_off - point.teacher + point.teacher / runs;
}

/* Points that no other beats on both; equal points leave each other alone. */
function nonDominated(points) {
  return points.filter((p) => !points.some((q) =>
    q.x <= p.x && q.y >= p.y && (q.x < p.x || q.y > p.y)));
}

function hoverText(point, view, x, y, metric) {
  const lines = [`<b>${point.name}</b>`, `${rounded(inUnit(x))} ${unit.name} per run, ${metric} ${rounded(y)}`];
  if (view !== "what_if") {
    if (point.low[view] !== null) lines.push(`repeats: ${rounded(inUnit(point.low[view]))} to ${rounded(inUnit(point.high[view]))} (95 %, n = ${point.n})`);
    if (point.meter[view] !== null) lines.push(`meter: ± ${rounded(inUnit(point.meter[view]))} (95 %)`);
    if (metric === "quality" && point.chance[view] !== null) lines.push(`on the frontier: ${inPercent(point.chance[view])}`);
    if (metric === "quality" && point.beaten[view] !== null) lines.push(`dominated by ${point.beaten[view]}`);
  }
  if (point.lineage) lines.push(`stands on: ${point.lineage.split("; ").join("<br>   ")}`);
  if (point.note) lines.push(point.note);
  return lines.join("<br>");
}

const FRONTIER_TALL = 480;

/* Where each point's name goes, frontier first; a name that would cover another is left to hovering. */
function labelPlaces(points, best, across, up) {
  const chart = byId("frontier-chart"), wide = (paper || chart.clientWidth) - 90, tall = FRONTIER_TALL - 130;
  const at = (p) => ({ x: across(p.x) * wide, y: (1 - up(p.y)) * tall });
  const taken = points.map((p) => ({ x0: at(p).x - 6, x1: at(p).x + 6, y0: at(p).y - 6, y1: at(p).y + 6, own: p }));
  best.slice(1).forEach((p, i) => {
    const from = at(best[i]), to = at(p);
    taken.push({ x0: from.x, x1: to.x, y0: from.y - 1, y1: from.y + 1 }, { x0: to.x - 1, x1: to.x + 1, y0: to.y, y1: from.y });
  });
  const places = new Map();
  for (const p of [...points].sort((a, b) => best.includes(b) - best.includes(a) || b.y - a.y)) {
    const { x, y } = at(p), width = 6.4 * p.point.name.length;
    for (const place of ["top right", "bottom right", "top left", "bottom left"]) {
      const box = place.endsWith("right") ? { x0: x + 7, x1: x + 7 + width } : { x0: x - 7 - width, x1: x - 7 };
      Object.assign(box, place.startsWith("top") ? { y0: y - 20, y1: y - 4 } : { y0: y + 4, y1: y + 20 });
      const free = box.x0 > 0 && box.x1 < wide && !taken.some((t) => t.own !== p && t.x0 < box.x1 && box.x0 < t.x1 && t.y0 < box.y1 && box.y0 < t.y1);
      if (free) { places.set(p, place); taken.push(box); break; }
    }
  }
  return places;
}

function drawFrontier() {
  const view = chosen("view"), metric = byId("metric").value;
  const runs = Math.max(1, Number(byId("what-if-n").value) || 1);
  const points = study.points.filter((p) => p.score[metric] !== null)
    .map((p) => ({ point: p, x: energyOf(p, view, runs), y: p.score[metric] }));
  const best = nonDominated(points).sort((a, b) => a.x - b.x);
  const counted = view === "what_if" ? `the teacher shared by ${runs} ${runs === 1 ? "run" : "runs"}` : study.views.find((v) => v.id === view).name.toLowerCase();
  byId("frontier-what").textContent = points.length
    ? `On the frontier, ${counted}: ${best.map((p) => p.point.name).join(", ")}.`
    : "No run has a score for this.";
  byId("frontier-chart").hidden = !points.length;
  if (!points.length) return;
  const log = byId("log-energy").checked;
  const xs = points.map((p) => inUnit(p.x)).filter((x) => x > 0);
  const low = Math.min(...xs), high = Math.max(...xs);
  const range = log ? [Math.log10(low / 1.25), Math.log10(high * (high / low) ** 0.25 * 1.1)] : [0, high * 1.25];
  const bars = (p) => metric === "quality" && p.point.scoreLow.quality !== null ? [Math.max(0, p.point.scoreLow.quality), p.point.scoreHigh.quality] : [];
  const ys = points.flatMap((p) => [p.y, ...bars(p)]), top = Math.max(...ys), bottom = Math.min(...ys);
  const room = 0.06 * (top - bottom) || 0.1 * Math.abs(top) || 1, heights = [bottom - room, top + room];
  const part = (value, [from, to]) => (value - from) / (to - from);
  const places = labelPlaces(points, best, (x) => part(log ? Math.log10(inUnit(x)) : inUnit(x), range), (y) => part(y, heights));
  const traces = [{
    x: best.map((p) => inUnit(p.x)), y: best.map((p) => p.y), mode: "lines", name: "frontier (open marks are beaten)",
    line: { shape: "hv", color: "#57606a", width: 1.5 }, hoverinfo: "skip",
  }];
  for (const [id, pipeline] of Object.entries(study.pipelines)) {
    const mine = points.filter((p) => p.point.pipeline === id);
    if (!mine.length) continue;
    const onIt = mine.map((p) => best.includes(p));
    const bar = (low, high, at, scale) => ({
      type: "data", symmetric: false, thickness: 1, width: 0, color: pipeline.color,
      array: mine.map((p, i) => high(p) === null ? 0 : Math.max(0, scale(high(p)) - at[i])),
      arrayminus: mine.map((p, i) => low(p) === null ? 0 : Math.max(0, at[i] - scale(Math.max(0, low(p))))),
    });
    const xs = mine.map((p) => inUnit(p.x)), ys = mine.map((p) => p.y);
    traces.push({ x: [null], y: [null], mode: "markers", name: pipeline.name, marker: { symbol: pipeline.symbol, size: 10, color: pipeline.color } });
    traces.push({
      x: xs, y: ys, name: pipeline.name, showlegend: false, mode: "markers+text", cliponaxis: false,
      text: mine.map((p) => places.get(p) ? p.point.name : ""),
      textposition: mine.map((p) => places.get(p) || "top right"),
      textfont: { size: 11, color: pipeline.color },
      marker: { symbol: mine.map((p, i) => pipeline.symbol + (onIt[i] ? "" : "-open")), size: 11, color: pipeline.color },
      error_x: view === "what_if" ? undefined : bar((p) => p.point.low[view], (p) => p.point.high[view], xs, inUnit),
      error_y: metric === "quality" ? bar((p) => p.point.scoreLow.quality, (p) => p.point.scoreHigh.quality, ys, (v) => v) : undefined,
      hovertext: mine.map((p) => hoverText(p.point, view, p.x, p.y, metric)), hoverinfo: "text",
    });
  }
  Plotly.react("frontier-chart", traces, layout(FRONTIER_TALL, {
    xaxis: axis(`energy per run (${unit.name})`, { type: log ? "log" : "linear", range, ...(log ? logTicks(10 ** range[0], 10 ** range[1]) : {}) }),
    yaxis: axis(metric === "quality" ? "quality (share of the teacher's score)" : metric, { range: heights }),
    hovermode: "closest",
  }), config);
}

function drawStages() {
  const view = chosen("stage-view"), values = study.stages.values[view];
  const traces = study.stages.stages.map((stage, i) => ({
    type: "bar", orientation: "h", name: stage.name, y: study.stages.settings, x: values[i].map(inUnit),
    marker: { color: stage.color }, hovertemplate: `%{y}<br>${stage.name}: %{x:.3~g} ${unit.name}<extra></extra>`,
  })).filter((trace) => trace.x.some((x) => x > 0));
  /* A long chart is scrolled: its axis and legend stand on top. */
  const long = study.stages.settings.length > 16, tall = Math.max(240, 150 + 30 * study.stages.settings.length);
  Plotly.react("stages-chart", traces, layout(tall, {
    barmode: "stack", bargap: 0.35, margin: { l: 170, r: 24, t: long ? 56 : 16, b: long ? 16 : 56 },
    xaxis: axis(`mean energy per run (${unit.name})`, { side: long ? "top" : "bottom" }),
    yaxis: axis("", { autorange: "reversed", automargin: true, ticks: "" }),
    legend: { ...legendBelow(tall), ...(long ? { yanchor: "bottom", y: 1 + 62 / (tall - 130) } : {}), traceorder: "normal" },
  }), config);
}

const perRun = (row, runs) => row.distilled + row.teacher / runs;

function drawAmortization() {
  const students = study.students.filter((s) => study.breakEven.some((row) => row.student === s));
  const counts = Array.from({ length: 120 }, (_, i) => Math.exp(Math.log(study.mostRuns) * i / 119));
  const traces = [], shapes = [], annotations = [], axes = {}, named = new Set();
  const columns = Math.max(1, Math.min(students.length, Math.floor((paper || byId("amortization-chart").clientWidth) / 330)));
  const down = Math.ceil(students.length / columns), tall = 300 * down;
  const gap = down > 1 ? 76 / tall : 0, high = (1 - gap * (down - 1)) / down;
  students.forEach((student, i) => {
    const tag = i ? String(i + 1) : "", rows = study.breakEven.filter((row) => row.student === student);
    const column = i % columns, row = Math.floor(i / columns), width = 1 / columns, pad = 0.035;
    const last = i + columns >= students.length;
    axes[`xaxis${tag}`] = axis(last ? "runs that share the teacher's work" : "", { type: "log", ...logTicks(1, study.mostRuns), domain: [column * width + (column ? pad : 0), (column + 1) * width - (column + 1 < columns ? pad : 0)], anchor: `y${tag}` });
    axes[`yaxis${tag}`] = axis(column ? "" : `student and its share (${unit.name})`, { rangemode: "tozero", anchor: `x${tag}`, domain: [Math.max(0, 1 - row * (high + gap) - high), 1 - row * (high + gap)] });
    annotations.push({ text: `<b>student ${student}</b>`, showarrow: false, xref: `x${tag} domain`, yref: `y${tag} domain`, x: 0, y: 1.06, xanchor: "left", yanchor: "bottom" });
    const add = (trace) => traces.push({ xaxis: `x${tag}`, yaxis: `y${tag}`, ...trace });
    const legend = (name) => { const first = !named.has(name); named.add(name); return { name, legendgroup: name, showlegend: first }; };
    add({ x: [1, study.mostRuns], y: [inUnit(rows[0].baseline), inUnit(rows[0].baseline)], mode: "lines", line: { color: "#1f2328", dash: "dash", width: 1.3 }, hoverinfo: "skip", ...legend("baseline student") });
    for (const row of rows) {
      const look = study.pipelines[row.pipeline], now = Math.max(1, row.consumers);
      add({ x: counts, y: counts.map((n) => inUnit(perRun(row, n))), mode: "lines", line: { color: look.color, width: 2 }, hovertemplate: `${row.name}<br>%{x:.3~g} runs: %{y:.3~g} ${unit.name}<extra></extra>`, ...legend(look.name) });
      add({ x: [now], y: [inUnit(perRun(row, now))], mode: "markers", marker: { symbol: look.symbol, size: 11, color: look.color, line: { color: "#fff", width: 1 } }, hovertemplate: `${row.name}: ${row.consumers} runs now<extra></extra>`, showlegend: false });
      if (row.nStar !== null && row.nStar <= study.mostRuns) {
        add({ x: [row.nStar], y: [inUnit(row.baseline)], mode: "markers", marker: { symbol: "circle-open", size: 14, color: look.color, line: { width: 2 } }, hovertemplate: `${row.name}: N* %{x:.3~g}<extra></extra>`, showlegend: false });
      }
    }
    shapes.push({ type: "line", xref: `x${tag}`, yref: `y${tag} domain`, x0: 1, x1: 1, y0: 0, y1: 1, line: { color: "#8a9099", width: 1, dash: "dot" } });
  });
  Plotly.react("amortization-chart", traces, layout(tall + 130, { ...axes, shapes, annotations, margin: { l: 64, r: 24, t: 44, b: 56 } }), config);
}

function moveRuns() {
  const slider = byId("runs-n"), runs = Number(slider.value);
  byId("runs-n-value").textContent = String(runs);
  const shapes = byId("amortization-chart").layout.shapes.map((_, i) => [`shapes[${i}].x0`, `shapes[${i}].x1`]).flat();
  Plotly.relayout("amortization-chart", Object.fromEntries(shapes.map((key) => [key, runs])));
  byId("break-even-what").textContent = `With ${runs} ${runs === 1 ? "run" : "runs"}: ` + study.breakEven.map((row) => {
    const more = perRun(row, runs) - row.baseline;
    return `${row.name} ${rounded(inUnit(Math.abs(more)))} ${unit.name} ${more > 0 ? "more" : "less"} than the baseline`;
  }).join("; ") + ".";
}

/* Sorting: a button in each header, numbers by value, text by letters. */
function sortable(table) {
  table.querySelectorAll("thead button.sort").forEach((button, column) => button.addEventListener("click", () => {
    const header = button.closest("th"), up = header.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("thead th").forEach((th) => th.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => { const cell = row.cells[column]; return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value); };
    const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    const rows = [...table.tBodies[0].rows].sort((a, b) => (up ? 1 : -1) * compare(key(a), key(b)));
    table.tBodies[0].append(...rows);
  }));
}

/* One job's power; busy threads, where power is only estimated from them, on an axis of their own. */
function drawTrace() {
  const trace = study.traces[Number(byId("trace").value)];
  const dashes = ["solid", "dash", "dot", "dashdot"], colors = ["#0072b2", "#d55e00", "#009e73", "#4d4d4d"];
  const units = [...new Set(trace.lines.map((line) => line.unit))];
  const traces = trace.lines.map((line, i) => ({
    x: line.t, y: line.value, name: `${line.name} (${line.unit})`, mode: "lines", yaxis: units.indexOf(line.unit) ? "y2" : "y",
    line: { color: colors[i % colors.length], dash: dashes[i % dashes.length], width: 1.6 }, hovertemplate: `%{x:.3~g} s: %{y:.3~g} ${line.unit}<extra>${line.name}</extra>`,
  }));
  Plotly.react("trace-chart", traces, layout(340, {
    xaxis: axis("seconds since the start"), yaxis: axis(units[0], { rangemode: "tozero" }), showlegend: true,
    ...(units.length > 1 ? { yaxis2: axis(units[1], { overlaying: "y", side: "right", rangemode: "tozero" }) } : {}),
  }), config);
}

for (const metric of study.metrics) {
  const option = document.createElement("option");
  option.value = metric;
  option.textContent = metric === "quality" ? "Q, mean over benchmarks" : metric.replaceAll("_", " ");
  byId("metric").append(option);
}
byId("frontier-controls").addEventListener("input", (event) => {
  if (event.target.id === "what-if-n") document.querySelector('input[value="what_if"]').checked = true;
  drawFrontier();
});
byId("matrix-controls")?.addEventListener("input", () => document.querySelectorAll("figure.matrix").forEach((figure) => {
  figure.hidden = figure.id !== `matrix-${chosen("matrix-view")}`;
}));
byId("stages-controls").addEventListener("input", drawStages);
document.querySelectorAll("form").forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));
document.querySelectorAll("table").forEach(sortable);
/* Charts are as wide as the window; on paper, as wide as the page. */
function widths(width) {
  paper = width;
  drawFrontier();
  if (study.breakEven.length) { drawAmortization(); moveRuns(); }
  document.querySelectorAll(".js-plotly-plot").forEach((chart) =>
    Plotly.relayout(chart, width ? { width } : { width: null, autosize: true }));
}
addEventListener("beforeprint", () => widths(680));
addEventListener("afterprint", () => widths(0));
drawFrontier();
drawStages();
if (study.traces.length) {
  study.traces.forEach((trace, i) => byId("trace").append(new Option(`${trace.stage}: ${trace.job}`, String(i))));
  byId("trace").addEventListener("input", drawTrace);
  drawTrace();
}
if (study.breakEven.length) {
  byId("runs-n").max = String(Math.floor(study.mostRuns));
  drawAmortization();
  byId("runs-n").value = String(Math.max(1, ...study.breakEven.map((row) => row.consumers)));
  byId("runs-n").addEventListener("input", moveRuns);
  moveRuns();
}
