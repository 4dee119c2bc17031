//! JSON by way of a document that is whole: what is not a document itself is a list of changes to one. So the fuzzer
//! gets behind the syntax at once, and a seed is as short as what it is about.

use serde_json::Value;

/// A document, and all places in it.
pub struct Template {
    whole: Value,
    places: Vec<String>,
}

impl Template {
    pub fn new(text: &str) -> Template {
        let whole = serde_json::from_str(text).expect("it is JSON");
        let mut places = Vec::new();
        list(&whole, String::new(), &mut places);
        Template { whole, places }
    }

    /// The input itself; where it does not begin like JSON, the document with its changes: `/place value`, one on a
    /// line, where a value that is no JSON is a string, none takes the place out, and a place that there is not is
    /// one that there is.
    pub fn text(&self, input: &str) -> String {
        if !input.starts_with('/') {
            return input.to_owned();
        }
        let mut document = self.whole.clone();
        for line in input.lines() {
            let (place, value) = line.split_once(' ').unwrap_or((line, ""));
            let place = match self.places.iter().any(|known| known == place) {
                true => place,
                false => {
                    let sum = place.bytes().map(usize::from).sum::<usize>();
                    &self.places[sum % self.places.len()]
                }
            };
            match (value, place.rsplit_once('/')) {
                ("", Some((section, key))) => {
                    let section = document.pointer_mut(section);
                    if let Some(Value::Object(section)) = section {
                        section.remove(key);
                    }
                }
                _ => {
                    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
                    if let Some(there) = document.pointer_mut(place) {
                        *there = value;
                    }
                }
            }
        }
        document.to_string()
    }
}

fn list(value: &Value, place: String, places: &mut Vec<String>) {
    let mut inner = |key: &str, value| list(value, format!("{place}/{key}"), places);
    match value {
        Value::Object(entries) => entries.iter().for_each(|(key, value)| inner(key, value)),
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items.for_each(|(i, value)| inner(&i.to_string(), value));
        }
        _ => {}
    }
    places.push(place);
}
