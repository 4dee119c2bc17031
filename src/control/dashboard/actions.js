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
