//! The reference of all keys as a page for people (`docs/configuration.md`).

use std::fmt::Write;

use serde_json::Value;

use super::{super::environment::name, Kind, defaults, key, says_of_section, template};

const HEAD: &str = "\
# Configuration

<!-- Written by `canary-router schema --markdown >docs/configuration.md`; a test compares. Do not edit. -->

The configuration is a JSON file, the environment, or both; what the environment says wins. What cannot be used is
refused with all of its problems at once, each with its place and what to write instead. A key or a variable that is
not known is a problem, because a misspelt limit that is silently off is the worst of all. `canary-router check -c FILE`
says whether a configuration can be used, and prints it with its defaults.

**In the file**, durations are seconds as a number, or a text with a unit: `\"250ms\"`, `\"5s\"`, `\"2m\"`, `\"1h\"`; a year at
most. Sizes are bytes as a number, or `\"64KiB\"`. Percentages are 0 to 100 with at most two decimals, `0.5` or `\"0.5%\"`.
Numbers and booleans may be texts. Zero, empty and `null` mean the default, unless the key's row says something else.
`traffic.sticky`, `sidecar.cache`, `router-server.tls` and `tracing` may be `\"off\"`, too. Relative paths start at the working
directory.

**In the environment**, a key's variable is `CANARY_ROUTER_` and its path in upper case, `-` as `_`, with `__` between
section and key. The value is written as in the file, without quotes; a list is separated by commas, or JSON; the steps of
a rollout are JSON. An empty variable is not set. What may be `\"off\"` is so with `CANARY_ROUTER_TRACING=off`. Where no
file is named with `-c`, and there is no `config.json`, the environment alone is enough. `CANARY_ROUTER_URL` and `CANARY_ROUTER_TOKEN_FILE` are for the commands that talk to a
router, and what Kubernetes sets for Services whose name begins with `canary-router` is passed over.

**Secrets** can be in a file of their own (`…-file`), and are shown nowhere. Of URLs the query is not shown.

**Editors** complete and check the file by its JSON Schema: `canary-router schema >config.schema.json`, and in the file, first,
`\"$schema\": \"./config.schema.json\"`. It takes whatever the router takes; what must go together, only the router knows.
";

/// The page.
pub fn reference() -> String {
    let (template, defaults) = (template(), defaults());
    let mut page = HEAD.to_owned();
    let sections = template.as_object().into_iter().flatten();
    let (sections, keys): (Vec<_>, Vec<_>) = sections.partition(|(_, value)| value.is_object());
    head(&mut page, "Targets", "");
    for (key, template) in keys {
        row(&mut page, template, &defaults[key], &format!("/{key}"));
    }
    for (section, template) in sections {
        let path = format!("/{section}");
        head(&mut page, &format!("`{section}`"), says_of_section(&path));
        rows(&mut page, template, &defaults[section], &path);
    }
    page
}

fn head(page: &mut String, title: &str, says: &str) {
    let _never_fails = writeln!(page, "\n## {title}\n");
    if !says.is_empty() {
        let _never_fails = writeln!(page, "{says}.\n");
    }
    page.push_str("| key | variable | value | default | |\n|---|---|---|---|---|\n");
}

fn rows(page: &mut String, section: &Value, defaults: &Value, path: &str) {
    for (key, template) in section.as_object().into_iter().flatten() {
        let path = format!("{path}/{key}");
        match template {
            Value::Object(_) => rows(page, template, &defaults[key], &path),
            template => row(page, template, &defaults[key], &path),
        }
    }
}

fn row(page: &mut String, template: &Value, default: &Value, path: &str) {
    let Some(key) = key(path) else { return };
    let dotted = path.trim_start_matches('/').replace('/', ".");
    let default = default_text(&key.kind, default, key.unset);
    let kind = key.kind.text().replace('|', "\\|");
    let _never_fails = writeln!(
        page,
        "| `{dotted}` | `{}` | {kind} | {default} | {} |",
        name(path),
        key.says
    );
    let of_items = template
        .as_array()
        .and_then(|items| items.first()?.as_object());
    for key in of_items.into_iter().flatten().map(|(key, _)| key) {
        let Some(key) = super::key(&format!("{path}/{key}")) else {
            continue;
        };
        let dotted = key.path.trim_start_matches('/').replace('/', ".");
        let kind = key.kind.text();
        let _never_fails = writeln!(
            page,
            "| `{dotted}` | | {kind} | {} | {} |",
            key.unset, key.says
        );
    }
}

fn default_text(kind: &Kind, default: &Value, unset: &str) -> String {
    let is_empty = match default {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    let default = match (kind, default) {
        (Kind::Duration(..), Value::Number(seconds)) => duration(seconds.as_u64().unwrap_or(0)),
        (Kind::Duration(..) | Kind::Size(..), Value::String(text)) => text.clone(),
        (_, Value::Array(items)) => {
            let items: Vec<String> = items.iter().map(Value::to_string).collect();
            format!("[{}]", items.join(", "))
        }
        (_, default) => default.to_string(),
    };
    match (is_empty, unset) {
        (true, unset) => unset.to_owned(),
        (false, "") => format!("`{default}`"),
        (false, unset) => format!("`{default}` ({unset})"),
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0 => "0".to_owned(),
        seconds if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

impl Kind {
    /// With its range.
    fn text(&self) -> String {
        match self {
            Kind::Text(_, says) => (*says).to_owned(),
            Kind::Secret => "secret".to_owned(),
            Kind::Word(words) | Kind::Level(words, _) => words_text(words),
            Kind::Flag => "`true`, `false`".to_owned(),
            Kind::Port => "port".to_owned(),
            Kind::Count(0, u64::MAX) => "whole number".to_owned(),
            Kind::Count(least, most) => format!("whole number, {least} to {}", grouped(*most)),
            Kind::Duration(least, most) => range("duration", least, most),
            Kind::Size(least, most) => range("size", least, most),
            Kind::Percent => "percentage".to_owned(),
            Kind::Number(least, most) => format!("number, {least} to {most}"),
            Kind::Texts(_, says) => format!("list of {says}"),
            Kind::Words(words) => format!("list of {}", words_text(words)),
            Kind::Counts(least, most) => format!("list of numbers, {least} to {most}"),
            Kind::Steps => "list of steps".to_owned(),
        }
    }
}

fn words_text(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
    words.join(", ")
}

fn range(kind: &str, least: &str, most: &str) -> String {
    match (least, most) {
        ("", "") => kind.to_owned(),
        ("", most) => format!("{kind}, at most {most}"),
        (least, "") => format!("{kind}, {least} or more"),
        (least, most) => format!("{kind}, {least} to {most}"),
    }
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(String::from_utf8_lossy)
        .collect();
    groups.join(",")
}
