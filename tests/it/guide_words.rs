//! What the pages in `docs/` call by its name is there: metrics and their labels, log lines, messages, reasons, keys
//! and paths.
//!
//! It goes by what stands between backticks. What a page says is so, others test.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{peers::Scratch, support::*};

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// What is not ours to check begins so: programs, and variables of nginx, of others.
const FOREIGN: [&str; 27] = [
    "$",
    "apt ",
    "apt-get ",
    "cargo ",
    "curl ",
    "dmesg",
    "docker ",
    "grep ",
    "go ",
    "hash $",
    "kill ",
    "kubectl ",
    "listen ",
    "net.",
    "nginx ",
    "node ",
    "perf ",
    "promtool ",
    "proxy_",
    "python3 ",
    "ss ",
    "ssh ",
    "strace ",
    "sysctl ",
    "systemctl ",
    "systemd-analyze ",
    "ulimit ",
];

/// Other people's words, by themselves.
const NOT_OURS: [&str; 12] = [
    ".lock",
    ".new",
    "/",
    "//",
    "//a",
    "/health",
    "Too many open files",
    "Too many open files (os error 24)",
    "canary.fails",
    "h2-both",
    "musl-tools",
    "notify-reload",
];

pub fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn files(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        match extension {
            _ if path.is_dir() => files(&path, extensions, found),
            Some(extension) if extensions.contains(&extension) => found.push(path),
            _ => {}
        }
    }
}

/// The pages of the guide, and those that lead to it, by their paths.
pub fn pages() -> Vec<PathBuf> {
    let others = ["README.md", "sample/observability/README.md"];
    let mut pages = others.map(|page| Path::new(ROOT).join(page)).to_vec();
    files(&Path::new(ROOT).join("docs"), &["md"], &mut pages);
    pages.sort();
    assert!(pages.len() > 10);
    pages
}

/// A page without its fenced blocks.
pub fn prose(page: &str) -> String {
    let parts = page.split("\n```").enumerate();
    // Behind each second fence there is text again.
    let text = parts.filter(|(number, _)| number % 2 == 0);
    text.map(|(_, part)| part).collect::<Vec<_>>().join("\n")
}

/// The fenced blocks of a language.
pub fn fenced(page: &str, language: &str) -> Vec<String> {
    let blocks = page.split("\n```").skip(1).step_by(2);
    let of_it = blocks.filter_map(|block| block.split_once('\n').filter(|(of, _)| *of == language));
    of_it.map(|(_, text)| text.to_owned()).collect()
}

/// What stands between backticks.
pub fn spans(prose: &str) -> Vec<String> {
    let parts = prose.split('`').enumerate();
    let spans = parts.filter(|(number, _)| number % 2 == 1);
    spans.map(|(_, span)| span.replace('\n', " ")).collect()
}

/// All that the program can say, with what stands on several lines on one.
fn sources() -> String {
    let mut found = Vec::new();
    files(
        &Path::new(ROOT).join("src"),
        &["rs", "js", "html"],
        &mut found,
    );
    let text: String = found.iter().map(read).collect();
    let lines = text
        .lines()
        .map(|line| match line.trim_end().strip_suffix('\\') {
            Some(goes_on) => goes_on.trim_start().to_owned(),
            None => format!("{}\n", line.trim_start()),
        });
    lines.collect()
}

// ---- keys

/// The path of every key, such as `sidecar.cache.ttl`.
fn keys() -> BTreeSet<String> {
    fn below(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        for (key, value) in value.as_object().into_iter().flatten() {
            let path = format!("{path}{key}");
            below(value, &format!("{path}."), found);
            found.insert(path);
        }
    }
    let mut found = BTreeSet::new();
    let template = read(Path::new(ROOT).join("config.template.json"));
    below(&serde_json::from_str(&template).unwrap(), "", &mut found);
    // What only lists have in them, and what is for editors.
    let more = ["rollout.steps.weight", "rollout.steps.for", "$schema"];
    found.extend(more.map(str::to_owned));
    found
}

