// The dashboard: what `/events` says, drawn; and the changing routes, behind a question.
//
// It keeps no opinion of its own about the canary: the verdict is the router's sentence. What it adds is the history
// that it has seen, which survives a restart of the router here and nowhere else. Two invariants: nothing that the
// router sends becomes markup or style (the policy of the page forbids it, and text nodes make it impossible), and
// what is old is never shown as if it were live.
"use strict";

const WINDOW = 15 * 60 * 1000;
const BUCKET = 10 * 1000;
const BUCKETS = WINDOW / BUCKET;
// A tick comes each second. Three and a half without one is no jitter any more; after ten a connection that seems to be
// open is none (a laptop that slept, a tunnel that died without a word).
const SILENCE_IS_LOSS = 3500;
const SILENCE_IS_DEAD = 10 * 1000;
const RECONNECT = 3000;
const SLOW_ANSWER = 10 * 1000;
const NO_ANSWER = 60 * 1000;
const TARGETS = ["main", "canary"];
const SVG = "http://www.w3.org/2000/svg";
const NBSP = "\u00a0";

// Everything that is known. `rows` has what each second was, of this instance and of those before it; an `epoch` is
// an instance's start by its wall clock, so that a clock that is set moves all of its rows at once.
const seen = {
  instance: null, epoch: null, columns: {}, rows: [], restarts: [],
  now: 0, heardAt: null, status: null, changes: null, connection: "connecting",
};

function begin() {
  beginTheme();
  beginCharts();
  beginActions();
  beginDecisions();
  connect();
  setInterval(watch, 1000);
  // A hidden tab keeps its data and its title, and draws when somebody looks.
  document.addEventListener("visibilitychange", () => { watch(); render(); });
}

// ---- the feed ----

let source = null;
let openedAt = 0;
let reconnecting = 0;

function connect() {
  clearTimeout(reconnecting);
  source?.close();
  openedAt = performance.now();
  const mine = source = new EventSource("/events");
  mine.addEventListener("hello", (event) => hear(event, hello));
  mine.addEventListener("tick", (event) => hear(event, tick));
  mine.addEventListener("error", () => {
    if (mine !== source) return;
    lose();
    // The browser retries what broke, but not what was answered with anything but 200 (503: too many watch).
    if (mine.readyState === EventSource.CLOSED) reconnecting = setTimeout(connect, RECONNECT);
  });
}

// A browser has six connections to a host, and each of its tabs with a dashboard holds one for the feed. So that a
// command never waits for a place that nobody will leave, the feed leaves its own to it, and takes the next one.
function request(path, options) {
  source.close();
  clearTimeout(reconnecting);
  reconnecting = setTimeout(connect, 200);
  return fetch(path, { cache: "no-store", ...options });
}

function hear(event, take) {
  let message;
  try {
    message = JSON.parse(event.data);
  } catch {
    return; // Half a message is none; the next one is a second away.
  }
  // Ticks of a router that we had no hello from say nothing about what their columns are.
  if (take === tick && !seen.epoch) return;
  const back = seen.connection === "lost";
  const before = seen.status;
  take(message);
  seen.heardAt = { steady: performance.now(), wall: Date.now() };
  seen.connection = "live";
  forget();
  announceChange(before, seen.status, back);
  render();
}

function hello(message) {
  const start = message.now - message.uptime * 1000;
  if (message.instance === seen.instance) {
    seen.rows = seen.rows.filter((row) => row.epoch !== seen.epoch);
  } else {
    if (seen.instance !== null) {
      seen.restarts.push(start);
      forgetAllDecisions();
    }
    seen.instance = message.instance;
    seen.epoch = { start };
  }
  seen.columns = Object.fromEntries(message.columns.map((name, index) => [name, index]));
  seen.changes = message.changes;
  for (const values of message.rows) keep(values);
  update(message);
}

function tick(message) {
  if (message.row) keep(message.row);
  update(message);
}

function update(message) {
  seen.now = message.now;
  seen.epoch.start = message.now - message.uptime * 1000;
  seen.status = message.status;
}

function keep(values) {
  const uptime = values[seen.columns.uptime];
  const last = seen.rows.at(-1);
  if (last && last.epoch === seen.epoch && last.uptime >= uptime) return;
  const row = { epoch: seen.epoch, uptime, evidence: values[seen.columns.evidence] ?? null };
  for (const target of TARGETS) {
    const of = (name) => values[seen.columns[`${target}.${name}`]] ?? null;
    row[target] = { requests: of("requests") ?? 0, failures: of("failures") ?? 0, p50: of("p50"), p99: of("p99") };
  }
  seen.rows.push(row);
}

function forget() {
  const oldest = seen.now - WINDOW - BUCKET;
  const first = seen.rows.findIndex((row) => time(row) >= oldest);
  seen.rows.splice(0, first < 0 ? seen.rows.length : first);
  seen.restarts = seen.restarts.filter((restart) => restart >= oldest);
}

function time(row) {
  return row.epoch.start + row.uptime * 1000;
}

// Once a second: whether anybody still says anything, and how old that makes what is shown.
function watch() {
  if (silence() > SILENCE_IS_LOSS) lose();
  const dead = silence() > SILENCE_IS_DEAD && performance.now() - openedAt > SILENCE_IS_DEAD;
  if (dead && source.readyState !== EventSource.CLOSED) connect();
  if (seen.connection !== "live") render();
}

function lose() {
  if (seen.connection === "lost") return;
  if (seen.connection === "live") announce("Connection lost. What is shown is not live.");
  seen.connection = "lost";
  render();
}

// How long ago the router last said something, by the viewer's stopwatch. The steady clock stands still while a laptop
// sleeps, so the wall clock has a say too, as a difference only.
function silence() {
  if (!seen.heardAt) return performance.now() - openedAt;
  return Math.max(performance.now() - seen.heardAt.steady, Date.now() - seen.heardAt.wall);
}

// The router's clock, at this moment.
function now() {
  return seen.now + (seen.connection === "live" ? 0 : silence());
}

// ---- what is drawn, from top to bottom ----

function render() {
  renderTab();
  if (document.hidden) return;
  renderConnection();
  if (!seen.status) return;
  renderSummary(seen.status);
  renderTargets(seen.status);
  renderCharts();
  renderRollout(seen.status);
  renderJudge(seen.status);
  renderGuards(seen.status);
  renderDecisions(seen.status);
  renderActions();
  refreshDialog();
}

// The icons of a level, for a viewBox of 24: the ground, which is filled, and the sign on it.
const LEVELS = {
  good: { color: "#1a7f4b", ground: "M12 2a10 10 0 1 0 0 20a10 10 0 1 0 0-20z", sign: "M7.5 12.4l3.1 3.1l6-6.6" },
  idle: { color: "#6b7280", ground: "M12 2a10 10 0 1 0 0 20a10 10 0 1 0 0-20z", sign: "M8 12h8" },
  warn: { color: "#eab308", ground: "M12 2.2L23 21.5H1z", sign: "M12 9v5.6M12 17.8v.2" },
  bad: { color: "#c4261d", ground: "M8 2h8l6 6v8l-6 6H8l-6-6V8z", sign: "M8.6 8.6l6.8 6.8M15.4 8.6l-6.8 6.8" },
  unknown: { color: "#6b7280", ground: "M12 2a10 10 0 1 0 0 20a10 10 0 1 0 0-20z", sign: "M7.5 12v.1M12 12v.1M16.5 12v.1" },
};

function level() {
  const known = seen.connection === "live" && seen.status?.summary?.level;
  return LEVELS[known] ? known : "unknown";
}

// The one or two words that a tab has room for.
function headline(status) {
  const { phase, step, steps } = status.rollout;
  if (phase === "rolled-back") return "Rolled back";
  switch (status.summary?.level) {
    case "bad": return "Bad";
    case "warn": return phase === "paused" ? "Paused" : "Attention";
    case "good":
      if (phase === "progressing") return `Good, step ${step} of ${steps.length}`;
      return phase === "succeeded" ? "Succeeded" : "Good";
    default: return "Idle";
  }
}

