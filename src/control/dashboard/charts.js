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
