//! What is shipped for Prometheus and Grafana, read by Prometheus itself: it asks a router for nothing that is not there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    peers::{Prometheus, Scratch, run},
    support::*,
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sample/observability/");
/// The address that the shipped scrape configuration has.
const TARGET: &str = "127.0.0.1:8888";

fn shipped(file: &str) -> String {
    fs::read_to_string(format!("{FOLDER}{file}")).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// A YAML file, as the same in JSON.
pub async fn yaml(path: &str) -> Value {
    let mut command = python("yaml.py");
    command.arg(path);
    let output = run(command, "python3", Vec::new()).await;
    assert!(output.status.success(), "{path}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn dashboard() -> Value {
    serde_json::from_str(&shipped("grafana-dashboard.json")).unwrap()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.unwrap_or_else(|| panic!("no list {pointer} in {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    let found = value[key].as_str().filter(|text| !text.is_empty());
    found.unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// The alerts of a rule file.
fn alerts(rules: &Value) -> Vec<&Value> {
    let groups = list(rules, "/groups").iter();
    groups.flat_map(|group| list(group, "/rules")).collect()
}

// ---- what a query asks for

/// Series and labels that a query names.
#[derive(Debug, Default, PartialEq)]
struct Asked {
    /// Each with its matchers.
    selectors: Vec<String>,
    /// Those in `by (…)`, `on (…)` and the like.
    labels: Vec<String>,
}

/// Just enough of PromQL: names, what is in braces behind them, and lists of labels.
fn asked(query: &str) -> Asked {
    let mut asked = Asked::default();
    let code = query.lines().filter(|line| !line.trim().starts_with('#'));
    let code = code.collect::<Vec<_>>().join("\n");
    let mut rest = &*code;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    while let Some(c) = rest.chars().next() {
        if !is_name(c) {
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let (name, after) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
        rest = after.trim_start();
        let inside = |open: char, close: char| {
            let inside = rest.strip_prefix(open)?;
            Some(&inside[..inside.find(close).expect("it is closed")])
        };
        match name {
            // A number, or a duration.
            _ if c.is_ascii_digit() => {}
            "and" | "or" | "unless" | "offset" | "bool" => {}
            "by" | "without" | "on" | "ignoring" | "group_left" | "group_right" => {
                let labels = inside('(', ')').expect("a list of labels");
                rest = &rest[labels.len() + 2..];
                let labels = labels.split(',').map(|label| label.trim().to_owned());
                asked
                    .labels
                    .extend(labels.filter(|label| !label.is_empty()));
            }
            // A function, or an aggregation.
            _ if ["(", "by ", "without "]
                .iter()
                .any(|next| rest.starts_with(next)) => {}
            _ => match inside('{', '}') {
                Some(matchers) => {
                    rest = &rest[matchers.len() + 2..];
                    asked.selectors.push(format!("{name}{{{matchers}}}"));
                }
                None => asked.selectors.push(name.to_owned()),
            },
        }
    }
    asked
}

/// A selector for each of the values that `=~"a|b"` allows: each of them has to be there.
fn alternatives(selector: &str) -> Vec<String> {
    let Some((before, rest)) = selector.split_once("=~\"") else {
        return vec![selector.to_owned()];
    };
    let (values, after) = rest.split_once('"').expect("it is closed");
    let operator = match values.contains(['.', '*', '+']) {
        // No alternatives: a pattern. It has to fit something.
        true => return vec![selector.to_owned()],
        false => "=",
    };
    values
        .split('|')
        .flat_map(|value| alternatives(&format!("{before}{operator}\"{value}\"{after}")))
        .collect()
}

/// The labels in `{{…}}`.
fn labels_shown(template: &str) -> Vec<&str> {
    let parts = template.split("{{").skip(1);
    parts
        .map(|part| part.split("}}").next().unwrap().trim())
        .collect()
}

#[test]
fn what_a_query_asks_for_is_found_in_it() {
    let query = "histogram_quantile(0.9, sum by (le, job) (rate(a_bucket{x=\"1\",y=~\"b|c\"}[5m]))) > 2 * b_total\n\
                 # and nothing\n\
                 and on (job) max_over_time(timestamp(c > c offset 1m)[1d:1m]) / on () group_left () d";
    let asked = asked(query);
    assert_eq!(
        asked.selectors,
        ["a_bucket{x=\"1\",y=~\"b|c\"}", "b_total", "c", "c", "d"]
    );
    assert_eq!(asked.labels, ["le", "job", "job"]);
    assert_eq!(
        alternatives(&asked.selectors[0]),
        ["a_bucket{x=\"1\",y=\"b\"}", "a_bucket{x=\"1\",y=\"c\"}"]
    );
    assert_eq!(alternatives("b_total"), ["b_total"]);
}

// ---- Prometheus' own checks

async fn promtool(arguments: &[&str]) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(FOLDER);
    let output = run(command, "prometheus", Vec::new()).await;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    assert!(!said.contains("WARN"), "{arguments:?}: {said}");
}

#[tokio::test]
async fn promtool_finds_nothing_wrong_with_the_rules_and_the_scrape_configuration() {
    promtool(&["check", "rules", "--lint-fatal", "alerts.yml"]).await;
    promtool(&["check", "config", "--lint-fatal", "prometheus.yml"]).await;
}

#[tokio::test]
async fn alerts_fire_when_they_should_stay_silent_otherwise_and_end() {
    promtool(&["test", "rules", "alerts.test.yml"]).await;
}

#[tokio::test]
async fn every_alert_is_tested_and_what_it_says_of_its_labels_is_there() {
    let rules = yaml(&format!("{FOLDER}alerts.yml")).await;
    let tests = yaml(&format!("{FOLDER}alerts.test.yml")).await;
    let checks = list(&tests, "/tests").iter();
    let expected: Vec<&str> = checks
        .flat_map(|test| list(test, "/promql_expr_test"))
        .filter_map(|check| check["exp_samples"].as_array())
        .flatten()
        .map(|sample| text(sample, "labels"))
        .collect();
    for alert in alerts(&rules) {
        let name = text(alert, "alert");
        let firing = format!("alertname=\"{name}\",alertstate=\"firing\"");
        let firing = expected.iter().find(|sample| sample.contains(&firing));
        let firing = firing.unwrap_or_else(|| panic!("no test has {name} fire"));
        for said in [
            &alert["annotations"]["summary"],
            &alert["annotations"]["description"],
        ] {
            for label in labels_shown(said.as_str().unwrap()) {
                if let Some(label) = label.strip_prefix("$labels.") {
                    assert!(firing.contains(&format!("{label}=\"")), "{name}: {label}");
                }
            }
        }
    }
}

#[tokio::test]
async fn every_alert_says_what_is_so_and_what_to_do_and_has_its_place_in_the_runbook() {
    let rules = yaml(&format!("{FOLDER}alerts.yml")).await;
    let runbook = shipped("README.md");
    let mut names = Vec::new();
    for alert in alerts(&rules) {
        let name = text(alert, "alert");
        assert!(name.starts_with("CanaryRouter"), "{name}");
        let severity = text(&alert["labels"], "severity");
        assert!(matches!(severity, "page" | "ticket"), "{name}: {severity}");
        for annotation in ["summary", "description"] {
            text(&alert["annotations"], annotation);
        }
        let anchor = format!(
            "sample/observability/README.md#{}",
            name.to_ascii_lowercase()
        );
        assert_eq!(text(&alert["annotations"], "runbook"), anchor);
        let place = format!("\n### {name}\n\n*{severity}.* ");
        assert!(
            runbook.contains(&place),
            "{name}: not {severity} in README.md"
        );
        names.push(name);
    }
    let places: Vec<&str> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    for place in places {
        assert!(names.contains(&place), "README.md: no alert {place}");
    }
}

// ---- against a router that runs

/// The rules, each to fire at once whatever is: so that all that they say is to be seen.
async fn always_firing(scratch: &Scratch) -> String {
    let mut rules = yaml(&format!("{FOLDER}alerts.yml")).await;
    for group in rules["groups"].as_array_mut().unwrap() {
        group["name"] = json!(format!("said-by-{}", text(group, "name")));
        for rule in group["rules"].as_array_mut().unwrap() {
            rule["alert"] = json!(format!("SaidBy{}", text(rule, "alert")));
            rule["expr"] = json!(
                "label_replace(label_replace(vector(0.0625), \"job\", \"the-job\", \"\", \"\"), \
                 \"instance\", \"the-instance\", \"\", \"\")"
            );
            rule.as_object_mut().unwrap().remove("for");
        }
    }
    // What is JSON is YAML.
    fs::write(scratch.path("said.yml"), rules.to_string()).unwrap();
    scratch.path("said.yml")
}

/// A router with everything that has metrics, whose canary fails half of its requests.
async fn router(scratch: &Scratch) -> (Program, [Upstream; 4]) {
    let count = AtomicUsize::new(0);
    let canary = Upstream::start(move |_| match count.fetch_add(1, Ordering::SeqCst) % 4 {
        0 => answer(500, "", "canary"),
        1 => vec![Step::Reset],
        _ => answer(200, "", "canary"),
    })
    .await;
    let main = Upstream::start(|request| {
        let status = if request.target() == "/missing" {
            404
        } else {
            200
        };
        answer(status, "", "main")
    })
    .await;
    let sidecar = Upstream::named("sidecar", 200).await;
    let collector = Upstream::named("collector", 503).await;
    let program = Program::start(json!({
        "main-target": main.url(),
        "canary-target": canary.url(),
        "sidecar-url": sidecar.url(),
        "sidecar": {"cache": {"key": ["path"], "ttl": "1s"}},
        "circuit-breaker": {"request-limit-canary": 100_000, "error-limit-canary": 100_000},
        "rollout": {"steps": [{"weight": 50, "for": "10m"}]},
        "traffic": {"weight": 0},
        "tracing": {"endpoint": collector.url()},
        "state": {"file": scratch.path("state.json")}
    }))
    .await;
    (program, [main, canary, sidecar, collector])
}

/// What Grafana would put in place of its variables.
fn filled_in(query: &str) -> String {
    let query = query
        .replace("$job", "canary-router")
        .replace("$instance", ".+")
        .replace("$__rate_interval", "20s");
    assert!(!query.contains('$'), "{query}");
    query
}

/// Whether a Prometheus knows all that is asked for.
struct Known<'a> {
    prometheus: &'a Prometheus,
    labels: BTreeSet<String>,
}

impl Known<'_> {
    async fn of(prometheus: &Prometheus) -> Known<'_> {
        let labels = prometheus.api("labels", &[]).await.unwrap();
        Known {
            prometheus,
            labels: serde_json::from_value(labels).unwrap(),
        }
    }

    /// How many series the query has for an answer. Series and labels that it names are there.
    async fn ask(&self, query: &str) -> usize {
        let asked = asked(query);
        assert!(!asked.selectors.is_empty(), "{query}");
        for selector in asked.selectors.iter().flat_map(|all| alternatives(all)) {
            let series = self
                .prometheus
                .api("series", &[("match[]", &selector)])
                .await;
            let there = !series.unwrap().as_array().unwrap().is_empty();
            assert!(
                there,
                "there is no {selector}, but this asks for it: {query}"
            );
        }
        for label in &asked.labels {
            self.label(label, query);
        }
        self.prometheus.values(query).await.len()
    }

    #[track_caller]
    fn label(&self, label: &str, of: &str) {
        assert!(self.labels.contains(label), "no label {label}: {of}");
    }
}

#[tokio::test]
async fn prometheus_finds_all_that_alerts_and_dashboard_ask_a_router_for() {
    let scratch = Scratch::new();
    let (router, _upstreams) = router(&scratch).await;
    let config = shipped("prometheus.yml");
    for ours in [TARGET, "- alerts.yml\n"] {
        assert_eq!(config.matches(ours).count(), 1, "{ours}");
    }
    let prometheus = Prometheus::start(
        &config
            .replace(TARGET, &router.instrumentation.to_string())
            .replace(
                "- alerts.yml\n",
                &format!(
                    "- {FOLDER}alerts.yml\n  - {}\n",
                    always_firing(&scratch).await
                ),
            ),
    )
    .await;

    let address = router.address;
    let traffic = tokio::spawn(async move {
        for number in 0.. {
            let (target, headers) = match number % 5 {
                0 => ("/missing", ""),
                1 => ("/", "x-canary: true\r\n"),
                _ => ("/", ""),
            };
            get(address, target, headers).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    prometheus
        .wait_for("canary_router_rollout_phase{phase=\"idle\"}", &[1.0])
        .await;
    let (status, answer) = admin(router.instrumentation, "POST", "/rollout/start", "").await;
    assert_eq!(status, 200, "{answer}");
    prometheus
        .wait_for("canary_router_rollout_phase{phase=\"rolled-back\"}", &[1.0])
        .await;
    prometheus
        .wait_for(
            "ALERTS{alertname=\"CanaryRouterRolledBack\",alertstate=\"firing\"}",
            &[1.0],
        )
        .await;
    traffic.abort();

    let known = Known::of(&prometheus).await;
    let rules = prometheus.api("rules", &[("type", "alert")]).await.unwrap();
    let rules = alerts(&rules);
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        if !text(rule, "name").starts_with("SaidBy") {
            known.ask(text(rule, "query")).await;
        }
    }
    let shipped = yaml(&format!("{FOLDER}alerts.yml")).await;
    assert_eq!(rules.len(), 2 * alerts(&shipped).len());

    what_is_said(&prometheus, alerts(&shipped).len()).await;
    the_dashboard_has_answers(&known).await;
}

/// Prometheus can write what the annotations say.
async fn what_is_said(prometheus: &Prometheus, of: usize) {
    let firing = prometheus.api("alerts", &[]).await.unwrap();
    let mut count = 0;
    for alert in list(&firing, "/alerts") {
        let name = text(&alert["labels"], "alertname");
        for (annotation, said) in alert["annotations"].as_object().unwrap() {
            let said = said.as_str().unwrap();
            let failed = ["<error", "<no value>", "%!", "{{"].iter();
            let failed = failed.filter(|sign| said.contains(**sign)).count();
            assert_eq!(failed, 0, "{name}: {annotation}: {said}");
        }
        count += usize::from(name.starts_with("SaidBy"));
    }
    assert_eq!(count, of);
}

/// Nothing on it is empty, and there is nothing that it asks for in vain.
async fn the_dashboard_has_answers(known: &Known<'_>) {
    let dashboard = dashboard();
    for panel in list(&dashboard, "/panels") {
        if panel["type"] == "row" {
            continue;
        }
        let title = text(panel, "title");
        for target in list(panel, "/targets") {
            let query = filled_in(text(target, "expr"));
            assert_ne!(known.ask(&query).await, 0, "{title}: {query}");
            for label in labels_shown(text(target, "legendFormat")) {
                known.label(label, title);
            }
        }
    }
    for annotation in list(&dashboard, "/annotations/list") {
        known
            .ask(&filled_in(text(&annotation["target"], "expr")))
            .await;
        for template in ["titleFormat", "textFormat"] {
            for label in labels_shown(text(annotation, template)) {
                known.label(label, template);
            }
        }
        known.label(text(annotation, "tagKeys"), "tagKeys");
    }
    for variable in list(&dashboard, "/templating/list") {
        if variable["type"] == "query" {
            let query = filled_in(text(&variable["query"], "query"));
            let inside = query.strip_prefix("label_values(").unwrap();
            let (selector, label) = inside.strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
            assert_ne!(known.ask(selector).await, 0, "{query}");
            known.label(label, &query);
        }
    }
}

// ---- Grafana

const DATASOURCE: &str = "${datasource}";

/// Everything in it that has a name, with the name.
fn everything<'a>(value: &'a Value, found: &mut Vec<(&'a str, &'a Value)>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                found.push((key, value));
                everything(value, found);
            }
        }
        Value::Array(array) => array.iter().for_each(|value| everything(value, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_belongs_to_no_one_grafana() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64() >= Some(36));
    // Grafana gives it its own.
    assert!(dashboard.get("id").is_none() && dashboard.get("uid").is_none());
    let variables = list(&dashboard, "/templating/list").iter();
    let names = variables.map(|variable| text(variable, "name"));
    assert!(names.eq(["datasource", "job", "instance"]));
    let mut all = Vec::new();
    everything(&dashboard, &mut all);
    for (key, value) in all {
        match key {
            "uid" => assert_eq!(value, DATASOURCE),
            "datasource" => assert_eq!(value["uid"], DATASOURCE, "{value}"),
            _ => {}
        }
    }
}

#[test]
fn every_panel_says_what_it_shows_and_in_what_unit() {
    let dashboard = dashboard();
    let mut ids = BTreeSet::new();
    let mut rows = Vec::new();
    let mut titles = BTreeSet::new();
    for panel in list(&dashboard, "/panels") {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let title = text(panel, "title");
        if panel["type"] == "row" {
            rows.push(title);
            continue;
        }
        assert!(
            titles.insert((*rows.last().unwrap(), title)),
            "{title} is there twice"
        );
        text(panel, "description");
        text(&panel["fieldConfig"]["defaults"], "unit");
        assert_eq!(panel["datasource"]["uid"], DATASOURCE, "{title}");
        let targets = list(panel, "/targets");
        let mut references = BTreeSet::new();
        for target in targets {
            assert_eq!(target["datasource"]["uid"], DATASOURCE, "{title}");
            assert!(references.insert(text(target, "refId")), "{title}");
        }
        assert!(!targets.is_empty(), "{title}");
    }
    let expected = [
        "Verdict",
        "Traffic",
        "Failures",
        "Latency",
        "Rollout and evidence",
        "Limits and breakers",
        "Sidecar",
        "Process",
    ];
    assert_eq!(rows, expected);
}

#[test]
fn no_panel_lies_on_another() {
    let dashboard = dashboard();
    let mut taken = BTreeMap::new();
    for panel in list(&dashboard, "/panels") {
        let title = text(panel, "title");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        let (x, y) = (place("x"), place("y"));
        assert!(place("w") > 0 && x + place("w") <= 24, "{title}");
        for cell in (x..x + place("w")).flat_map(|x| (y..y + place("h")).map(move |y| (x, y))) {
            if let Some(other) = taken.insert(cell, title) {
                panic!("{title} lies on {other}");
            }
        }
    }
}

#[test]
fn main_is_blue_and_the_canary_orange_wherever_they_are() {
    let dashboard = dashboard();
    let mut seen = 0;
    for panel in list(&dashboard, "/panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let legend = text(target, "legendFormat");
            let expected = match legend {
                "main" => "blue",
                "canary" => "orange",
                _ => continue,
            };
            if panel["type"] == "stat" {
                // Its colour is its verdict.
                continue;
            }
            let of_it = |rule: &&Value| rule["matcher"]["options"] == legend;
            let rules = list(panel, "/fieldConfig/overrides");
            let rule = rules.iter().find(of_it);
            let color = rule.and_then(|rule| rule.pointer("/properties/0/value/fixedColor"));
            assert_eq!(color, Some(&json!(expected)), "{}", panel["title"]);
            seen += 1;
        }
    }
    assert!(seen >= 8);
}

#[tokio::test]
async fn grafana_finds_data_source_and_dashboard_where_it_looks_for_them() {
    let provisioning = format!("{FOLDER}grafana/provisioning");
    let sources = yaml(&format!("{provisioning}/datasources/prometheus.yml")).await;
    assert_eq!(sources["apiVersion"], 1);
    let [source] = list(&sources, "/datasources") else {
        panic!("{sources}");
    };
    assert_eq!(
        (&source["type"], &source["access"]),
        (&json!("prometheus"), &json!("proxy"))
    );
    assert_eq!(source["url"], "${PROMETHEUS_URL}");
    let scraped = yaml(&format!("{FOLDER}prometheus.yml")).await;
    assert_eq!(
        source["jsonData"]["timeInterval"],
        scraped["global"]["scrape_interval"]
    );
    let providers = yaml(&format!("{provisioning}/dashboards/canary-router.yml")).await;
    assert_eq!(providers["apiVersion"], 1);
    let [provider] = list(&providers, "/providers") else {
        panic!("{providers}");
    };
    assert_eq!(provider["type"], "file");
    text(&provider["options"], "path");
}