function renderTab() {
  const words = seen.connection === "lost" ? "Connection lost" : seen.status ? headline(seen.status) : "Connecting";
  const title = `● ${words} – canary-router`;
  if (document.title !== title) document.title = title;
  const { color, ground, sign } = LEVELS[level()];
  const ink = level() === "warn" ? "#1c1917" : "#fff";
  const svg = `<svg xmlns="${SVG}" viewBox="0 0 24 24"><path d="${ground}" fill="${color}"/>` +
    `<path d="${sign}" fill="none" stroke="${ink}" stroke-width="2.6" stroke-linecap="round"/></svg>`;
  attribute($("link[rel=icon]"), "href", `data:image/svg+xml,${encodeURIComponent(svg)}`);
}

function renderConnection() {
  const { connection } = seen;
  let words = connection === "live" ? "live" : "connecting";
  if (connection === "lost") {
    words = seen.heardAt
      ? `connection lost, data is ${duration(silence() / 1000)} old, retrying`
      : "no connection, retrying";
  }
  attribute(document.documentElement, "data-connection", connection);
  attribute($("#connection"), "data-state", connection);
  text($("#connection [data-text]"), words);
  text($("#version"), seen.status?.version ?? "");
}

function renderSummary(status) {
  const summary = $("#summary");
  const known = LEVELS[status.summary?.level] ? status.summary.level : "unknown";
  attribute(summary, "data-level", known);
  attribute($(".level-ground", summary), "d", LEVELS[known].ground);
  attribute($(".level-sign", summary), "d", LEVELS[known].sign);
  const isOld = seen.connection !== "live";
  text(part(summary, "level"), isOld ? `${duration(silence() / 1000)} ago: ${headline(status)}` : headline(status));
  prose($("#verdict"), status.summary?.text ?? "");
  const [last] = status.decisions;
  prose(part(summary, "latest"), last ? `${age(last)}, ${by(last)}: ${last.text}.` : "Nothing has been decided yet.");
}

// What is worse enough to say so. The rollout's own settings are not in the status; these are their defaults.
const WORSE_RATIO = 1.5;
const SLOWER_SHARE = 1.1;
const SLOWER_SECONDS = 0.015;
// What a minute shows is chance, unless it is so many standard deviations off and so many failures, or of so many requests. A red mark beside
// a judge who finds nothing would have somebody roll a good canary back.
const SURE = 3;
const FEW_FAILURES = 3;
const ENOUGH = { p50: 100, p99: 1000 };

function renderTargets(status) {
  const { main, canary } = status.targets;
  const all = main.requests + canary.requests;
  for (const name of TARGETS) {
    const card = $(`#${name}-card`);
    const target = status.targets[name];
    const url = part(card, "url");
    text(url, target.url);
    attribute(url, "title", target.url);
    const share = name === "canary" ? status.weight : 100 - status.weight;
    value(field(card, "share"), weight(share));
    note(card, "share", all ? `of eligible requests; got ${percent(target.requests / all)} of all` : "of eligible requests");
    value(field(card, "rate"), rate(target.requests_per_second));
    note(card, "rate", target.inflight === undefined ? "" : `${count(target.inflight)} in flight`);
    value(field(card, "failure-ratio"), target.failure_ratio === null ? null : percent(target.failure_ratio));
    for (const quantile of ["p50", "p99"]) {
      const seconds = target.latency_seconds[quantile];
      value(field(card, quantile), seconds === null ? null : latency(seconds));
    }
  }
  renderSplit(status.weight);
  const fails = compareFailures(main, canary);
  const counts = (target) => target.requests ? `${count(target.failures)} of ${count(target.requests)}` : "";
  note($("#main-card"), "failure-ratio", counts(main), fails.worse === "main");
  note($("#canary-card"), "failure-ratio", fails.words, fails.worse === "canary", counts(canary));
  for (const quantile of ["p50", "p99"]) {
    const takes = compareLatency(main, canary, quantile);
    note($("#main-card"), quantile, takes.worse === "main" ? "slower" : "", takes.worse === "main");
    note($("#canary-card"), quantile, takes.words, takes.worse === "canary");
  }
}

function renderSplit(share) {
  const split = $(".split");
  attribute(split, "aria-label", `Of eligible requests the canary gets ${weight(share)}, main ${weight(100 - share)}`);
  $(".split-canary").style.flexGrow = String(share);
  $(".split-main").style.flexGrow = String(100 - share);
  $(".split-canary").hidden = share === 0;
  $(".split-main").hidden = share === 100;
}

function compareFailures(main, canary) {
  if (main.failure_ratio === null || canary.failure_ratio === null) return { words: "" };
  const ratio = canary.failure_ratio / main.failure_ratio;
  const words = main.failure_ratio === canary.failure_ratio ? "as main"
    : main.failure_ratio === 0 ? "main fails none"
    : canary.failure_ratio === 0 ? "less than main"
    : Math.abs(ratio - 1) < 0.1 ? "as main" : `${significant(ratio)}× main’s`;
  const both = (main.failures + canary.failures) / (main.requests + canary.requests);
  const deviation = Math.sqrt(both * (1 - both) * (1 / main.requests + 1 / canary.requests));
  const worse = (one, other) => one.failures >= FEW_FAILURES && one.failure_ratio > WORSE_RATIO * other.failure_ratio &&
    one.failure_ratio - other.failure_ratio > SURE * deviation;
  return { words, worse: worse(canary, main) ? "canary" : worse(main, canary) ? "main" : null };
}

function compareLatency(ofMain, ofCanary, quantile) {
  const [main, canary] = [ofMain, ofCanary].map((target) => target.latency_seconds[quantile]);
  if (main === null || canary === null) return { words: "" };
  const known = Math.min(ofMain.requests, ofCanary.requests) >= ENOUGH[quantile];
  const slower = (one, other) => one > Math.max(other * SLOWER_SHARE, other + SLOWER_SECONDS);
  const difference = latency(Math.abs(canary - main));
  const same = Math.abs(canary - main) < 0.0005 || Math.abs(canary / main - 1) < 0.005;
  return {
    words: same ? "as main" : `${canary > main ? "+" : "−"}${difference}`,
    worse: !known ? null : slower(canary, main) ? "canary" : slower(main, canary) ? "main" : null,
  };
}

// A second line may follow, which is worse in no case.
function note(card, name, words, isWorse = false, more = "") {
  const node = $(`[data-note="${name}"]`, card);
  const [first, second] = pool(node, 2, () => element("span"));
  text(first, isWorse ? `▲ ${words}, worse` : words);
  first.classList.toggle("worse", isWorse);
  text(second, more);
}

// ---- charts ----

const CHARTS = [
  { name: "rate", title: "Requests", unit: 1, least: 1, format: rate,
    values: (bucket) => TARGETS.map((target) => bucket.seconds ? bucket[target].requests / bucket.seconds : null) },
  { name: "failures", title: "Failing requests", unit: 0.01, least: 0.01, format: percent,
    values: (bucket) => TARGETS.map((target) => {
      const { requests, failures } = bucket[target];
      return requests ? failures / requests : null;
    }) },
  { name: "p50", title: "Latency, p50", unit: 0.001, least: 0.001, format: latency,
    values: (bucket) => TARGETS.map((target) => bucket[target].p50) },
  { name: "p99", title: "Latency, p99", unit: 0.001, least: 0.001, format: latency,
    values: (bucket) => TARGETS.map((target) => bucket[target].p99) },
  { name: "evidence", title: "Evidence against the canary", unit: 1, least: 1, format: evidence, tick: significant,
    values: (bucket) => [null, bucket.evidence] },
];

// Where somebody points in time, in all charts at once; `chart` is the one in which he does.
let cursor = null;

