//! The JSON Schema of the file, and the reference of all keys, for editors and people.
//!
//! Which keys there are and what their defaults are comes from `raw`; what is said of them, from `keys`. The
//! schema takes whatever the router takes: it is for finding mistakes early, and a false alarm would be worse than one
//! that is only found at the start. What must go together is the router's to say.

mod keys;
mod markdown;

use serde_json::{Map, Value, json};

use super::{
    json::{OFF, template},
    raw::{Instrumentation, Raw, Tracing},
    values::{Size, Span},
};
use keys::{FILE_SAYS, KEYS, Key, Kind, SECTIONS};
pub use markdown::reference;

const COUNT: &str = r"^\s*\+?[0-9]+\s*$";
const DURATION: &str = r"^\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*(ms|s|m|h)?\s*$";
const SIZE: &str = r"^\s*[0-9]+\s*(B|KiB|MiB|GiB|kB|KB|MB|GB)?\s*$";
const PERCENT: &str = r"^\s*[0-9]+(\.[0-9]+)?\s*%?\s*$";
const NUMBER: &str = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$";
const FLAG: &str = r"^\s*(true|false)\s*$";

/// The JSON Schema of the file (draft 2020-12).
pub fn schema() -> Value {
    let mut schema = section(template(), &defaults(), "");
    schema["type"] = "object".into();
    // So that an editor finds this one.
    schema["properties"]["$schema"] = json!({
        "description": "Where the schema of this file is, for editors; the router does not look at it",
        "type": ["string", "null"]
    });
    let mut whole = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "canary-router",
        "description": FILE_SAYS
    });
    merge(&mut whole, schema);
    whole
}

/// What a file that says nothing means, its optional sections included.
fn defaults() -> Value {
    let raw = Raw {
        instrumentation: Some(Instrumentation::default()),
        tracing: Some(Tracing::default()),
        ..Raw::default()
    };
    serde_json::to_value(raw.with_defaults()).unwrap_or_default()
}

fn section(template: &Value, defaults: &Value, path: &str) -> Value {
    let keys = template.as_object().into_iter().flatten();
    let properties: Map<String, Value> = keys
        .map(|(key, template)| {
            let path = format!("{path}/{key}");
            let (template, default) = (template, &defaults[key]);
            let schema = match template {
                Value::Object(_) => section(template, default, &path),
                template => value(template, default, &path),
            };
            (key.clone(), schema)
        })
        .collect();
    let mut schema = json!({
        "type": ["object", "null"],
        "properties": properties,
        "additionalProperties": false
    });
    if OFF.contains(&path) {
        schema["type"] = json!(["object", "string", "null"]);
        schema["pattern"] = "^off$".into();
    }
    match says_of_section(path) {
        "" => schema,
        says => described(says, schema),
    }
}

fn value(template: &Value, default: &Value, path: &str) -> Value {
    let Some(key) = key(path) else {
        return json!({});
    };
    let mut schema = described(key.says, key.kind.schema(template));
    match default {
        Value::Null => {}
        default => schema["default"] = default.clone(),
    }
    // Where there is no default to go by, it has an example.
    if *default != *template && (default.is_null() || *default == "") {
        schema["examples"] = json!([template]);
    }
    schema
}

fn described(says: &str, schema: Value) -> Value {
    let mut whole = json!({"description": says});
    merge(&mut whole, schema);
    whole
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// What there is to say of the key at this path; of some only where their like stands.
fn key(path: &str) -> Option<&'static Key> {
    let at = |path: &str| KEYS.iter().find(|key| key.path == path);
    at(path).or_else(|| at(&like(path)?))
}

fn says_of_section(path: &str) -> &'static str {
    let at = |path: &str| SECTIONS.iter().find(|(section, _)| *section == path);
    let found = at(path).or_else(|| at(&like(path)?));
    found.map_or("", |(_, says)| says)
}

