//! From text to [`Raw`], noting every problem instead of stopping at the first.
//!
//! serde stops at the first value that does not fit. So what does not fit is noted, taken out, and
//! the rest read again: a file has as many rounds as it has mistakes.

use std::{fmt, sync::LazyLock};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use super::{environment::Environment, error::Problems, raw::Raw, words::nearest};

/// Keys that are planned: who writes one did not misspell it.
pub(super) const NOT_YET: [(&str, &str); 1] = [(
    "/state/redis",
    "is not in this version: keep the state of each instance in a file of its own with \"file\"",
)];

/// Sections that are off unless something is in them, and may say so.
pub(super) const OFF: [&str; 4] = [
    "/traffic/sticky",
    "/sidecar/cache",
    "/router-server/tls",
    "/tracing",
];

/// Every key that there is.
pub(super) fn template() -> &'static Value {
    static TEMPLATE: LazyLock<Value> =
        LazyLock::new(|| serde_json::to_value(Raw::every_key()).unwrap_or_default());
    &TEMPLATE
}

/// Reads the text, if there is one, and the environment over it; `None` only where the text is not a JSON
/// object at all.
pub(super) fn read(
    text: Option<&str>,
    environment: &Environment,
    problems: &mut Problems,
) -> Option<Raw> {
    let template = template();
    let mut value = match text {
        Some(text) => object(text, problems)?,
        None => Value::Object(Map::new()),
    };
    take_out_unknown_keys(&mut value, template, "", problems);
    environment.lay_over(&mut value, template, problems);
    // And from what the environment says in JSON.
    take_out_unknown_keys(&mut value, template, "", problems);
    read_known_keys(value, problems)
}

fn object(text: &str, problems: &mut Problems) -> Option<Value> {
    // Editors on Windows put a byte order mark before the text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let value = document(text, "", problems).map_err(|why| problems.add("", why));
    let Value::Object(mut object) = value.ok()? else {
        problems.add("", "not a JSON object: start with config.template.json");
        return None;
    };
    // Where the schema is, for editors. It is no key: there is nothing to set.
    match object.shift_remove("$schema") {
        None | Some(Value::String(_) | Value::Null) => {}
        Some(_) => problems.add("/$schema", "expected a string in quotes: it is for editors"),
    }
    Some(Value::Object(object))
}

/// Reads a document that stands at `path`, and notes what is written twice in it.
pub(super) fn document(text: &str, path: &str, problems: &mut Problems) -> Result<Value, String> {
    let document = serde_json::from_str::<Document>(text)
        .map_err(|error| format!("not valid JSON: {error}"))?;
    for path in document.duplicates(path) {
        problems.add(path, "is written twice: keep one of them");
    }
    Ok(document.into_value())
}

fn take_out_unknown_keys(value: &mut Value, template: &Value, path: &str, problems: &mut Problems) {
    let (object, known) = match (value, template) {
        (Value::Object(object), Value::Object(known)) => (object, known),
        (Value::Array(items), Value::Array(known)) => {
            let Some(known) = known.first() else { return };
            for (i, item) in items.iter_mut().enumerate() {
                take_out_unknown_keys(item, known, &pointer(path, &i.to_string()), problems);
            }
            return;
        }
        // serde would take its items for the keys, in their order.
        (list @ Value::Array(_), Value::Object(_)) => {
            *list = Value::Object(Map::new());
            problems.add(path, "invalid type: list, expected an object");
            return;
        }
        _ => return,
    };
    // Null is how some generators write "not set".
    object.retain(|key, value| {
        let is_off = value == "off" && OFF.contains(&&*pointer(path, key));
        !value.is_null() && !is_off
    });
    object.retain(|key, _| {
        let is_known = known.contains_key(key);
        if !is_known {
            let path = pointer(path, key);
            let message = match NOT_YET.iter().find(|(planned, _)| *planned == path) {
                Some((_, message)) => (*message).to_owned(),
                None => unknown_key(key, known),
            };
            problems.add(path, message);
        }
        is_known
    });
    for (key, value) in object {
        take_out_unknown_keys(value, &known[key], &pointer(path, key), problems);
    }
}

