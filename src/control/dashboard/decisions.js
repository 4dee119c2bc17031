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
