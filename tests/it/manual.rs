//! What helps with the command line: completions in shells, and the manual page.

use std::process::Command;

use crate::support::*;

const BINARY: &str = env!("CARGO_BIN_EXE_canary-router");

fn printed(arguments: &[&str]) -> String {
    let output = Command::new(BINARY).args(arguments).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Every command that the help lists.
fn commands() -> Vec<String> {
    let help = printed(&["--help"]);
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let (list, _) = list.split_once("\n\n").unwrap();
    let names = list
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let names: Vec<String> = names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect();
    for known in ["status", "weight", "check", "schema", "completions"] {
        assert!(names.iter().any(|name| name == known), "{known}: {names:?}");
    }
    names
}

/// The long options of a command, by its help.
fn options(command: &str) -> Vec<String> {
    let help = printed(&[command, "--help"]);
    let options = help.lines().filter_map(|line| {
        let at = line.trim_start().strip_prefix("--").or_else(|| {
            let (short, long) = line.trim_start().split_once(", --")?;
            (short.len() == 2 && short.starts_with('-')).then_some(long)
        })?;
        Some(format!("--{}", at.split_whitespace().next()?))
    });
    options.collect()
}

// ---- completions

/// What bash offers when this has been typed, and Tab.
fn offered(typed: &str) -> Vec<String> {
    let folder = Folder::new();
    let script = folder.write("completions", printed(&["completions", "bash"]));
    let ask = r#"
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        function=$(complete -p canary-router | sed 's/.*-F \([^ ]*\) .*/\1/')
        "$function" canary-router "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let output = Command::new("bash")
        .args(["--noprofile", "--norc", "-c", ask, "bash"])
        .arg(script)
        .args(typed.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_words() {
    let first = offered("canary-router ");
    for command in commands() {
        assert!(first.contains(&command), "{command}: {first:?}");
    }
    assert_eq!(offered("canary-router che"), ["check"]);
    assert_eq!(offered("canary-router --conf"), ["--config"]);
    assert_eq!(offered("canary-router status --w"), ["--watch"]);
    assert_eq!(offered("canary-router check --c"), ["--config"]);
    assert_eq!(offered("canary-router rollout pro"), ["promote"]);
    assert_eq!(offered("canary-router completions f"), ["fish"]);
}

#[test]
fn the_other_shells_get_every_command_and_option() {
    for (shell, begins) in [("zsh", "#compdef canary-router"), ("fish", "")] {
        let script = printed(&["completions", shell]);
        assert!(script.starts_with(begins), "{script}");
        for command in commands() {
            assert!(script.contains(&command), "{shell}: {command}");
            for option in options(&command) {
                let written = match shell {
                    "fish" => format!("-l {}", option.trim_start_matches('-')),
                    _ => option,
                };
                assert!(script.contains(&written), "{shell}: {command} {written}");
            }
        }
    }
}

#[tokio::test]
async fn a_shell_that_is_not_known_is_a_usage_error() {
    let folder = Folder::new();
    let mut process = Process::start(&folder, &["completions", "tcsh"]);
    assert_eq!(process.ended().await.code(), Some(2));
    let stderr = process.stderr().join("\n");
    assert!(stderr.contains("bash, zsh, fish"), "{stderr}");
}

// ---- the manual page

/// The page as man(1) shows it.
fn page() -> String {
    let folder = Folder::new();
    let page = folder.write("canary-router.1", printed(&["man"]));
    let output = Command::new("groff")
        .args(["-man", "-Tutf8", "-ww", "-P-c", "-P-b", "-P-u", "-rLL=200n"])
        .arg(page)
        .output()
        .expect("tests/run installs groff");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of one of its sections.
fn section(page: &str, title: &str) -> String {
    let lines = page.lines().skip_while(|line| *line != title).skip(1);
    let lines: Vec<&str> = lines
        .take_while(|line| line.is_empty() || line.starts_with(' '))
        .collect();
    assert!(!lines.is_empty(), "no {title} in {page}");
    lines.join("\n").replace('\u{2010}', "-")
}

#[test]
fn the_manual_page_has_everything_that_can_be_said_and_sent() {
    let page = page();
    let listed = section(&page, "COMMANDS");
    for command in commands() {
        assert!(
            listed.contains(&format!("\n   {command}\n"))
                || listed.starts_with(&format!("   {command}\n")),
            "{command}: {listed}"
        );
        for option in options(&command)
            .iter()
            .filter(|option| *option != "--help")
        {
            assert!(listed.contains(option), "{command} {option}: {listed}");
        }
    }
    for (title, parts) in [
        ("NAME", &["canary-router - "][..]),
        (
            "SYNOPSIS",
            &["canary-router [-c FILE]", "canary-router COMMAND"],
        ),
        ("DESCRIPTION", &["Without a command it is the router."]),
        (
            "OPTIONS",
            &["-c, --config <FILE>", "[default: config.json]", "--version"],
        ),
        (
            "COMMANDS",
            &[
                "promote",
                "-c, --config <FILE>",
                "[environment: CANARY_ROUTER_URL]",
            ],
        ),
        ("SIGNALS", &["SIGTERM, SIGINT", "SIGHUP", "SIGUSR2"]),
        (
            "ENVIRONMENT",
            &["CANARY_ROUTER_...", "CANARY_ROUTER_TOKEN_FILE"],
        ),
        ("FILES", &["config.json", ".lock"]),
        ("EXIT STATUS", &["0      ", "1      ", "2      "]),
        ("EXAMPLES", &["canary-router check -c"]),
    ] {
        let text = section(&page, title);
        for part in parts {
            assert!(text.contains(part), "{part} in {title}: {text}");
        }
    }
    assert!(
        page.contains(&format!("canary-router {}", canary_router::VERSION)),
        "{page}"
    );
}