/// Whether there is such a key, or such an end of one: `sidecar.body`, `proxy-client.*.tls`, `tls.ca`, `.port`.
fn is_key(keys: &BTreeSet<String>, written: &str) -> bool {
    let parts: Vec<&str> = written.trim_start_matches('.').split('.').collect();
    keys.iter().any(|key| {
        let key: Vec<&str> = key.split('.').collect();
        let from = match parts.ends_with(&["*"]) {
            true => Some(0),
            false => key.len().checked_sub(parts.len()),
        };
        let is_it = |(part, key): (&&str, &&str)| part == key || *part == "*";
        from.is_some_and(|from| {
            key.len() - from >= parts.len()
                && (key.len() - from == parts.len() || parts.ends_with(&["*"]))
                && parts.iter().zip(&key[from..]).all(is_it)
        })
    })
}

/// `"sidecar": {"body": "none"}`: the paths in it, from its own beginning.
fn keys_in(snippet: &str) -> Option<Vec<String>> {
    fn below(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => object
                .iter()
                .for_each(|(key, value)| below(value, &format!("{path}.{key}"), found)),
            _ => found.push(path.to_owned()),
        }
    }
    let snippet = snippet.replace('…', "\"\"");
    let value: Value = serde_json::from_str(&format!("{{{snippet}}}")).ok()?;
    let mut found = Vec::new();
    below(&value, "", &mut found);
    Some(found)
}

// ---- what there is

struct Known {
    metrics: String,
    sources: String,
    keys: BTreeSet<String>,
    /// What the instrumentation port answers, described.
    answers: String,
    paths: BTreeSet<String>,
}

