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