function beginCharts() {
  for (const chart of CHARTS) {
    const figure = element("figure", { "data-chart": chart.name });
    const head = element("figcaption", {}, figure);
    element("h3", {}, head).textContent = chart.title;
    chart.legend = (chart.name === "evidence" ? ["canary"] : TARGETS).map((target) => {
      const entry = element("span", { class: `legend ${target}` }, head);
      element("span", { class: "swatch", "aria-hidden": "true" }, entry);
      element("span", { class: "legend-name" }, entry).textContent = target === "main" ? "Main" : "Canary";
      return { target, value: element("span", { class: "legend-value" }, entry) };
    });
    const words = element("p", { class: "out-of-sight", id: `words-${chart.name}` }, figure);
    const plot = element("div", {
      class: "plot", role: "slider", tabindex: "0", "aria-label": `${chart.title}, a moment of the last 15 minutes`,
      "aria-describedby": words.id,
    }, figure);
    const svg = drawn("svg", { "aria-hidden": "true" }, plot);
    Object.assign(chart, {
      figure, words, plot, svg, grid: drawn("g", { class: "grid" }, svg), marks: drawn("g", { class: "marks" }, svg),
      threshold: drawn("path", { class: "threshold" }, svg),
      lines: TARGETS.map((target) => drawn("path", { class: `line ${target}` }, svg)),
      ends: TARGETS.map((target) => drawn("circle", { class: `end ${target}`, r: 3 }, svg)),
      thresholdName: drawn("text", { class: "threshold" }, svg), hair: drawn("path", { class: "hair" }, svg),
      tip: element("p", { class: "tip", "aria-hidden": "true", hidden: "" }, plot),
    });
    listenTo(chart);
    $("#charts").append(figure);
  }
  // The observer tells the widths, so that drawing never asks for a layout.
  const observer = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) CHARTS.find(({ plot }) => plot === target).width = contentRect.width;
    renderCharts();
  });
  for (const { plot } of CHARTS) observer.observe(plot);
}

function listenTo(chart) {
  const point = (event) => {
    const { left } = chart.plot.getBoundingClientRect();
    const { from, to } = chart.across;
    const index = Math.floor((event.clientX - left - from) / (to - from) * BUCKETS);
    moveCursor(chart, Math.min(Math.max(index, 0), BUCKETS - 1));
  };
  const leave = () => { cursor = null; renderCharts(); };
  chart.plot.addEventListener("pointermove", point);
  chart.plot.addEventListener("pointerdown", point);
  // A finger that lifts leaves what it pointed at to be read; a mouse that goes takes it along.
  chart.plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") leave(); });
  chart.plot.addEventListener("focus", () => { if (!cursor) moveCursor(chart, BUCKETS - 1); });
  chart.plot.addEventListener("blur", leave);
  chart.plot.addEventListener("keydown", (event) => {
    if (!chart.buckets) return;
    const index = cursor ? indexOf(chart.buckets, cursor.time) : BUCKETS - 1;
    const marked = marks().map((mark) => indexOf(chart.buckets, mark.time)).sort((a, b) => a - b);
    const to = {
      ArrowLeft: index - 1, ArrowDown: index - 1, ArrowRight: index + 1, ArrowUp: index + 1,
      Home: 0, End: BUCKETS - 1,
      PageUp: marked.filter((at) => at < index).at(-1) ?? index, PageDown: marked.find((at) => at > index) ?? index,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    moveCursor(chart, Math.min(Math.max(to, 0), BUCKETS - 1));
  });
}

function moveCursor(chart, index) {
  if (!chart.buckets) return;
  cursor = { chart, time: chart.buckets[index].time };
  renderCharts();
}

function indexOf(buckets, moment) {
  const index = Math.floor((moment - buckets[0].time) / BUCKET);
  return Math.min(Math.max(index, 0), BUCKETS - 1);
}

function renderCharts() {
  if (!seen.status || document.hidden) return;
  const buckets = bucketed();
  if (cursor && cursor.time < buckets[0].time) cursor = null;
  const events = marks();
  $("[data-chart=evidence]").hidden = !seen.status.evidence && buckets.every((bucket) => bucket.evidence === null);
  for (const chart of CHARTS) {
    if (chart.width > 0) renderChart(chart, buckets, events);
  }
}

const NOTHING = { requests: 0, failures: 0, p50: null, p99: null };

// Rows into buckets on a grid of the clock, which stands still for ten seconds: what is past does not wriggle. A
// bucket without rows is a time when nobody counted.
function bucketed() {
  const end = Math.ceil(now() / BUCKET) * BUCKET;
  const buckets = Array.from({ length: BUCKETS }, (_, index) => ({
    time: end - WINDOW + index * BUCKET, seconds: 0, evidence: null,
    main: { ...NOTHING }, canary: { ...NOTHING },
  }));
  for (const row of seen.rows) {
    const bucket = buckets[Math.floor((time(row) - buckets[0].time) / BUCKET)];
    if (!bucket) continue;
    bucket.seconds += 1;
    bucket.evidence = row.evidence ?? bucket.evidence;
    for (const target of TARGETS) {
      bucket[target].requests += row[target].requests;
      bucket[target].failures += row[target].failures;
      // They are of the last ten seconds already.
      bucket[target].p50 = row[target].p50 ?? bucket[target].p50;
      bucket[target].p99 = row[target].p99 ?? bucket[target].p99;
    }
  }
  // The first seconds of the newest bucket would make its end jump.
  const newest = buckets.at(-1);
  if (newest.seconds < 3) Object.assign(newest, { seconds: 0, evidence: null, main: NOTHING, canary: NOTHING });
  return buckets;
}

// What stands in time beside the figures: decisions and restarts.
function marks() {
  const decided = (seen.status?.decisions ?? []).map((decision) => ({
    time: Date.parse(decision.time), words: decision.text,
    kind: isRollback(decision) ? "bad" : "decided", label: isRollback(decision) ? "rolled back" : "",
  }));
  const restarted = seen.restarts.map((moment) => ({
    time: moment, words: "router restarted", kind: "restarted", label: "restarted",
  }));
  return [...decided, ...restarted].filter((mark) => mark.time > now() - WINDOW);
}

const HEIGHT = 136;
const TOP = 14;
const BOTTOM = HEIGHT - 22;
const GUTTER = 52;

function renderChart(chart, buckets, events) {
  const { width } = chart;
  const across = { from: GUTTER, to: width - 6 };
  Object.assign(chart, { buckets, across });
  attribute(chart.svg, "viewBox", `0 0 ${width} ${HEIGHT}`);
  const x = (moment) => across.from + (moment - buckets[0].time) / WINDOW * (across.to - across.from);
  const middle = (index) => x(buckets[index].time + BUCKET / 2);
  const rows = buckets.map(chart.values);
  const limit = chart.name === "evidence" ? seen.status.evidence?.threshold ?? null : null;
  const scale = scaled(rows.flat().concat(limit).filter((each) => each !== null), chart);
  const y = (each) => BOTTOM - (each - scale.low) / (scale.high - scale.low) * (BOTTOM - TOP);

  drawGrid(chart, scale, across, x, y, buckets);
  drawMarks(chart, events, x);
  attribute(chart.threshold, "d", limit === null ? "" : `M${across.from} ${y(limit).toFixed(1)}H${across.to}`);
  attribute(chart.thresholdName, "x", across.from + 4);
  attribute(chart.thresholdName, "y", limit === null ? 0 : (y(limit) - 5).toFixed(1));
  text(chart.thresholdName, limit === null ? "" : `rolled back at ${evidence(limit)}`);
  TARGETS.forEach((_, series) => {
    const values = rows.map((row) => row[series]);
    attribute(chart.lines[series], "d", line(values, middle, y));
    const last = values.findLastIndex((each) => each !== null);
    // An end that is some time ago is no present value.
    const shown = last >= BUCKETS - 2;
    attribute(chart.ends[series], "visibility", shown ? "visible" : "hidden");
    if (shown) {
      attribute(chart.ends[series], "cx", middle(last).toFixed(1));
      attribute(chart.ends[series], "cy", y(values[last]).toFixed(1));
    }
  });
  drawCursor(chart, buckets, rows, events, middle, width);
  describe(chart, buckets, rows);
}

// Two to five intervals of 1, 2 or 5 times a power of ten, in the unit that is shown.
function scaled(values, { unit, least }) {
  const top = Math.max(least, ...values) / unit;
  const bottom = Math.min(0, ...values) / unit;
  const rough = (top - bottom) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough * 0.999);
  const low = Math.floor(bottom / step) * step;
  const high = Math.ceil(top / step - 1e-9) * step;
  const ticks = [];
  for (let tick = low; tick <= high + step / 2; tick += step) ticks.push(tick * unit);
  return { low: low * unit, high: high * unit, ticks };
}

