//! The borders of the house: who may import whom. Each rule says why it is there; a rule whose folder
//! has vanished fails too, so that it cannot be moved out from under it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A module of ours, and which others it may use.
struct Room {
    name: &'static str,
    may_use: &'static [&'static str],
    why: &'static str,
}

const HOUSE: &[Room] = &[
    Room {
        name: "policy",
        may_use: &[],
        why: "what is decided hangs on nothing but its arguments, so that it can be enumerated",
    },
    Room {
        name: "config",
        may_use: &["policy", "roots"],
        why: "a configuration is judged without anything running",
    },
    Room {
        name: "state",
        may_use: &["policy", "config"],
        why: "where the planes meet, neither of them is known",
    },
    Room {
        name: "proxy",
        may_use: &[
            "state", "policy", "config", "clock", "causes", "uuid", "roots", "VERSION",
        ],
        why: "the data plane does not wait for, or depend on, the control plane",
    },
    Room {
        name: "control",
        may_use: &[
            "state", "policy", "config", "clock", "causes", "uuid", "roots", "VERSION", "COMMIT",
        ],
        why: "the control plane does not reach into requests",
    },
    Room {
        name: "cli",
        may_use: &["causes", "VERSION"],
        why: "it talks to routers of other versions: what it knows of one is what that one answers",
    },
    Room {
        name: "offline",
        may_use: &["config"],
        why: "what needs no router knows of none",
    },
    Room {
        name: "clock",
        may_use: &[],
        why: "it is used by all",
    },
    Room {
        name: "causes",
        may_use: &[],
        why: "it is used by all",
    },
    Room {
        name: "uuid",
        may_use: &[],
        why: "both planes use it",
    },
    Room {
        name: "roots",
        may_use: &[],
        why: "both planes use it",
    },
    Room {
        name: "telemetry",
        may_use: &["config", "clock"],
        why: "log lines know nothing of requests",
    },
    Room {
        name: "app",
        may_use: &[
            "state",
            "policy",
            "config",
            "proxy",
            "control",
            "clock",
            "telemetry",
        ],
        why: "the one place that knows all of them",
    },
];

/// What a folder must not name, and why.
const BANNED: &[(&str, &[&str], &str)] = &[
    (
        "policy",
        &[
            "tokio",
            "hyper",
            "http::",
            "tracing",
            "rand",
            "std::sync",
            "std::time::Instant",
            "SystemTime",
            "std::net",
            "std::fs",
            "std::io",
            "std::thread",
            "std::env",
            "RefCell",
        ],
        "policy is pure: time comes in as an argument, chance as a number, and nothing is shared",
    ),
    (
        "config",
        &["tokio", "hyper::", "tracing::"],
        "reading a file starts nothing and logs nothing",
    ),
    (
        "state",
        &["tokio", "hyper", "std::net", "std::io", "tracing", ".await"],
        "state is synchronous and does no I/O: both planes use it, one of them while it is in a hurry",
    ),
    (
        "proxy",
        &["prometheus"],
        "the data plane never touches the metrics registry: it counts in its tally",
    ),
    (
        "offline",
        &["tokio", "hyper", "std::net", "tracing", "std::thread"],
        "it looks at a configuration and touches nothing: it runs beside a router, and before one",
    ),
    (
        "cli/view",
        &[
            "tokio", "hyper", "std::io", "std::env", "std::fs", "std::net",
        ],
        "what is shown hangs on nothing but the JSON, so that it can be tested as text",
    ),
];

#[test]
fn every_module_imports_only_what_it_may() {
    let mut broken = Vec::new();
    for room in HOUSE {
        for (file, text) in sources(room.name) {
            for used in uses_of_crate(&text) {
                if used != room.name && !room.may_use.contains(&used.as_str()) {
                    broken.push(format!(
                        "{}: {} may not use crate::{used} ({})",
                        file.display(),
                        room.name,
                        room.why
                    ));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn what_is_banned_is_not_there() {
    let mut broken = Vec::new();
    for (room, words, why) in BANNED {
        for (file, text) in sources(room) {
            for word in *words {
                if let Some(line) = code(&text).find(|line| line.contains(word)) {
                    broken.push(format!(
                        "{}: {word} in `{}`: {why}",
                        file.display(),
                        line.trim()
                    ));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_module_of_the_crate_has_its_rule() {
    let rooms: BTreeSet<&str> = HOUSE.iter().map(|room| room.name).collect();
    let modules: BTreeSet<String> = fs::read_dir(src())
        .expect("src is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .filter(|name| name != "lib" && name != "main")
        .collect();
    for module in &modules {
        assert!(
            rooms.contains(module.as_str()),
            "src/{module}: say in HOUSE what it may use, and why"
        );
    }
}

#[test]
fn every_module_says_first_what_it_is_for() {
    for room in HOUSE {
        for (file, text) in sources(room.name) {
            let is_test = file.file_name().is_some_and(|name| name == "tests.rs");
            assert!(
                is_test || text.starts_with("//! "),
                "{} has no //! first",
                file.display()
            );
        }
    }
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The files of a module, with their text.
fn sources(room: &str) -> Vec<(PathBuf, String)> {
    let single = src().join(format!("{room}.rs"));
    let mut files = match single.is_file() {
        true => vec![single],
        false => files_below(&src().join(room)),
    };
    files.sort();
    assert!(
        !files.is_empty(),
        "src/{room} has vanished: its rule goes or moves with it"
    );
    files
        .into_iter()
        .map(|file| {
            let text = fs::read_to_string(&file).expect("a source file can be read");
            (file, text)
        })
        .collect()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.expect("it can be read").path())
        .flat_map(|path| match path.is_dir() {
            true => files_below(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The lines that are code, up to the unit tests, which may use what they like.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .filter(|line| !line.trim_start().starts_with("//"))
}

/// The first path segments behind `crate::`, in single imports and in braces.
fn uses_of_crate(text: &str) -> BTreeSet<String> {
    let code: String = code(text).collect::<Vec<_>>().join(" ");
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => {
                used.insert(word(rest));
            }
            Some(list) => {
                let mut depth = 0;
                let mut start = true;
                for (i, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && depth == 0 && !c.is_whitespace() => {
                            used.insert(word(&list[i..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    used
}

fn word(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

#[test]
fn the_reader_of_imports_reads_imports() {
    let text = "use crate::{\n    clock,\n    config::{Config, Upstream},\n    state::x,\n};\nuse crate::policy::Reason;\n// crate::control\nlet x = crate::VERSION;\n#[cfg(test)]\nuse crate::app::App;";
    let used: Vec<String> = uses_of_crate(text).into_iter().collect();
    assert_eq!(used, ["VERSION", "clock", "config", "policy", "state"]);
}