fn unknown_key(key: &str, known: &Map<String, Value>) -> String {
    match nearest(key, known.keys().map(String::as_str)) {
        Some(nearest) => format!("unknown key; did you mean {nearest:?}?"),
        None => {
            let known: Vec<_> = known.keys().map(String::as_str).collect();
            format!("unknown key; the keys here are {}", known.join(", "))
        }
    }
}

fn read_known_keys(mut value: Value, problems: &mut Problems) -> Option<Raw> {
    loop {
        let error = match serde_path_to_error::deserialize::<_, Raw>(&value) {
            Ok(raw) => return Some(raw),
            Err(error) => error,
        };
        let path = error
            .path()
            .iter()
            .fold(String::new(), |path, segment| match segment {
                Segment::Map { key } => pointer(&path, key),
                Segment::Seq { index } => pointer(&path, &index.to_string()),
                Segment::Enum { variant } => pointer(&path, variant),
                Segment::Unknown => path,
            });
        problems.add(path.clone(), unquoted(error.into_inner().to_string()));
        take_out(&mut value, &path)?;
    }
}

/// serde shows the text that stands where a section should be, and who mixes the two up may have written
/// his secret there.
fn unquoted(message: String) -> String {
    match message.rsplit_once(", expected ") {
        Some((found, expected)) if found.starts_with("invalid type: string ") => {
            format!("invalid type: string, expected {expected}")
        }
        _ => message,
    }
}

/// `None` where there is nothing to take out.
fn take_out(value: &mut Value, path: &str) -> Option<()> {
    let (parent, key) = path.rsplit_once('/')?;
    match value.pointer_mut(parent)? {
        Value::Object(object) => object.shift_remove(&unescape(key)).map(|_| ()),
        // Lists whose items are looked at one by one are lists of objects. An empty one holds the place,
        // so that those behind it keep their numbers.
        Value::Array(items) => {
            let item = items.get_mut(key.parse::<usize>().ok()?)?;
            let empty = Value::Object(Map::new());
            (std::mem::replace(item, empty.clone()) != empty).then_some(())
        }
        _ => None,
    }
}

/// Appends a key to a JSON Pointer (RFC 6901 section 3).
fn pointer(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))
}

fn unescape(key: &str) -> String {
    key.replace("~1", "/").replace("~0", "~")
}

/// JSON that still knows which keys were written twice; [`Value`] keeps the last one silently, and
/// so a second `circuit-breaker` would switch the limits of the first one off.
enum Document {
    Leaf(Value),
    Array(Vec<Document>),
    Object(Vec<(String, Document)>),
}

impl Document {
    fn duplicates(&self, path: &str) -> Vec<String> {
        match self {
            Document::Leaf(_) => Vec::new(),
            Document::Array(items) => items
                .iter()
                .enumerate()
                .flat_map(|(i, item)| item.duplicates(&pointer(path, &i.to_string())))
                .collect(),
            Document::Object(entries) => {
                let mut found = Vec::new();
                for (i, (key, value)) in entries.iter().enumerate() {
                    if entries[..i].iter().any(|(earlier, _)| earlier == key) {
                        found.push(pointer(path, key));
                    }
                    found.extend(value.duplicates(&pointer(path, key)));
                }
                found
            }
        }
    }

    fn into_value(self) -> Value {
        match self {
            Document::Leaf(value) => value,
            Document::Array(items) => items.into_iter().map(Document::into_value).collect(),
            Document::Object(entries) => Value::Object(
                entries
                    .into_iter()
                    .map(|(key, value)| (key, value.into_value()))
                    .collect(),
            ),
        }
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Document, E> {
                Ok(Document::Leaf(Value::Null))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Document, E> {
                Ok(Document::Leaf(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Document, E> {
                Ok(Document::Leaf(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Document, E> {
                Ok(Document::Leaf(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Document, E> {
                Ok(Document::Leaf(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Document, E> {
                Ok(Document::Leaf(value.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Document, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Document::Array(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Document::Object(entries))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}