// From value to value, and from nothing to nothing: a gap is no zero. A value by itself becomes a dot.
function line(values, x, y) {
  let path = "";
  let down = false;
  values.forEach((each, index) => {
    if (each === null) {
      down = false;
      return;
    }
    path += `${down ? "L" : "M"}${x(index).toFixed(1)} ${y(each).toFixed(1)}${down ? "" : "h0"}`;
    down = true;
  });
  return path;
}

function drawGrid(chart, scale, across, x, y, buckets) {
  const minutes = [];
  const every = 5 * 60 * 1000;
  const start = buckets[0].time;
  for (let moment = Math.ceil(start / every) * every; moment <= start + WINDOW; moment += every) minutes.push(moment);
  const nodes = pool(chart.grid, scale.ticks.length + minutes.length, () => {
    const group = drawn("g");
    drawn("path", {}, group);
    drawn("text", {}, group);
    return group;
  });
  nodes.forEach((group, index) => {
    const [path, label] = group.children;
    const tick = scale.ticks[index];
    const moment = minutes[index - scale.ticks.length];
    const isTime = tick === undefined;
    attribute(group, "class", isTime ? "minute" : tick === 0 ? "zero" : "tick");
    if (isTime) {
      attribute(path, "d", `M${x(moment).toFixed(1)} ${BOTTOM}v4`);
      attribute(label, "x", Math.min(Math.max(x(moment), across.from + 14), across.to - 14).toFixed(1));
      attribute(label, "y", HEIGHT - 4);
      text(label, clock(moment, "minutes"));
    } else {
      attribute(path, "d", `M${across.from} ${y(tick).toFixed(1)}H${across.to}`);
      attribute(label, "x", 0);
      attribute(label, "y", (y(tick) + 4).toFixed(1));
      text(label, (chart.tick ?? chart.format)(tick));
    }
  });
}

function drawMarks(chart, events, x) {
  const nodes = pool(chart.marks, events.length, () => {
    const group = drawn("g");
    drawn("path", {}, group);
    drawn("text", {}, group);
    return group;
  });
  nodes.forEach((group, index) => {
    const mark = events[index];
    const [path, label] = group.children;
    const at = x(mark.time);
    const { from, to } = chart.across;
    attribute(group, "class", `mark ${mark.kind}`);
    attribute(path, "d", `M${at.toFixed(1)} ${TOP - 8}V${BOTTOM}`);
    // A label stands on the side where there is room.
    const isLeft = at > (from + to) / 2;
    attribute(label, "x", (isLeft ? at - 4 : at + 4).toFixed(1));
    attribute(label, "y", TOP - 2);
    attribute(label, "text-anchor", isLeft ? "end" : "start");
    text(label, mark.label);
  });
}

function drawCursor(chart, buckets, rows, events, middle, width) {
  const index = cursor ? indexOf(buckets, cursor.time) : BUCKETS - 1;
  const known = cursor ? rows[index] : latest(chart, rows);
  attribute(chart.hair, "d", cursor ? `M${middle(index).toFixed(1)} ${TOP - 8}V${BOTTOM}` : "");
  for (const { target, value } of chart.legend) {
    const each = known[TARGETS.indexOf(target)];
    text(value, each === null ? "–" : chart.format(each));
  }
  const near = events.filter((mark) => Math.abs(indexOf(buckets, mark.time) - index) <= 1);
  const what = cursor ? near.map((mark) => `${clock(mark.time)} ${mark.words}`) : [];
  const slider = chart.plot;
  attribute(slider, "aria-valuemin", buckets[0].time / BUCKET);
  attribute(slider, "aria-valuemax", buckets[0].time / BUCKET + BUCKETS - 1);
  attribute(slider, "aria-valuenow", buckets[index].time / BUCKET);
  const values = chart.legend.map(({ target }) => {
    const each = known[TARGETS.indexOf(target)];
    return `${target} ${each === null ? "nothing" : chart.format(each)}`;
  });
  attribute(slider, "aria-valuetext", [`${clock(buckets[index].time)}: ${values.join(", ")}`, ...what].join("; "));
  const isHere = cursor?.chart === chart;
  chart.tip.hidden = !isHere;
  if (!isHere) return;
  text(chart.tip, [clock(buckets[index].time), ...what].join("\n"));
  const at = middle(index);
  chart.tip.style.left = at > width / 2 ? "auto" : `${at}px`;
  chart.tip.style.right = at > width / 2 ? `${width - at}px` : "auto";
}

// The cards have the last minute; a legend has the last bucket that is there, unless it is old.
function latest(chart, rows) {
  return TARGETS.map((_, series) => rows.at(-1)[series] ?? rows.at(-2)[series]);
}

// What is to be seen, in a sentence. It changes with the buckets, and is read when somebody asks.
function describe(chart, buckets, rows) {
  const said = chart.legend.map(({ target }) => {
    const values = rows.map((row) => row[TARGETS.indexOf(target)]).filter((each) => each !== null);
    if (!values.length) return `${target} has none`;
    const [low, high, last] = [Math.min(...values), Math.max(...values), values.at(-1)].map(chart.format);
    return `${target} between ${low} and ${high}, last ${last}`;
  });
  text(chart.words, `${chart.title}, from ${clock(buckets[0].time, "minutes")} on: ${said.join("; ")}.`);
}

// ---- rollout, judge, guards ----

function renderRollout({ rollout, weight: share }) {
  const section = $("#rollout");
  const { phase, step, steps } = rollout;
  attribute(section, "data-phase", phase);
  const where = step && steps.length ? `step ${step} of ${steps.length}` : `step ${step}`;
  text(part(section, "phase"), {
    idle: `None is under way; the canary gets ${weight(share)} until somebody says otherwise.`,
    progressing: `In ${where}: the canary gets ${weight(share)}.`,
    paused: `Paused in ${where}: the canary keeps ${weight(share)}; the judge goes on, and may roll back.`,
    succeeded: `Succeeded: the canary keeps ${weight(share)}.`,
    "rolled-back": `Rolled back${step ? ` in ${where}` : ""}: the canary gets ${share === 0 ? "nothing" : weight(share)}.`,
  }[phase] ?? phase);
  const tags = [phase === "paused" && "paused", rollout.extended && "extended", rollout.dry_run && "dry run"].filter(Boolean);
  pool($("[data-list=tags]", section), tags.length, () => element("li")).forEach((tag, index) => {
    text(tag, tags[index]);
    attribute(tag, "title", {
      "dry run": "the judge says what it would do, and does nothing", paused: "the steps stand still",
      extended: "the step's time is over, with too little evidence",
    }[tags[index]]);
  });
  const none = part(section, "no-steps");
  none.hidden = steps.length > 0;
  text(none, "No rollout is configured: rollout.steps is empty. The weight can be set by hand.");
  renderSteps($("[data-list=steps]", section), rollout);
}

