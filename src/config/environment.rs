//! `CANARY_ROUTER_…`: keys from the environment, for containers.
//!
//! A variable's name is the path of its key in upper case, `-` as `_`, levels joined by `__`; which there are
//! comes from the same template as the keys of the file, so none can be forgotten. They are laid over what the
//! file says before anything is judged: a value is taken or refused in the same way, wherever it was
//! written. A misspelt name is a problem here too.

use std::{collections::BTreeMap, ffi::OsString, net::IpAddr};

use serde_json::{Map, Value};

use super::{
    error::Problems,
    json::{NOT_YET, OFF, document},
    words::nearest,
};

const PREFIX: &str = "CANARY_ROUTER_";

/// What the commands that talk to a router go by (`cli`); they may stand in the router's environment too.
const OF_THE_COMMANDS: [&str; 2] = ["CANARY_ROUTER_URL", "CANARY_ROUTER_TOKEN_FILE"];

/// The variables that may be ours.
#[derive(Default)]
pub(super) struct Environment {
    /// `None` is what is not UTF-8.
    variables: BTreeMap<String, Option<String>>,
}

/// What a name stands for; a section where it is an object in the template.
struct Key<'a> {
    path: String,
    template: &'a Value,
}

impl Environment {
    pub(super) fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Environment {
        let variables = variables.into_iter().filter_map(|(name, value)| {
            let name = name.to_string_lossy();
            name.starts_with(PREFIX)
                .then(|| (name.into_owned(), value.into_string().ok()))
        });
        Environment {
            variables: variables.collect(),
        }
    }

    /// The names of those that set a key.
    pub(super) fn in_force(&self, template: &Value) -> Vec<String> {
        if self.variables.is_empty() {
            return Vec::new();
        }
        let keys = keys(template);
        let set = self
            .variables
            .iter()
            .filter(|(name, value)| keys.contains_key(*name) && !is_unset(value));
        set.map(|(name, _)| name.clone()).collect()
    }

    /// Writes the keys that are set into `file`.
    pub(super) fn lay_over(&self, file: &mut Value, template: &Value, problems: &mut Problems) {
        if self.variables.is_empty() {
            return;
        }
        let keys = keys(template);
        for (name, value) in &self.variables {
            let text = value.as_deref();
            match keys.get(name) {
                None if is_of_others(name, text.unwrap_or_default()) => {}
                None => problems.add_of_variable(name, "", unknown(name, &keys)),
                Some(_) if is_unset(value) => {}
                Some(Key { path, template }) => match template {
                    Value::Object(keys) => match is_off(path, text) {
                        true => put(file, path, None),
                        false => problems.add_of_variable(name, path, no_section(path, keys)),
                    },
                    template => {
                        problems.is_from(path, name);
                        match self.read(name, text, path, template, problems) {
                            Ok(value) => put(file, path, Some(value)),
                            Err(why) => problems.add(path, why),
                        }
                    }
                },
            }
        }
    }

    /// What the text means is for the key's own reader to say; here only how a list is written.
    fn read(
        &self,
        name: &str,
        text: Option<&str>,
        path: &str,
        template: &Value,
        problems: &mut Problems,
    ) -> Result<Value, String> {
        let text = text.ok_or("is not UTF-8: write it anew")?;
        if let Some((section, _)) = name.rsplit_once("__")
            && self
                .variables
                .get(section)
                .is_some_and(|off| !is_unset(off))
        {
            return Err(format!("stands beside {section}: keep one of them"));
        }
        let Value::Array(items) = template else {
            return Ok(text.into());
        };
        let is_of_objects = items.first().is_some_and(Value::is_object);
        if is_of_objects || text.trim_start().starts_with('[') {
            return document(text, path, problems);
        }
        Ok(text.split(',').map(str::trim).collect())
    }
}

/// Sets the key, or takes the section out. What stands where a section should be is told when it is read.
fn put(file: &mut Value, path: &str, value: Option<Value>) {
    let Some((sections, key)) = path.rsplit_once('/') else {
        return;
    };
    let mut object = file;
    for section in sections.split('/').skip(1) {
        let Value::Object(sections) = object else {
            return;
        };
        object = sections
            .entry(section)
            .or_insert_with(|| Value::Object(Map::new()));
    }
    if let Value::Object(object) = object {
        match value {
            Some(value) => object.insert(key.to_owned(), value),
            None => object.shift_remove(key),
        };
    }
}