/// The path of the key that means the same elsewhere.
fn like(path: &str) -> Option<String> {
    let of = |here: &str, there: &str| Some(format!("{there}{}", path.strip_prefix(here)?));
    of("/circuit-breaker/main/", "/circuit-breaker/").or_else(|| {
        of(
            "/proxy-client/to-sidecar/",
            "/proxy-client/to-main-and-canary/",
        )
    })
}

impl Kind {
    fn schema(&self, template: &Value) -> Value {
        match self {
            Kind::Text("", _) => json!({"type": ["string", "null"]}),
            Kind::Text(pattern, _) => json!({"type": ["string", "null"], "pattern": pattern}),
            Kind::Secret => json!({"type": ["string", "null"], "writeOnly": true}),
            Kind::Word(words) => json!({"anyOf": [{"enum": words}, unset()]}),
            Kind::Level(words, pattern) => {
                json!({"anyOf": [{"enum": words}, {"type": "string", "pattern": pattern}, unset()]})
            }
            Kind::Flag => json!({"type": ["boolean", "string", "null"], "pattern": FLAG}),
            Kind::Port => numeric("integer", COUNT, Some(65_535.into())),
            Kind::Count(_, most) => {
                let most = (*most < u64::MAX).then(|| (*most).into());
                numeric("integer", COUNT, most)
            }
            Kind::Duration(_, most) => {
                // A year is the most that any takes.
                let most = if most.is_empty() { "8760h" } else { most };
                numeric("number", DURATION, seconds(most))
            }
            Kind::Size(_, most) => numeric("integer", SIZE, bytes(most)),
            Kind::Percent => numeric("number", PERCENT, Some(100.into())),
            Kind::Number(_, most) => numeric("number", NUMBER, Some(json!(most))),
            Kind::Texts(pattern, _) => {
                json!({"type": ["array", "null"], "items": {"type": "string", "pattern": pattern}})
            }
            Kind::Words(words) => json!({
                "type": ["array", "null"],
                "items": {"enum": words},
                "contains": {"const": words[0]}
            }),
            Kind::Counts(least, most) => json!({
                "type": ["array", "null"],
                "items": {
                    "type": ["integer", "string"],
                    "minimum": least,
                    "maximum": most,
                    "pattern": COUNT
                }
            }),
            Kind::Steps => steps(&template[0]),
        }
    }
}

/// Each of which must be whole.
fn steps(template: &Value) -> Value {
    let keys = template
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| key);
    let properties: Map<String, Value> = keys
        .clone()
        .map(|key| {
            let path = format!("/rollout/steps/{key}");
            let mut schema = value(&Value::Null, &Value::Null, &path);
            schema["type"] = json!(["number", "string"]);
            (key.clone(), schema)
        })
        .collect();
    let mut item = json!({
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
        "required": keys.collect::<Vec<_>>()
    });
    item["properties"]["weight"]["exclusiveMinimum"] = 0.into();
    item["properties"]["for"]["minimum"] = 1.into();
    json!({
        "type": ["array", "null"],
        "items": item,
        "maxItems": 100,
        "examples": [[template]]
    })
}

/// A number as such, or as a text with or without a unit.
fn numeric(kind: &str, pattern: &str, most: Option<Value>) -> Value {
    let mut schema = json!({"type": [kind, "string", "null"], "minimum": 0});
    if let Some(most) = most {
        schema["maximum"] = most;
    }
    schema["pattern"] = pattern.into();
    schema
}

/// Beside words, what means the default.
fn unset() -> Value {
    json!({"type": ["string", "null"], "maxLength": 0})
}

fn seconds(text: &str) -> Option<Value> {
    let span = serde_json::from_value::<Span>(text.into()).ok()?;
    Some(span.0.as_secs().into())
}

fn bytes(text: &str) -> Option<Value> {
    let size = serde_json::from_value::<Size>(text.into()).ok()?;
    Some(size.0.into())
}

#[cfg(test)]
mod tests;