function renderSteps(list, rollout) {
  const { phase, step, steps, elapsed_seconds: elapsed } = rollout;
  // Promoted before its end, a rollout has succeeded without having passed all steps; set by hand, it has none.
  const stateOf = (number) => {
    if (phase === "idle" || number > step) return "ahead";
    if (number < step || (phase === "succeeded" && step === steps.length)) return "passed";
    return isUnderWay(rollout) ? "current" : phase === "rolled-back" ? "failed" : "ahead";
  };
  list.hidden = steps.length === 0;
  list.classList.toggle("many", steps.length > 8);
  // What scrolls must be reachable without a mouse.
  attribute(list, "tabindex", steps.length > 8 ? "0" : null);
  const items = pool(list, steps.length, () => {
    const item = element("li");
    element("span", { class: "track", "aria-hidden": "true" }, item).append(element("span"));
    element("strong", {}, item);
    element("span", { class: "note" }, item);
    return item;
  });
  items.forEach((item, index) => {
    const number = index + 1;
    const { weight: share, for_seconds: lasts } = steps[index];
    const state = stateOf(number);
    attribute(item, "data-step", number);
    attribute(item, "data-state", state);
    attribute(item, "aria-current", state === "current" ? "step" : null);
    const [track, title, words] = item.children;
    const done = { passed: 1, ahead: 0 }[state] ?? Math.min(elapsed / lasts, 1);
    track.firstElementChild.style.setProperty("--done", done);
    text(title, weight(share));
    text(words, {
      passed: `${duration(lasts)}, passed`, ahead: duration(lasts), failed: `rolled back after ${duration(elapsed)}`,
      current: elapsed > lasts ? `${duration(elapsed)}, was to last ${duration(lasts)}` : `${duration(elapsed)} of ${duration(lasts)}`,
    }[state]);
  });
  const shown = `${phase} ${step}`;
  if (list.classList.contains("many") && list.dataset.shown !== shown && step > 0 && items[step - 1]) {
    list.dataset.shown = shown;
    list.scrollTop = items[step - 1].offsetTop - list.clientHeight / 2;
  }
}

function renderJudge({ evidence: found, rollout }) {
  const section = $("#judge");
  $("[data-part=figures]", section).hidden = !found;
  text(part(section, "verdict"), !found ? "It has nothing to judge: no rollout is under way." : `${isUnderWay(rollout) ? "It says: " : "Its last word: "}${{
    healthy: "the canary is good enough for this step.",
    inconclusive: "there are too few requests to tell yet.",
    unhealthy: "the canary is worse than allowed.",
  }[found.verdict] ?? found.verdict}`);
  if (!found) return;
  attribute(section, "data-verdict", found.verdict);
  const { overall, threshold, enough } = found;
  const forIt = Math.max(found.safe_ratio, found.acceptable_failure_rate);
  text(part(section, "overall"), `${evidence(overall)} of ${evidence(threshold)}`);
  text(part(section, "overall-note"), [
    `at ${evidence(threshold)} the canary is rolled back${rollout.dry_run ? ", but this is a dry run: it is only said" : ""}`,
    ...overall < 0 ? ["below 0 it speaks for the canary"] : [],
  ].join("; "));
  meter($(".against", section), overall, threshold, `${evidence(overall)} of ${evidence(threshold)}`);
  text(part(section, "enough"), `${evidence(forIt)} of ${evidence(enough)}`);
  text(part(section, "enough-note"), forIt >= enough ? "enough: the step is passed when its time is over"
    : `at ${evidence(enough)} it is enough to pass the step`);
  meter($(".for", section), forIt, enough, `${evidence(forIt)} of ${evidence(enough)}`);
  const parts = `Errors ${evidence(found.errors)}, latency ${found.latency === null ? "not judged" : evidence(found.latency)}.`;
  text(part(section, "counts"), `Judged by ${count(found.requests.canary)} requests of the canary, ${count(found.failures.canary)} failed, and ` +
    `${count(found.requests.main)} of main, ${count(found.failures.main)} failed. ${parts}`);
}

const BREAKERS = {
  canary: {
    closed: "the canary gets its requests", open: "main gets the canary’s requests",
    half_open: "a few requests try the canary, main gets the others",
  },
  main: {
    closed: "main gets its requests", open: "main’s clients get the fallback, or a 503",
    half_open: "a few requests try main, other clients get the fallback, or a 503",
  },
  sidecar: {
    closed: "the sidecar is asked", open: "the sidecar is not asked, requests go to main",
    half_open: "one request at a time asks the sidecar",
  },
};

function renderGuards({ breakers, limits, state }) {
  const section = $("#guards");
  facts($("[data-list=breakers]", section), Object.keys(BREAKERS).map((name) => ({
    name: `${name[0].toUpperCase()}${name.slice(1)} breaker`, state: breakers[name].replace("_", "-"), isBad: breakers[name] !== "closed",
    words: BREAKERS[name][breakers[name]] ?? "",
  })));
  renderLimits($("[data-list=limits]", section), limits);
  const written = !state ? { state: "in memory", words: "no state.file is configured: a restart forgets limits, weight and rollout" }
    : state.written ? { state: "written", words: state.file }
    : { state: "not written", isBad: true, words: `${state.error ?? "no reason is known"}: ${state.file}` };
  facts($("[data-list=state]", section), [{ name: "State file", ...written }]);
}

function facts(list, all) {
  const rows = pool(list, all.length, () => {
    const row = element("div");
    element("dt", {}, row);
    element("dd", { class: "state" }, row);
    element("dd", { class: "note" }, row);
    return row;
  });
  rows.forEach((row, index) => {
    const { name, state, words, isBad } = all[index];
    const [title, short, long] = row.children;
    text(title, name);
    text(short, isBad ? `▲ ${state}` : state);
    short.classList.toggle("worse", !!isBad);
    text(long, words);
  });
}

function renderLimits(list, limits) {
  const all = ["errors", "requests"].map((name) => ({
    name, left: limits[`${name}_remaining`], limit: limits[`${name}_limit`] ?? null,
  }));
  const rows = pool(list, all.length, () => {
    const row = element("div", { class: "measure" });
    const head = element("p", {}, row);
    element("span", {}, head);
    element("strong", {}, head);
    element("div", { class: "meter left", role: "meter", "aria-valuemin": "0" }, row).append(element("span"));
    return row;
  });
  rows.forEach((row, index) => {
    const { name, left, limit } = all[index];
    const [head, bar] = row.children;
    const words = left === null ? "no limit" : `${count(left)}${limit === null ? "" : ` of ${count(limit)}`} left`;
    text(head.children[0], name === "errors" ? "Errors that the canary may make" : "Requests that the canary may get");
    text(head.children[1], left === 0 ? `▲ ${words}` : words);
    head.children[1].classList.toggle("worse", left === 0);
    bar.hidden = left === null || limit === null;
    attribute(bar, "aria-label", name === "errors" ? "Errors left" : "Requests left");
    meter(bar, left ?? 0, limit ?? 1, words);
  });
}

function meter(bar, amount, most, words) {
  const filled = most > 0 ? Math.min(Math.max(amount / most, 0), 1) : 0;
  bar.firstElementChild.style.width = `${filled * 100}%`;
  attribute(bar, "aria-valuemax", most);
  attribute(bar, "aria-valuenow", Math.min(Math.max(amount, 0), most));
  attribute(bar, "aria-valuetext", words);
}

// ---- decisions ----

// All that were asked for, by key; null until somebody asks.
let allDecisions = null;
const decisionNodes = new Map();

function beginDecisions() {
  const button = $("#all-decisions");
  button.addEventListener("click", async () => {
    if (button.getAttribute("aria-disabled") === "true") return;
    attribute(button, "aria-disabled", "true");
    try {
      const answer = await request("/decisions", { signal: AbortSignal.timeout(SLOW_ANSWER) });
      if (!answer.ok) throw new Error(`the router answered ${answer.status}`);
      const { decisions } = await answer.json();
      allDecisions = new Map(decisions.map((decision) => [key(decision), decision]));
      say("ok", `${count(decisions.length)} decisions are shown.`);
      render();
    } catch (error) {
      say("failed", `The decisions could not be read: ${error.message}.`);
    }
    attribute(button, "aria-disabled", null);
  });
}

function forgetAllDecisions() {
  allDecisions = null;
}

// A router without a state file counts from 1 again after a restart.
function key({ number, time: when }) {
  return `${number} ${when}`;
}