/// The keys and sections of the template, by their names here.
fn keys(template: &Value) -> BTreeMap<String, Key<'_>> {
    fn collect<'a>(section: &'a Value, path: &str, keys: &mut BTreeMap<String, Key<'a>>) {
        for (key, template) in section.as_object().into_iter().flatten() {
            let path = format!("{path}/{key}");
            collect(template, &path, keys);
            keys.insert(name(&path), Key { path, template });
        }
    }
    let mut found = BTreeMap::new();
    collect(template, "", &mut found);
    found
}

/// The variable of the key at this path.
pub(super) fn name(path: &str) -> String {
    let path = path.trim_start_matches('/').replace('/', "__");
    format!("{PREFIX}{}", path.replace('-', "_").to_uppercase())
}

/// The names of all keys, with their paths.
pub(super) fn names(template: &Value) -> Vec<(String, String)> {
    keys(template)
        .into_iter()
        .filter(|(_, key)| !key.template.is_object())
        .map(|(name, key)| (name, key.path))
        .collect()
}

/// Nothing is in it: what a container's file makes of a value that nobody gave.
fn is_unset(value: &Option<String>) -> bool {
    value
        .as_deref()
        .is_some_and(|value| value.trim().is_empty())
}

fn is_off(path: &str, text: Option<&str>) -> bool {
    text.is_some_and(|text| text.trim() == "off") && OFF.contains(&path)
}

fn no_section(path: &str, keys: &Map<String, Value>) -> String {
    let key = keys.keys().next().map_or("", |key| key);
    let key = name(&format!("{path}/{key}"));
    format!("is a section: set its keys one by one, such as {key}")
}

fn is_of_others(name: &str, value: &str) -> bool {
    OF_THE_COMMANDS.contains(&name) || is_of_kubernetes(name, value)
}

/// What Kubernetes tells every pod of each Service: here of one whose name begins with `canary-router` (its
/// documentation, *Service*, "Environment variables"). By the values too, so that little that is misspelt
/// looks like it.
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
    let is_number = |text: &str| text.parse::<u16>().is_ok();
    let is_address = value.parse::<IpAddr>().is_ok();
    let is_protocol = PROTOCOLS.contains(&&*value.to_uppercase());
    let is_url = value
        .split_once("://")
        .is_some_and(|(scheme, _)| PROTOCOLS.contains(&&*scheme.to_uppercase()));

    if name.ends_with("_SERVICE_HOST") {
        return is_address;
    }
    if let Some((_, port)) = name.split_once("_SERVICE_PORT")
        && (port.is_empty() || port.starts_with('_'))
    {
        return is_number(value);
    }
    if name.ends_with("_PORT") && is_url {
        return true;
    }
    let (of_port, fits) = match name.rsplit_once('_') {
        Some((name, "PROTO")) => (name, is_protocol),
        Some((name, "PORT")) => (name, is_number(value)),
        Some((name, "ADDR")) => (name, is_address),
        _ => (name, is_url),
    };
    let mut parts = of_port.rsplitn(3, '_');
    let (protocol, number, service) = (parts.next(), parts.next(), parts.next());
    fits && protocol.is_some_and(|protocol| PROTOCOLS.contains(&protocol))
        && number.is_some_and(is_number)
        && service.is_some_and(|service| service.ends_with("_PORT"))
}

/// Never with its value, which may be a secret.
fn unknown(name: &str, keys: &BTreeMap<String, Key>) -> String {
    let words = |name: &str| name.to_lowercase().replace('_', "-");
    let written = words(name.trim_start_matches(PREFIX));
    let planned = NOT_YET.iter().find(|(path, _)| {
        let path = path.trim_start_matches('/').replace('/', "--");
        path == written
    });
    if let Some((_, message)) = planned {
        return (*message).to_owned();
    }
    let keys = keys.iter().filter(|(_, key)| !key.template.is_object());
    let keys: Vec<(String, &String)> = keys
        .map(|(name, _)| (words(name.trim_start_matches(PREFIX)), name))
        .collect();
    // Whole names first; then what would be right behind a section.
    let last = |words: &str| words.rsplit("--").next().unwrap_or_default().to_owned();
    let lasts: Vec<(String, &String)> = keys
        .iter()
        .map(|(words, name)| (last(words), *name))
        .collect();
    let found = [keys, lasts].into_iter().find_map(|known| {
        let nearest = nearest(&written, known.iter().map(|(words, _)| &**words))?;
        known
            .iter()
            .find(|(words, _)| words == nearest)
            .map(|(_, name)| (*name).clone())
    });
    match found {
        Some(nearest) => format!("unknown variable; did you mean {nearest}?"),
        None => format!(
            "unknown variable; it is {PREFIX} and the path of a key in upper case, with __ between \
             section and key, as in CANARY_ROUTER_ROUTER_SERVER__PORT"
        ),
    }
}

#[cfg(test)]
mod tests;