impl Known {
    async fn all() -> Known {
        let scratch = Scratch::new();
        let (one, collector) = (
            Upstream::named("one", 200).await,
            Upstream::named("", 200).await,
        );
        // With everything that has metrics.
        let router = Router::start(json!({
            "main-target": one.url(),
            "canary-target": one.url(),
            "sidecar-url": one.url(),
            "sidecar": {"cache": {"key": ["path"], "ttl": "1s"}},
            "circuit-breaker": {"request-limit-canary": 1, "error-limit-canary": 1},
            "rollout": {"steps": [{"weight": 50, "for": "10m"}]},
            "tracing": {"endpoint": collector.url()},
            "state": {"file": scratch.path("state.json")}
        }));
        let answers = read(Path::new(ROOT).join("docs/openapi.json"));
        let openapi: Value = serde_json::from_str(&answers).unwrap();
        let mut paths: BTreeSet<String> = openapi["paths"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        paths.insert("/application/health".into());
        Known {
            metrics: router.metrics().await.0,
            sources: sources(),
            keys: keys(),
            answers,
            paths,
        }
    }

    /// `name`, `name{label="value"}`, of labels all in the same line, or `name_*`.
    fn is_metric(&self, written: &str) -> bool {
        let (name, labels) = written.split_once('{').unwrap_or((written, ""));
        let labels: Vec<&str> = labels
            .trim_end_matches('}')
            .split(',')
            .filter(|label| !label.is_empty())
            .collect();
        self.metrics
            .lines()
            .filter(|line| !line.starts_with('#'))
            .any(|line| {
                let (series, given) = line.split_once(['{', ' ']).unwrap();
                let is_it = |end: &&str| match name.strip_suffix('*') {
                    Some(begin) => series.starts_with(begin),
                    None => series.strip_suffix(*end) == Some(name),
                };
                ["", "_bucket", "_count", "_sum"].iter().any(is_it)
                    && labels.iter().all(|label| given.contains(label))
            })
    }

    /// Whether the program has these words in it, between `…`.
    fn says(&self, message: &str) -> bool {
        let message = message.strip_prefix("rollout: ").unwrap_or(message);
        let parts = message
            .split('…')
            .map(|part| part.trim().trim_end_matches([';', ':']));
        let mut parts = parts.filter(|part| !part.is_empty()).peekable();
        parts.peek().is_some() && parts.all(|part| self.sources.contains(part))
    }

    fn is_reason(&self, written: &str) -> bool {
        self.metrics.contains(&format!("reason=\"{written}\""))
    }

    /// What is wrong with a span.
    fn objects(&self, span: &str) -> Option<&'static str> {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let wrong = |is_right: bool, why: &'static str| (!is_right).then_some(why);
        if FOREIGN.iter().any(|program| span.starts_with(program))
            || NOT_OURS.contains(&span)
            || span.contains("::")
        {
            return None;
        }
        let span = span.strip_prefix("canary-router: ").unwrap_or(span);
        if span.starts_with("canary_router_") || span.starts_with("process_") {
            return wrong(self.is_metric(span), "no such metric, or no such label");
        }
        if let Some(message) = span.strip_prefix("\"msg\":\"") {
            return wrong(
                self.says(message.trim_end_matches('"')),
                "no such line in the log",
            );
        }
        if let Some((label, value)) = span.split_once("=\"")
            && label.chars().all(|c| is_word(c) || c == '_')
        {
            let pair = format!("{label}=\"{value}");
            return wrong(self.metrics.contains(&pair), "no such label");
        }
        if span.starts_with('"') && span.contains("\":") {
            let Some(keys) = keys_in(span) else {
                return Some("neither JSON nor a line of the log");
            };
            // Or it is of an answer.
            let is_key = |key: &String| {
                let name = key.rsplit('.').next().unwrap();
                is_key(&self.keys, key) || self.answers.contains(&format!("\"{name}\":"))
            };
            return wrong(keys.iter().all(is_key), "no such key");
        }
        if ["Canary ", "Sidecar ", "Routed "]
            .iter()
            .any(|begin| span.starts_with(begin))
        {
            return wrong(self.is_reason(span), "no such reason");
        }
        let path = span
            .split_once(' ')
            .filter(|(method, _)| matches!(*method, "GET" | "POST" | "PUT"));
        let path = path.map_or(span, |(_, path)| path);
        if path.starts_with('/') {
            let first = |path: &str| path[1..].split('/').next().unwrap_or_default().to_owned();
            let ours = self.paths.iter().any(|known| first(known) == first(path));
            return wrong(!ours || self.paths.contains(path), "no such path");
        }
        if span.contains('.')
            && span.chars().all(|c| is_word(c) || ".*".contains(c))
            && span.contains(char::is_alphabetic)
        {
            let extension = span.rsplit('.').next().unwrap();
            let is_file = [
                "conf", "go", "js", "json", "log", "md", "py", "rs", "sh", "socket", "yml",
            ]
            .contains(&extension);
            let is_number = extension.chars().all(|c| c.is_ascii_digit() || c == 's');
            return wrong(
                is_file || is_number || is_key(&self.keys, span),
                "no such key",
            );
        }
        if span.contains('-')
            && span.starts_with(|c: char| c.is_ascii_lowercase())
            && span.chars().all(is_word)
        {
            return wrong(self.sources.contains(span), "no such word");
        }
        // What has several words was said by the program.
        let is_message = span.split(' ').count() > 2 && span.starts_with(char::is_alphabetic);
        wrong(
            !is_message || span.starts_with("canary-router ") || self.says(span),
            "no such message",
        )
    }
}

#[tokio::test]
async fn what_the_guide_names_is_there() {
    let known = Known::all().await;
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in pages() {
        let name = page.strip_prefix(ROOT).unwrap().display().to_string();
        for span in spans(&prose(&read(&page))) {
            count += 1;
            if let Some(why) = known.objects(span.trim()) {
                wrong.push(format!("{name}: {span}: {why}"));
            }
        }
    }
    assert!(count > 500, "{count}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_configuration_in_the_guide_has_known_keys() {
    let keys = keys();
    let mut count = 0;
    for page in pages() {
        for block in fenced(&read(&page), "json") {
            let object = block
                .trim()
                .strip_prefix('{')
                .and_then(|block| block.strip_suffix('}'));
            let written = object.and_then(keys_in);
            for key in written.unwrap_or_else(|| panic!("{}: no object: {block}", page.display())) {
                assert!(keys.contains(&key[1..]), "{}: {key}", page.display());
            }
            count += 1;
        }
    }
    assert!(count > 4, "{count}");
}