function renderDecisions({ decisions: newest }) {
  let shown = newest;
  if (allDecisions) {
    const fresh = newest.filter((decision) => !allDecisions.has(key(decision)));
    if (fresh.length) {
      const entries = fresh.map((decision) => [key(decision), decision]);
      allDecisions = new Map([...entries, ...allDecisions].slice(0, 100));
    }
    shown = [...allDecisions.values()];
  }
  const list = $("#decisions");
  const keys = new Set(shown.map(key));
  for (const [name, item] of decisionNodes) {
    if (keys.has(name)) continue;
    item.remove();
    decisionNodes.delete(name);
  }
  shown.forEach((decision, index) => {
    const name = key(decision);
    if (!decisionNodes.has(name)) decisionNodes.set(name, decisionItem(decision));
    const item = decisionNodes.get(name);
    if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
    text($("[data-age]", item), age(decision));
    if (decision.figures && !$("details", item)) item.append(figures(decision.figures));
  });
  $("#no-decisions").hidden = shown.length > 0;
  $("#all-decisions").hidden = shown.length === 0;
}

function decisionItem(decision) {
  const item = element("li", { class: isRollback(decision) ? "bad" : "" });
  prose(element("p", {}, item), sentence(decision.text));
  const meta = element("p", { class: "note" }, item);
  element("span", { "data-age": "" }, meta);
  const when = Date.parse(decision.time);
  meta.append(", ");
  element("time", { datetime: decision.time, title: new Date(when).toString() }, meta).textContent = clock(when);
  meta.append(`, ${by(decision)}`);
  return item;
}

function figures({ settings, strength, accounts }) {
  const details = element("details");
  element("summary", {}, details).textContent = "Figures";
  if (strength) {
    const forIt = Math.max(strength.safe_ratio, strength.acceptable_failure_rate);
    element("p", { class: "note" }, details).textContent =
      `Against the canary ${evidence(strength.overall)} of ${evidence(strength.threshold)} ` +
      `(errors ${evidence(strength.errors)}, latency ${strength.latency === null ? "not judged" : evidence(strength.latency)}); ` +
      `for it ${evidence(forIt)} of ${evidence(strength.enough)}.` +
      (settings ? ` It may fail ${significant(settings.error_ratio)} times as often as main.` : "");
  }
  if (!accounts?.length) return details;
  const table = element("table", {}, details);
  const head = element("tr", {}, element("thead", {}, table));
  for (const title of ["Step", "Weight", "Main failed", "Canary failed"]) element("th", { scope: "col" }, head).textContent = title;
  const body = element("tbody", {}, table);
  for (const account of accounts) {
    const row = element("tr", {}, body);
    const failed = ({ failures, requests }) => `${count(failures)} of ${count(requests)}`;
    const cells = [account.step, weight(account.weight), failed(account.main), failed(account.canary)];
    for (const cell of cells) element("td", {}, row).textContent = cell;
  }
  return details;
}

function isRollback({ from, to }) {
  return to.phase === "rolled-back" && from.phase !== "rolled-back";
}

function by(decision) {
  return { operator: "an operator", judge: "the judge", clock: "the clock", configuration: "the configuration" }[decision.by] ?? decision.by;
}

function age(decision) {
  const seconds = (now() - Date.parse(decision.time)) / 1000;
  return seconds < 2 ? "just now" : `${duration(seconds, 1)} ago`;
}

// ---- what an operator can do ----

// `refusal` says why it makes no sense now, or nothing; `ask` what will happen; `done` what has. The router decides
// in the end: between a tick and a click things change.
const ACTIONS = {
  weight: {
    path: "/traffic/weight", method: "PUT", title: "Set the weight", confirm: "Set the weight",
    refusal: ({ rollout }) => rollout.phase === "progressing" &&
      "A rollout is progressing, and its steps say what the weight is: pause or abort it first.",
    ask: (status) => {
      const wanted = readWeight();
      if (wanted === null) return `The canary gets ${weight(status.weight)} of eligible requests now.`;
      const after = { paused: " The rollout stays paused; resumed, its step begins anew with its own weight.",
        succeeded: " The rollout is over, then, and idle.", "rolled-back": " The rollout is not rolled back any more, but idle: nobody judges." }[status.rollout.phase] ?? "";
      return `The canary gets ${weight(wanted)} of eligible requests instead of ${weight(status.weight)}, at once.${after}`;
    },
    done: (status) => `The canary gets ${weight(status.weight)} of eligible requests.`,
  },
  start: {
    path: "/rollout/start", title: "Start the rollout", confirm: "Start",
    refusal: ({ rollout }) => rollout.steps.length === 0
      ? "No rollout is configured: write rollout.steps into the configuration, or set the weight by hand."
      : isUnderWay(rollout) && "A rollout is under way already: abort or promote it first, or resume it if it is paused.",
    ask: ({ rollout, weight: share }) => {
      const [first] = rollout.steps;
      return `The rollout begins with step 1 of ${rollout.steps.length}: the canary gets ${weight(first.weight)} of eligible requests instead of ` +
        `${weight(share)}, for ${duration(first.for_seconds)}. It goes on by itself, up to ${weight(rollout.steps.at(-1).weight)}, ` +
        (rollout.dry_run ? "whatever the judge says: it is a dry run." : "and ends at 0 % when the judge finds the canary worse than allowed.");
    },
    done: ({ weight: share }) => `The rollout has begun: the canary gets ${weight(share)}.`,
  },
  pause: {
    path: "/rollout/pause", title: "Pause the rollout", confirm: "Pause",
    refusal: ({ rollout }) => rollout.phase !== "progressing" && "No rollout is progressing, so there is nothing to pause.",
    ask: ({ rollout, weight: share }) => `The rollout stays in step ${rollout.step}: the canary keeps ${weight(share)} of eligible requests. ` +
      "The judge goes on, and rolls the canary back if it is worse than allowed.",
    done: ({ rollout }) => `The rollout is paused in step ${rollout.step}.`,
  },
  resume: {
    path: "/rollout/resume", title: "Resume the rollout", confirm: "Resume",
    refusal: ({ rollout }) => rollout.phase !== "paused" ? "No rollout is paused, so there is nothing to resume."
      : rollout.steps.length === 0 && "No rollout is configured any more, so there is nothing to resume.",
    ask: ({ rollout, weight: share }) => {
      const step = rollout.steps[Math.min(Math.max(rollout.step, 1), rollout.steps.length) - 1];
      const isAnew = step.weight !== share || rollout.extended;
      const gets = step.weight === share ? `keeps ${weight(share)}` : `gets ${weight(step.weight)} instead of ${weight(share)}`;
      return `Step ${rollout.step} ${isAnew ? "begins anew" : "goes on where it was paused"}: the canary ${gets} of eligible requests.`;
    },
    done: ({ rollout }) => `The rollout goes on with step ${rollout.step}.`,
  },
  promote: {
    path: "/rollout/promote", title: "Promote the canary", confirm: "Give the canary everything", isRisky: true,
    refusal: ({ rollout, weight: share }) => rollout.phase === "succeeded" && share === 100 && "The canary gets everything already.",
    ask: ({ weight: share }) => `The canary gets 100 % of eligible requests instead of ${weight(share)}, at once. The rollout is over, then: nobody judges the canary any more.`,
    done: () => "The canary is promoted: it gets all eligible requests.",
  },
  // The brake is never refused: what the page knows may be old, and the router takes it in every phase.
  abort: {
    path: "/rollout/abort", title: "Abort: nothing to the canary", confirm: "Abort now", isDestructive: true,
    refusal: () => false,
    ask: ({ weight: share }) => (share === 0
      ? "The canary gets no eligible requests already; from now on that is so because you have said it."
      : `The canary gets no eligible requests any more instead of ${weight(share)}, at once; main gets them all.`) +
      " It stays so until somebody starts a rollout, promotes or sets the weight. Requests that ask for the canary by X-Canary still go there.",
    done: () => "Aborted: the canary gets no eligible requests any more.",
  },
  "reset-breakers": {
    path: "/breaker/reset", title: "Reset the breakers", confirm: "Close the breakers",
    refusal: ({ breakers }) => notClosed(breakers).length === 0 && "All breakers are closed.",
    ask: ({ breakers }) => `These breakers are closed at once: ${notClosed(breakers).join(", ")}. Requests go there again in full, whether or not what opened them is over.`,
    done: () => "All breakers are closed.",
  },
  "reset-limits": {
    path: "/limits/reset", title: "Reset the limits", confirm: "Begin with unused limits", isRisky: true,
    refusal: ({ limits }) => {
      const known = ["errors", "requests"].filter((name) => limits[`${name}_remaining`] !== null);
      if (known.length === 0) return "No limit is configured.";
      return known.every((name) => limits[`${name}_remaining`] === limits[`${name}_limit`]) && "Nothing of the limits is used.";
    },
    ask: ({ limits }) => ["errors", "requests"].filter((name) => limits[`${name}_remaining`] !== null).map((name) => {
      const [left, limit] = [limits[`${name}_remaining`], limits[`${name}_limit`]];
      const verb = name === "errors" ? "may make" : "may get";
      return `The canary ${verb} ${limit == null ? "all of its" : count(limit)} ${name} from now on instead of the ${count(left)} that are left.`;
    }).join(" "),
    done: () => "The limits begin afresh.",
  },
};

