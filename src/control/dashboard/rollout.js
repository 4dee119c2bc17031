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

function renderGuards({ breakers, limits, config, state }) {
  const section = $("#guards");
  facts($("[data-list=breakers]", section), Object.keys(BREAKERS).map((name) => ({
    name: `${name[0].toUpperCase()}${name.slice(1)} breaker`, state: breakers[name].replace("_", "-"), isBad: breakers[name] !== "closed",
    words: BREAKERS[name][breakers[name]] ?? "",
  })));
  renderLimits($("[data-list=limits]", section), limits);
  const written = !state ? { state: "in memory", words: "no state.file is configured: a restart forgets limits, weight and rollout" }
    : state.written ? { state: "written", words: state.file }
    : { state: "not written", isBad: true, words: `${state.error ?? "no reason is known"}: ${state.file}` };
  const failure = config?.last_failure;
  const read = failure ? { state: "not the latest", isBad: true, words: `what was read since ${config.loaded_at} cannot be used: ${failure.error}` }
    : { state: "in force", words: config ? `${config.file}, read ${config.loaded_at}` : "" };
  facts($("[data-list=state]", section), [{ name: "State file", ...written }, { name: "Configuration", ...read }]);
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
