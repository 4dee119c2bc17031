use std::collections::BTreeSet;

use super::{super::environment, *};

/// The schemas of all keys, with their paths; those of what is in a list too.
fn described(schema: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}/{key}");
        described(schema, &path, found);
        described(&schema["items"], &path, found);
        found.push((path, schema.clone()));
    }
}

/// The same of a document.
fn places(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}/{key}");
        places(value, &path, found);
        for item in value.as_array().into_iter().flatten() {
            places(item, &path, found);
        }
        found.insert(path);
    }
}

#[test]
fn every_key_is_described_with_its_default() {
    let (schema, defaults) = (schema(), defaults());
    let mut found = Vec::new();
    described(&schema, "", &mut found);
    let mut expected = BTreeSet::from(["/$schema".to_owned()]);
    places(template(), "", &mut expected);
    assert!(expected.len() > 100 && expected.contains("/rollout/steps/for"));
    let paths: BTreeSet<String> = found.iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(paths, expected);

    for (path, schema) in &found {
        let says = schema["description"].as_str().unwrap_or_default();
        assert!(says.len() > 5, "{path} has no description");
        // A sentence without its end, which the page and the editor give it.
        assert!(
            says.starts_with(|c: char| c.is_uppercase() || c == '`'),
            "{path}: {says}"
        );
        assert!(!says.ends_with('.'), "{path}: {says}");
        if schema["properties"].is_object() {
            assert_eq!(schema["additionalProperties"], false, "{path}");
            continue;
        }
        let default = defaults.pointer(path).filter(|default| !default.is_null());
        assert_eq!(schema.get("default"), default, "{path}");
    }
    assert_eq!(schema["additionalProperties"], false);
}

/// `with_defaults` of a file that says nothing, once more and by hand.
#[test]
fn the_defaults_are_those_of_a_file_that_says_nothing() {
    let file = r#"{"main-target": "http://a", "canary-target": "http://b", "instrumentation": {},
                   "tracing": {"endpoint": ""}, "router-server": {"host": "h", "port": 1}}"#;
    let effective = super::super::Config::parse("c.json", file)
        .unwrap()
        .effective;
    for (path, _) in KEYS.iter().map(|key| (key.path, &key.kind)) {
        let Some(default) = defaults().pointer(path).cloned() else {
            assert!(path.starts_with("/rollout/steps/"), "{path}");
            continue;
        };
        if !default.is_null() {
            assert_eq!(effective.pointer(path), Some(&default), "{path}");
        }
    }
}

#[test]
fn nothing_is_described_that_is_not_there() {
    let mut there = BTreeSet::new();
    places(template(), "", &mut there);
    let said = KEYS
        .iter()
        .map(|key| key.path)
        .chain(SECTIONS.iter().map(|(path, _)| *path));
    let mut once = BTreeSet::new();
    for path in said {
        assert!(there.contains(path), "{path} is no key");
        assert!(once.insert(path), "{path} is described twice");
        let like = like(path).and_then(|path| key(&path));
        let of_its_own = key(path);
        let differs = like
            .zip(of_its_own)
            .is_none_or(|(like, own)| like.says != own.says);
        assert!(differs, "{path} need not be described twice");
    }
}

#[test]
fn the_page_has_every_key_with_its_variable_in_the_section_that_it_is_of() {
    let page = reference();
    for (name, path) in environment::names(template()) {
        let dotted = path.trim_start_matches('/').replace('/', ".");
        let row = format!("\n| `{dotted}` | `{name}` | ");
        assert_eq!(page.matches(&row).count(), 1, "{row}");
        let before = &page[..page.find(&row).unwrap()];
        let head = before
            .rsplit("\n## ")
            .next()
            .unwrap()
            .lines()
            .next()
            .unwrap();
        match dotted.split_once('.') {
            Some((section, _)) => assert_eq!(head, format!("`{section}`"), "{dotted}"),
            None => assert_eq!(head, "Targets", "{dotted}"),
        }
    }
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let bars = line.replace("\\|", "").matches('|').count();
        assert_eq!(bars, 6, "{line}");
        let cells: Vec<&str> = line.split(" | ").collect();
        assert!(
            !cells[3].is_empty() && !cells[3].contains("null"),
            "no default: {line}"
        );
    }
    assert!(page.contains("| `rollout.steps.for` | | duration, 1s or more | must be set |"));
}

#[test]
fn defaults_are_shown_as_people_write_them() {
    for (dotted, default) in [
        ("router-server.read-timeout", "`5s`"),
        ("router-server.idle-timeout", "`2m`"),
        ("rollout.latency-slack", "`15ms`"),
        ("traffic.sticky.max-age", "`720h` (30 days)"),
        ("fallback.max-body", "`64KiB`"),
        ("fallback.statuses", "`[500, 502, 503, 504]`"),
        ("log.level", "`\"info\"`"),
        ("sidecar-url", "none"),
        ("override.trusted", "everyone"),
        ("circuit-breaker.main.slow-call-duration", "`0` (off)"),
        ("traffic.weight", "`0` (`100` with `sidecar-url`)"),
    ] {
        let page = reference();
        let begin = format!("| `{dotted}` |");
        let row = page.lines().find(|line| line.starts_with(&begin)).unwrap();
        assert!(row.contains(&format!(" | {default} | ")), "{row}");
    }
}