const CLOSED = "Nobody may change anything here: there is no token, and others than this machine can reach the port. " +
  "Set instrumentation.token (or token-file) in the configuration, or set instrumentation.host to 127.0.0.1, and restart the router.";

const TOKEN_KEY = "canary-router token";
// What is asked now, by which button, and whether it has been sent; null when nothing is. A request that hangs belongs
// to its own question: whoever does not wait for it can ask the next, and above all abort.
let asked = null;
let token = stored(() => sessionStorage.getItem(TOKEN_KEY));

function beginActions() {
  for (const button of document.querySelectorAll("[data-action]")) {
    const name = button.dataset.action;
    const why = element("span", { id: `why-${name}`, hidden: "" });
    button.after(why);
    attribute(button, "aria-describedby", why.id);
    // Not `disabled`, which takes the focus away from who has just used it, and the reason from who only has a keyboard.
    button.addEventListener("click", () => refusal(name) ? explain(button) : ask(name, button));
    button.addEventListener("focus", () => explain(button));
    button.addEventListener("pointerenter", () => explain(button));
  }
  renderActions();
  const dialog = $("#confirm");
  $("form", dialog).addEventListener("submit", (event) => { event.preventDefault(); confirmed(); });
  $("[data-cancel]", dialog).addEventListener("click", () => dialog.close());
  $("#weight").addEventListener("input", () => { problem(""); refreshDialog(); });
  // A key that is held down must not say yes to what it has just asked.
  dialog.addEventListener("keydown", (event) => { if (event.repeat && event.key === "Enter") event.preventDefault(); });
  dialog.addEventListener("close", () => {
    const { button } = asked ?? {};
    asked = null;
    $("#token").value = "";
    button?.focus();
  });
  $("#dismiss").addEventListener("click", () => say(null, ""));
}

function isUnderWay({ phase }) {
  return phase === "progressing" || phase === "paused";
}

function notClosed(breakers) {
  return Object.keys(breakers).filter((name) => breakers[name] !== "closed").map((name) => `${name} (${breakers[name]})`);
}

function refusal(name) {
  if (!seen.status) return "Nothing is known of the router yet.";
  if (seen.changes === "closed") return CLOSED;
  return ACTIONS[name].refusal(seen.status) || "";
}

function renderActions() {
  for (const name of Object.keys(ACTIONS)) {
    const button = $(`[data-action="${name}"]`);
    const reason = refusal(name);
    attribute(button, "aria-disabled", reason ? "true" : null);
    attribute(button, "title", reason || null);
    text($(`#why-${name}`), reason);
  }
  $("#closed").hidden = seen.changes !== "closed";
  text($("#closed"), CLOSED);
}

function explain(button) {
  const place = button.closest("section")?.querySelector("[data-why]");
  if (place) text(place, seen.changes === "closed" ? "" : refusal(button.dataset.action));
}

function ask(name, button) {
  asked = { name, button, isSent: false };
  const { title, confirm, isDestructive, isRisky } = ACTIONS[name];
  const dialog = $("#confirm");
  text($("#confirm-title"), title);
  text($("[data-confirm]", dialog), confirm);
  $("[data-confirm]", dialog).classList.toggle("danger", !!isDestructive);
  $("[data-part=weight]", dialog).hidden = name !== "weight";
  $("#weight").value = name === "weight" ? String(seen.status.weight) : "";
  $("[data-part=token]", dialog).hidden = !needsToken();
  problem("");
  progress("");
  refreshDialog();
  dialog.showModal();
  const first = name === "weight" ? $("#weight") : needsToken() ? $("#token")
    : isRisky ? $("[data-cancel]", dialog) : $("[data-confirm]", dialog);
  first.focus();
  if (first === $("#weight")) first.select();
}

function needsToken() {
  return seen.changes === "token" && !token;
}

// While it is open the router goes on: what would happen is said anew with each tick.
function refreshDialog() {
  if (!asked || asked.isSent) return;
  const reason = refusal(asked.name);
  text($("#confirm-text"), reason || ACTIONS[asked.name].ask(seen.status));
  attribute($("[data-confirm]"), "aria-disabled", reason ? "true" : null);
  const stale = $("#confirm [data-part=stale]");
  stale.hidden = seen.connection === "live";
  text(stale, `The connection is lost; this is by what was known ${duration(silence() / 1000)} ago.`);
}

// Percent, in hundredths; null if it is none.
function readWeight() {
  const typed = $("#weight").value.trim();
  const wanted = Number(typed);
  const isOne = typed !== "" && wanted >= 0 && wanted <= 100 && Math.abs(wanted * 100 - Math.round(wanted * 100)) < 1e-6;
  return isOne ? Math.round(wanted * 100) / 100 : null;
}

async function confirmed() {
  const mine = asked;
  if (!mine || mine.isSent || refusal(mine.name)) return;
  const wanted = mine.name === "weight" ? readWeight() : undefined;
  if (wanted === null) return problem("A weight is a number from 0 to 100 with at most two decimals.", $("#weight"));
  if (!$("[data-part=token]").hidden) {
    const typed = $("#token").value.trim();
    if (!typed) return problem("Changes need the router’s token.", $("#token"));
    rememberToken(typed, $("[name=keep]").checked);
  }
  mine.isSent = true;
  problem("");
  progress("The router is asked …");
  const slow = setTimeout(() => {
    if (asked === mine) progress("There is no answer after 10 s. It may still be done; this goes on waiting.");
  }, SLOW_ANSWER);
  const answer = await send(ACTIONS[mine.name], wanted === undefined ? undefined : JSON.stringify({ weight: wanted }));
  clearTimeout(slow);
  mine.isSent = false;
  if (answer.status) seen.status = answer.status;
  if (answer.isUnauthorized) forgetToken();
  say(answer.status ? "ok" : "failed", answer.error ?? ACTIONS[mine.name].done(answer.status));
  // Who has not waited is told by the result alone, and asked for the token next time.
  if (asked === mine) {
    progress("");
    if (answer.isUnauthorized) askForToken(answer.error);
    else $("#confirm").close();
  }
  render();
}

async function send({ path, method = "POST" }, body) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (token) headers.Authorization = `Bearer ${token}`;
  try {
    const answer = await request(path, { method, headers, body, signal: AbortSignal.timeout(NO_ANSWER) });
    const said = await answer.json().catch(() => ({}));
    if (answer.ok && said.rollout) return { status: said };
    const error = said.error ?? `The router answered ${answer.status} and did not say why.`;
    return { error, isUnauthorized: answer.status === 401 };
  } catch (error) {
    const why = error.name === "TimeoutError" ? "did not answer for a minute" : "cannot be reached";
    return { error: `The router ${why}. It is not known whether it has done it: look at what it does.` };
  }
}

