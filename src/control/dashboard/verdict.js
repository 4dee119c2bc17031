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
    default: return phase === "progressing" ? `Step ${step} of ${steps.length}` : "Idle";
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
