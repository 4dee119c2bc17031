//! `docs/openapi.json` as a witness: as much of OpenAPI and JSON Schema as it uses, and not more.

use serde_json::{Map, Value};

use super::Response;

fn document() -> Value {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// The name of the schema that the body of a request has; `None` if it has no body.
#[track_caller]
pub fn body(method: &str, path: &str) -> Option<String> {
    let operation = document()["paths"][path][method.to_lowercase()].take();
    assert!(operation.is_object(), "{method} {path} is not described");
    let schema = operation.pointer("/requestBody/content/application~1json/schema/$ref")?;
    Some(schema.as_str().unwrap().rsplit('/').next().unwrap().into())
}

/// Every path that is described.
pub fn paths() -> Vec<String> {
    let document = document();
    document["paths"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

/// Every method and path that is described, but for what is answered without end.
pub fn operations() -> Vec<(String, String)> {
    let document = document();
    let paths = document["paths"].as_object().unwrap().iter();
    let ends = |operations: &Value| {
        let content = operations.pointer("/get/responses/200/content/text~1event-stream");
        content.is_none()
    };
    let each = paths
        .filter(|(_, operations)| ends(operations))
        .flat_map(|(path, operations)| {
            let methods = operations.as_object().unwrap().keys();
            methods.map(move |method| (method.to_uppercase(), path.clone()))
        });
    each.collect()
}

/// Fails the test if this is not what is described: its status for this operation, and for the status the
/// header fields and the body. `HEAD` is a `GET` without a body; a method that a path does not have is answered
/// as the path's only one says.
#[track_caller]
pub fn assert_answers(method: &str, path: &str, response: &Response) {
    let document = document();
    let resolve = |value: &Value| match value["$ref"].as_str() {
        Some(place) => document.pointer(&place[1..]).unwrap().clone(),
        None => value.clone(),
    };
    let operations = document["paths"][path].as_object();
    let what = format!("{method} {path}: {} {}", response.status, response.text());
    let described = match operations {
        None => document["components"]["responses"]["NotFound"].clone(),
        Some(operations) => {
            let name = method.to_lowercase().replace("head", "get");
            let mut all = operations.values();
            let operation = operations.get(&name).or(all.next()).unwrap();
            resolve(&operation["responses"][response.status.to_string()])
        }
    };
    assert!(described.is_object(), "not described: {what}");
    let fields = described["headers"].as_object();
    for (name, field) in fields.into_iter().flatten() {
        let value = response.header(name);
        let value = value.unwrap_or_else(|| panic!("without {name}: {what}"));
        let mut problems = Vec::new();
        check(
            &document,
            &field["schema"],
            &value.into(),
            name,
            &mut problems,
        );
        assert!(problems.is_empty(), "{problems:?}: {what}");
    }
    let (kind, content) = described["content"]
        .as_object()
        .unwrap()
        .iter()
        .next()
        .unwrap();
    let said = response.header("content-type").unwrap_or_default();
    assert!(said.starts_with(&**kind), "{said}: {what}");
    if method == "HEAD" {
        assert!(response.message.body.is_empty(), "{what}");
        return;
    }
    let value = match &**kind {
        "application/json" => serde_json::from_slice(&response.message.body).unwrap(),
        _ => Value::from(response.text()),
    };
    let mut problems = Vec::new();
    check(&document, &content["schema"], &value, "body", &mut problems);
    assert!(problems.is_empty(), "{problems:#?}: {what}");
}

/// Fails the test if this is no `name` of `components.schemas`.
#[track_caller]
pub fn assert_is(name: &str, value: &Value) {
    let problems = problems(name, value);
    assert!(problems.is_empty(), "no {name}: {problems:#?}\n{value:#}");
}

/// What keeps this from being a `name` of `components.schemas`.
pub fn problems(name: &str, value: &Value) -> Vec<String> {
    let document = document();
    let mut problems = Vec::new();
    let schema = &document["components"]["schemas"][name];
    check(&document, schema, value, name, &mut problems);
    problems
}

fn check(document: &Value, schema: &Value, value: &Value, at: &str, problems: &mut Vec<String>) {
    let schema = schema
        .as_object()
        .unwrap_or_else(|| panic!("no schema for {at}"));
    for (keyword, wanted) in schema {
        let good = match keyword.as_str() {
            "description" | "examples" | "required" | "items" | "format" => true,
            "$ref" => {
                let place = wanted.as_str().unwrap().trim_start_matches('#');
                let schema = document.pointer(place).expect("a $ref leads somewhere");
                check(document, schema, value, at, problems);
                true
            }
            "type" => match wanted {
                Value::Array(kinds) => kinds.iter().any(|kind| is_a(kind, value)),
                kind => is_a(kind, value),
            },
            "const" => wanted == value,
            "enum" => wanted.as_array().unwrap().contains(value),
            "minimum" => value
                .as_f64()
                .is_none_or(|value| value >= wanted.as_f64().unwrap()),
            "maximum" => value
                .as_f64()
                .is_none_or(|value| value <= wanted.as_f64().unwrap()),
            "minLength" => value.as_str().is_none_or(|value| !value.is_empty()),
            "maxItems" => value
                .as_array()
                .is_none_or(|items| items.len() as u64 <= wanted.as_u64().unwrap()),
            // The one there is: words with hyphens between.
            "pattern" => value.as_str().is_none_or(|value| {
                let is_word =
                    |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase());
                value.split('-').all(is_word)
            }),
            "oneOf" => {
                let fits = wanted.as_array().unwrap().iter().filter(|schema| {
                    let mut problems = Vec::new();
                    check(document, schema, value, at, &mut problems);
                    problems.is_empty()
                });
                fits.count() == 1
            }
            "properties" | "additionalProperties" => true,
            other => panic!("{at}: the witness does not know {other}"),
        };
        if !good {
            problems.push(format!("{at}: {keyword} {wanted}, not {value}"));
        }
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (number, value) in values.iter().enumerate() {
            check(document, items, value, &format!("{at}/{number}"), problems);
        }
    }
    if let Some(object) = value.as_object() {
        members(document, schema, object, at, problems);
    }
}

fn members(
    document: &Value,
    schema: &Map<String, Value>,
    object: &Map<String, Value>,
    at: &str,
    problems: &mut Vec<String>,
) {
    let required = schema.get("required").and_then(Value::as_array);
    for name in required.into_iter().flatten() {
        if !object.contains_key(name.as_str().unwrap()) {
            problems.push(format!("{at}: {name} is missing"));
        }
    }
    for (name, value) in object {
        let at = format!("{at}/{name}");
        match schema.get("properties").and_then(|known| known.get(name)) {
            Some(schema) => check(document, schema, value, &at, problems),
            None if schema.get("additionalProperties") == Some(&Value::Bool(false)) => {
                problems.push(format!("{at}: there is no such property"));
            }
            None => {}
        }
    }
}

fn is_a(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("no type: {other}"),
    }
}

/// Every `$ref` leads somewhere, and what every object may hold is said.
#[test]
fn the_description_is_complete() {
    fn refs(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str).map(String::from));
                object.values().for_each(|value| refs(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| refs(value, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = Vec::new();
    refs(&document, &mut found);
    assert!(found.len() > 50);
    for place in found {
        let place = place.strip_prefix('#').expect("inside the document");
        assert!(document.pointer(place).is_some(), "{place}");
    }
    assert_eq!(document["info"]["version"], canary_router::VERSION);
}

#[test]
fn the_witness_tells_right_from_wrong() {
    let position = |step: Value| serde_json::json!({"phase": "idle", "step": step, "weight": 5});
    assert_is("Position", &position(1.into()));
    for wrong in [
        position(Value::Null),
        position((-1).into()),
        position(1.5.into()),
    ] {
        assert_eq!(problems("Position", &wrong).len(), 1, "{wrong}");
    }
    let mut wrong = position(1.into());
    wrong["new"] = 1.into();
    wrong["weight"] = 101.into();
    wrong["phase"] = "frozen".into();
    assert_eq!(problems("Position", &wrong).len(), 3);
    wrong.as_object_mut().unwrap().remove("step");
    assert_eq!(problems("Position", &wrong).len(), 4);
}