function askForToken(error) {
  $("[data-part=token]").hidden = false;
  $("#token").value = "";
  problem(`${sentence(error)} What was typed is forgotten.`, $("#token"));
}

function rememberToken(typed, isForTab) {
  token = typed;
  if (isForTab) stored(() => sessionStorage.setItem(TOKEN_KEY, typed));
}

function forgetToken() {
  token = null;
  stored(() => sessionStorage.removeItem(TOKEN_KEY));
}

function problem(words, input) {
  text($("#confirm-problem"), words);
  for (const each of [$("#weight"), $("#token")]) attribute(each, "aria-invalid", each === input ? "true" : null);
  input?.focus();
}

function progress(words) {
  attribute($("[data-confirm]"), "aria-disabled", words ? "true" : null);
  text($("[data-cancel]"), words ? "Do not wait" : "Cancel");
  text($("[data-part=progress]"), words);
}

// ---- what is said aloud ----

let saying = 0;

// The result of an action. What went well goes by itself (the page shows it anyway); what did not stays.
function say(outcome, words) {
  clearTimeout(saying);
  attribute($("#result"), "data-outcome", outcome);
  text($("#result"), words);
  $(".toast").classList.toggle("shown", outcome !== null);
  $("#dismiss").hidden = outcome === null;
  if (outcome === "ok") saying = setTimeout(() => say(null, ""), 15 * 1000);
}

// Only what somebody would want to hear: another level, another decision, the connection. The verdict's figures
// change each second.
function announceChange(before, after, isBack) {
  const newest = ({ decisions: [first] }) => first ? key(first) : "";
  const isDecided = before && newest(after) !== "" && newest(after) !== newest(before);
  if (before && (isDecided || before.summary?.level !== after.summary?.level)) {
    announce(`${headline(after)}: ${after.summary?.text}. ${isDecided ? sentence(after.decisions[0].text) : ""}`);
  } else if (isBack) {
    announce("Connected again.");
  }
}

function announce(words) {
  text($("#announcement"), words);
}

// ---- appearance ----

const THEME_KEY = "canary-router theme";

function beginTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const preferred = () => system.matches ? "dark" : "light";
  let chosen = stored(() => localStorage.getItem(THEME_KEY));
  const show = () => {
    const theme = chosen ?? preferred();
    attribute(document.documentElement, "data-theme", theme);
    attribute($("#theme"), "aria-pressed", String(theme === "dark"));
  };
  $("#theme").addEventListener("click", () => {
    const other = (chosen ?? preferred()) === "dark" ? "light" : "dark";
    // Back at what the system says, it follows the system again.
    chosen = other === preferred() ? null : other;
    stored(() => chosen ? localStorage.setItem(THEME_KEY, chosen) : localStorage.removeItem(THEME_KEY));
    show();
  });
  system.addEventListener("change", show);
  show();
}

// Storage that is forbidden, or full, is no reason to show nothing.
function stored(use) {
  try {
    return use() ?? null;
  } catch {
    return null;
  }
}

// ---- words for numbers ----

function significant(number) {
  const size = Math.abs(number);
  if (size >= 10) return count(number);
  return String(Number(number.toPrecision(2))).replace("-", "−");
}

function sentence(words) {
  return `${words.charAt(0).toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;
}

function count(number) {
  return formatted("count", number, () => new Intl.NumberFormat("en", { maximumFractionDigits: 0 })).replace("-", "−");
}

function rate(perSecond) {
  if (perSecond >= 999_500) return `${Number((perSecond / 1e6).toPrecision(3))}M/s`;
  if (perSecond >= 9_999.5) return `${Number((perSecond / 1e3).toPrecision(3))}k/s`;
  return perSecond > 0 && perSecond < 0.01 ? "<0.01/s" : `${significant(perSecond)}/s`;
}

// All and nothing are said only when they are meant.
function percent(ratio) {
  const share = ratio * 100;
  if (share > 0 && share < 0.01) return `<0.01${NBSP}%`;
  if (share > 99 && share < 100) return `${Math.min(share, 99.99).toFixed(2)}${NBSP}%`;
  return `${significant(share)}${NBSP}%`;
}

function weight(share) {
  return `${Number(share.toFixed(2))}${NBSP}%`;
}

function latency(seconds) {
  const ms = seconds * 1000;
  if (ms >= 999.5) return `${significant(seconds)}${NBSP}s`;
  return ms > 0 && ms < 0.1 ? `<0.1${NBSP}ms` : `${significant(ms)}${NBSP}ms`;
}

function evidence(logarithm) {
  const words = Math.abs(logarithm) >= 100 ? count(logarithm) : logarithm.toFixed(1);
  return words === "-0.0" ? "0.0" : words.replace("-", "−");
}

function duration(seconds, parts = 2) {
  let left = Math.max(Math.round(seconds), 0);
  const said = [];
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
    const amount = Math.floor(left / size);
    left -= amount * size;
    if (amount) said.push(`${amount}${NBSP}${unit}`);
    // Not 2 d 4 s.
    else if (said.length) break;
    if (said.length === parts) break;
  }
  return said.join(" ") || `0${NBSP}s`;
}

// In the viewer's zone; with the day where it is not today.
function clock(moment, precision = "seconds") {
  const date = new Date(moment);
  const today = new Date(now());
  const isToday = date.toDateString() === today.toDateString();
  const name = precision === "minutes" || isToday ? precision : date.getFullYear() === today.getFullYear() ? "day" : "year";
  return formatted(name, date, () => new Intl.DateTimeFormat("en-GB", {
    hour: "2-digit", minute: "2-digit", hourCycle: "h23", second: name === "minutes" ? undefined : "2-digit",
    ...(name === "day" || name === "year") && { day: "numeric", month: "short" }, year: name === "year" ? "numeric" : undefined,
  }));
}

// Formats are dear to make.
const formats = {};

function formatted(name, thing, build) {
  formats[name] ??= build();
  return formats[name].format(thing);
}

// ---- nodes ----
// All writers compare first: what has not changed costs no layout, and no screen reader a word.

function $(selector, root = document) {
  return root.querySelector(selector);
}

function part(root, name) {
  return $(`[data-text="${name}"]`, root);
}

function field(root, name) {
  return $(`[data-value="${name}"]`, root);
}

function text(node, words) {
  if (node.textContent !== words) node.textContent = words;
}

// Sentences of the router's, word for word; a number and its unit stay on one line.
function prose(node, words) {
  if (node.textContent === words) return;
  node.replaceChildren(...words.split(/([\d.,]+ (?:%|ms|s|min)(?!\w))/).map((piece, index) => {
    if (index % 2 === 0) return piece;
    const unbroken = element("span", { class: "unbroken" });
    unbroken.textContent = piece;
    return unbroken;
  }));
}

function attribute(node, name, to) {
  if (to === null || to === undefined) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(to)) node.setAttribute(name, to);
}

// A number and, smaller, its unit; or that there is none.
function value(node, words) {
  const [, number, unit = ""] = words === null ? [] : words.match(/^(.*?)([\u00a0/].*)?$/);
  if (node.children.length !== 2) node.replaceChildren(element("span"), element("span", { class: "unit" }));
  const [first, second] = node.children;
  attribute(first, "aria-hidden", words === null ? "true" : null);
  text(first, words === null ? "–" : number);
  attribute(second, "class", words === null ? "out-of-sight" : "unit");
  text(second, words === null ? "no requests" : unit);
}

function element(name, attributes = {}, parent = null) {
  return make(document.createElement(name), attributes, parent);
}

function drawn(name, attributes = {}, parent = null) {
  return make(document.createElementNS(SVG, name), attributes, parent);
}

function make(node, attributes, parent) {
  for (const [name, to] of Object.entries(attributes)) node.setAttribute(name, to);
  parent?.append(node);
  return node;
}

// As many children as are needed, made once and used again.
function pool(parent, size, build) {
  while (parent.children.length > size) parent.lastElementChild.remove();
  while (parent.children.length < size) parent.append(build());
  return [...parent.children];
}

begin();
