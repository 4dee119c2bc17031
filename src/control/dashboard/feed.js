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
