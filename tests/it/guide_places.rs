//! Where the pages in `docs/` lead to is something: commands are commands, links have ends, and what can be followed
//! is followed.

use std::process::Command;

use crate::{
    guide_words::{ROOT, fenced, pages, prose, read, spans},
    peers::run,
};

// ---- commands

/// Of these programs nobody expects that a test runs them.
const NOT_HERE: [&str; 3] = ["kubectl ", "sudo ", "systemctl "];

#[test]
fn what_can_be_run_is_run() {
    let tests = include_str!("guide.rs");
    let docs = format!("{ROOT}/docs/");
    for page in pages() {
        let Some(name) = page.to_str().unwrap().strip_prefix(&docs) else {
            continue;
        };
        if name != "tutorial.md" && !name.starts_with("how-to/") {
            continue;
        }
        let text = read(&page);
        if !fenced(&text, "sh").is_empty() {
            assert!(
                tests.contains(&format!("page(\"{name}\")")),
                "nobody follows {name}"
            );
        }
        for line in fenced(&text, "console")
            .iter()
            .flat_map(|block| block.lines())
        {
            let is_elsewhere = NOT_HERE.iter().any(|program| line.starts_with(program));
            assert!(is_elsewhere, "{name}: {line}: this can be run here: sh");
        }
    }
}

/// What a command line says of itself: its commands, options, and what they take.
async fn help(words: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_canary-router"));
    command.args(words).arg("--help");
    let output = run(command, "nothing", Vec::new()).await;
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The words behind each `canary-router` that begins a command, up to what ends it.
fn commands(text: &str) -> Vec<Vec<&str>> {
    const BEFORE: [&str; 8] = ["|", "||", "&&", ";", "--", "do", "sudo", "until"];
    const BEHIND: [&str; 7] = ["|", "||", ">", "&", ";", "#", "2>"];
    let mut found = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        for at in 0..words.len() {
            let begins = at == 0 || BEFORE.contains(&words[at - 1]);
            if words[at] == "canary-router" && begins {
                let behind = words[at + 1..].iter().copied();
                found.push(behind.take_while(|word| !BEHIND.contains(word)).collect());
            }
        }
    }
    found
}

#[tokio::test]
async fn every_command_in_the_guide_is_one() {
    let main = help(&[]).await;
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        let blocks = ["sh", "console"].map(|language| fenced(&text, language));
        let spans = spans(&prose(&text))
            .into_iter()
            .filter(|span| span.starts_with("canary-router "));
        for place in blocks.concat().into_iter().chain(spans) {
            for words in commands(&place) {
                count += 1;
                let Some((verb, rest)) = words.split_first() else {
                    continue;
                };
                let (own, said) = match verb.starts_with('-') {
                    true => (main.clone(), &words[..]),
                    false => (help(&[verb]).await, rest),
                };
                // Options, and those words that can only be some: not what they stand for.
                for word in said
                    .iter()
                    .filter(|word| word.starts_with(|c: char| c == '-' || c.is_ascii_lowercase()))
                {
                    let is_file = word.contains('.');
                    assert!(
                        is_file || own.contains(*word),
                        "{}: {place}: {word}",
                        page.display()
                    );
                }
            }
        }
    }
    assert!(count > 40, "{count}");
}

// ---- links

/// What a heading is linked to by: lower case, no punctuation, hyphens for blanks.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(page: &str) -> Vec<String> {
    let prose = prose(page);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect()
}

#[test]
fn every_link_in_the_guide_leads_somewhere() {
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        let prose = prose(&text);
        for link in prose
            .split("](")
            .skip(1)
            .map(|rest| rest.split(')').next().unwrap())
        {
            if link.starts_with("http") {
                continue;
            }
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let path = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            assert!(path.exists(), "{}: no {link}", page.display());
            let there =
                place.is_empty() || anchors(&read(&path)).iter().any(|anchor| anchor == place);
            assert!(there, "{}: {link}: no such heading", page.display());
            count += 1;
        }
    }
    assert!(count > 80, "{count}");
}
