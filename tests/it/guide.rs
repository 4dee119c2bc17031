//! The guide in `docs/` does what it says: its commands run as printed, in an empty folder, and show what it shows.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::Instant,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::{peers::Scratch, support::*};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/");
/// The ports that the pages have. Each is another one here.
const PORTS: [u16; 6] = [1345, 8080, 8081, 8082, 8083, 8888];

// ---- pages

/// A fenced block.
#[derive(Debug, PartialEq)]
pub enum Block {
    /// `sh`: it is run.
    Commands(String),
    /// `text`: what the commands before it show. In `text like`, numbers and blanks may be others.
    Shown { text: String, like: bool },
    /// Any other one behind a line that ends with a file name and a colon.
    File { name: String, text: String },
    /// The rest, with its language.
    Other { language: String, text: String },
}

pub fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut before = "";
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            if !line.is_empty() {
                before = line;
            }
            continue;
        };
        let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let text = text.join("\n") + "\n";
        let name = before
            .strip_suffix("`:")
            .and_then(|line| line.rsplit('`').next());
        blocks.push(match (language, name) {
            ("sh", _) => Block::Commands(text),
            ("text", _) => Block::Shown { text, like: false },
            ("text like", _) => Block::Shown { text, like: true },
            (_, Some(name)) => Block::File {
                name: name.into(),
                text,
            },
            (language, None) => Block::Other {
                language: language.into(),
                text,
            },
        });
        before = "";
    }
    blocks
}

pub fn page(name: &str) -> String {
    fs::read_to_string(format!("{DOCS}{name}")).unwrap_or_else(|error| panic!("{name}: {error}"))
}

// ---- what is shown

/// Whether this is what was said to be shown. `…` is anything in a line; alone on a line, any lines.
fn shows(output: &str, shown: &str, like: bool) -> bool {
    fn lines(shown: &[String], output: &[String]) -> bool {
        match shown {
            [] => output.is_empty(),
            [line, rest @ ..] if line == "…" => {
                (0..=output.len()).any(|from| lines(rest, &output[from..]))
            }
            [line, rest @ ..] => match output {
                [] => false,
                [first, behind @ ..] => fits(first, line) && lines(rest, behind),
            },
        }
    }
    let split = |text: &str| -> Vec<String> {
        let lines = text.trim_end().lines().map(str::trim_end);
        match like {
            true => lines.map(without_numbers).collect(),
            false => lines.map(str::to_owned).collect(),
        }
    };
    lines(&split(shown), &split(output))
}

/// Whether a line has the parts of `pattern` between its `…`, in order, from its beginning to its end.
fn fits(line: &str, pattern: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('…') else {
        return line == pattern;
    };
    let Some(line) = line.strip_prefix(first) else {
        return false;
    };
    let ends = line.char_indices().map(|(at, _)| at).chain([line.len()]);
    ends.into_iter().any(|at| fits(&line[at..], rest))
}

/// `0.1 of 4.6` as `# of #`, blanks as one.
fn without_numbers(line: &str) -> String {
    let mut result = String::new();
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        let is_minus = c == '-' && rest.peek().is_some_and(char::is_ascii_digit);
        if c.is_ascii_digit() || is_minus {
            while rest.next_if(|c| c.is_ascii_digit() || *c == '.').is_some() {}
            result.push('#');
        } else if c.is_whitespace() {
            while rest.next_if(|c| c.is_whitespace()).is_some() {}
            result.push(' ');
        } else {
            result.push(c);
        }
    }
    result.trim().to_owned()
}

#[test]
fn what_is_shown_is_compared_line_by_line() {
    for (output, shown, like, expected) in [
        ("a\nb\n", "a\nb\n", false, true),
        ("a\nb\n", "a\n", false, false),
        ("a\nb\nc\n", "…\nc\n", false, true),
        ("a\nb\nc\n", "…\nb\n", false, false),
        ("one two three", "one … three", false, true),
        ("one two four", "one … three", false, false),
        ("up 3 s", "up …", false, true),
        (
            "  48 canary\n 952 main",
            "     53 canary\n    947 main",
            true,
            true,
        ),
        (
            "  48 canary\n 952 main",
            "     53 canary\n    947 main",
            false,
            false,
        ),
        ("errors -0.5 of 4.6", "errors 6.3 of 4.6", true, true),
        ("errors x of 4.6", "errors 6.3 of 4.6", true, false),
    ] {
        assert_eq!(
            shows(output, shown, like),
            expected,
            "{output:?} as {shown:?}"
        );
    }
}

#[test]
fn a_page_is_split_into_commands_what_they_show_and_files() {
    let page = "Write `a.json`:\n\n```json\n{}\n```\n\n```sh\ncat a.json\n```\n\n```text like\n{}\n```\n```nginx\nx;\n```\n";
    assert_eq!(
        blocks(page),
        [
            Block::File {
                name: "a.json".into(),
                text: "{}\n".into()
            },
            Block::Commands("cat a.json\n".into()),
            Block::Shown {
                text: "{}\n".into(),
                like: true
            },
            Block::Other {
                language: "nginx".into(),
                text: "x;\n".into()
            },
        ]
    );
}

// ---- who follows them

/// A shell in an empty folder. What it has begun in the background ends with it.
struct Reader {
    shell: Child,
    commands: ChildStdin,
    folder: Scratch,
    ports: HashMap<u16, Port>,
    step: usize,
}

impl Reader {
    fn new() -> Reader {
        let folder = Scratch::new();
        fs::create_dir(folder.path("work")).unwrap();
        // As on a terminal, where it shows no progress of what is short.
        fs::write(
            folder.path(".curlrc"),
            "silent\nshow-error\nnoproxy = *\nmax-time = 15\n",
        )
        .unwrap();
        let ports: HashMap<u16, Port> = PORTS.iter().map(|port| (*port, Port::reserve())).collect();
        let programs = Path::new(env!("CARGO_BIN_EXE_canary-router"))
            .parent()
            .unwrap();
        let path = std::env::var("PATH").unwrap();
        let mut shell = Command::new("bash");
        shell
            .args(["--noprofile", "--norc", "-e", "-o", "pipefail"])
            .current_dir(folder.path("work"))
            .env("HOME", &folder.0)
            .env("PATH", format!("{}:/usr/sbin:{path}", programs.display()))
            .env(
                "CANARY_ROUTER_URL",
                format!("http://{}", ports[&8888].address),
            )
            .env_remove("NO_COLOR")
            .stdin(Stdio::piped())
            .process_group(0);
        let mut shell = shell.spawn().unwrap();
        let mut commands = shell.stdin.take().unwrap();
        // Where the test is killed, and nothing is dropped, it comes to the end of its input.
        writeln!(commands, "trap 'kill $(jobs -p)' EXIT").unwrap();
        Reader {
            shell,
            commands,
            folder,
            ports,
            step: 0,
        }
    }

    /// With the ports that are ours for those of the page.
    fn here(&self, text: &str) -> String {
        let ports = self.ports.iter();
        ports.fold(text.to_owned(), |text, (theirs, ours)| {
            text.replace(&theirs.to_string(), &ours.number().to_string())
        })
    }

    fn there(&self, text: &str) -> String {
        let ports = self.ports.iter();
        ports.fold(text.to_owned(), |text, (theirs, ours)| {
            text.replace(&ours.number().to_string(), &theirs.to_string())
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.0.join("work").join(name)
    }

    /// Runs a block; what it prints.
    async fn runs(&mut self, commands: &str) -> String {
        self.step += 1;
        let path = |what: &str| self.folder.path(&format!("{what}-{}", self.step));
        let (block, output, done) = (path("block"), path("output"), path("done"));
        fs::write(&block, self.here(commands)).unwrap();
        let line = format!(
            ". {block} </dev/null >{output} 2>&1; echo $? >{done}.new; mv {done}.new {done}"
        );
        writeln!(self.commands, "{line}").unwrap();
        let said = || fs::read_to_string(&output).unwrap_or_default();
        eventually(|| {
            if let Some(status) = self.shell.try_wait().unwrap() {
                panic!("{commands}ended with {status}: {}", said());
            }
            fs::exists(&done).unwrap()
        })
        .await;
        self.waits_for_what_was_begun(commands).await;
        self.there(&said())
    }

    /// A reader takes a moment to go on; what was begun in the background is up then: all ports that it was told, or
    /// that are in the files that it was told, or in those that they name.
    async fn waits_for_what_was_begun(&self, commands: &str) {
        let files = |text: &str| -> String {
            let words = text
                .split_whitespace()
                .map(|word| word.trim_end_matches(';'));
            let files = words.filter_map(|word| fs::read_to_string(self.file(word)).ok());
            files.collect()
        };
        for line in commands.lines().filter(|line| line.ends_with('&')) {
            let line = self.here(line);
            let named = files(&line);
            let told = [&line, &named, &files(&named)]
                .map(|text| text.as_str())
                .concat();
            for port in self.ports.values() {
                if told.contains(&port.number().to_string()) {
                    eventually(|| std::net::TcpStream::connect(port.address).is_ok()).await;
                }
            }
        }
    }

    /// Follows a page, or a part of one.
    async fn follows(&mut self, page: &str) {
        let mut blocks = blocks(page).into_iter().peekable();
        let mut count = 0;
        while let Some(block) = blocks.next() {
            match block {
                Block::Commands(commands) => {
                    let shown = blocks.next_if(|next| matches!(next, Block::Shown { .. }));
                    self.sees(&commands, shown).await;
                    count += 1;
                }
                Block::Shown { text, .. } => panic!("there are no commands that show {text}"),
                Block::File { name, text } => {
                    assert!(!name.contains('/'), "{name} is no file in this folder");
                    fs::write(self.file(&name), self.here(&text)).unwrap();
                }
                Block::Other { .. } => {}
            }
        }
        assert_ne!(count, 0, "no commands");
    }

    /// Runs a block, and sees what is shown. Logs and metrics come a moment after what they tell of: who only looks
    /// at them looks again.
    async fn sees(&mut self, commands: &str, shown: Option<Block>) {
        let looks = ["grep ", "curl -s http://127.0.0.1:8888/metrics "];
        let is_a_look = |line: &str| looks.iter().any(|look| line.starts_with(look));
        let looks = commands.lines().all(is_a_look);
        let begun = Instant::now();
        loop {
            let output = match looks {
                true => self.runs(&format!("{{ {commands}}} || true\n")).await,
                false => self.runs(commands).await,
            };
            let Some(Block::Shown { text, like }) = &shown else {
                return;
            };
            if shows(&output, text, *like) {
                return;
            }
            let gives_up = !looks || begun.elapsed() > PATIENCE;
            assert!(!gives_up, "{commands}shows\n{output}and not\n{text}");
        }
    }

    async fn status(&self) -> Value {
        let (code, status) = admin(self.ports[&8888].address, "GET", "/status", "").await;
        assert_eq!(code, 200, "{status}");
        status
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _gone = kill_process_group(Pid::from_child(&self.shell), Signal::KILL);
        let _reaped = self.shell.wait();
    }
}

// ---- the pages

#[tokio::test]
async fn the_tutorial_is_as_printed() {
    let page = page("tutorial.md");
    let (story, end) = page.split_once("\n## 7. ").unwrap();
    let mut reader = Reader::new();
    reader.follows(story).await;
    let status = reader.status().await;
    assert_eq!(status["rollout"]["phase"], "succeeded");
    let decisions = status["decisions"].as_array().unwrap().iter();
    let whys: Vec<&str> = decisions
        .map(|decision| decision["why"].as_str().unwrap())
        .collect();
    assert_eq!(
        whys,
        ["promote", "start", "unhealthy", "start", "set-weight"]
    );
    reader.follows(end).await;
    let gone = |port: &Port| std::net::TcpStream::connect(port.address).is_err();
    eventually(|| reader.ports.values().all(gone)).await;
}

#[tokio::test]
async fn a_sidecar_is_written_as_the_how_to_says() {
    let page = page("how-to/sidecar.md");
    Reader::new().follows(&page).await;
    // The file that is shipped, and tested, is the one that is shown.
    let shipped = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/sample/sidecars/python/sidecar.py"
    );
    let shipped = fs::read_to_string(shipped).unwrap();
    let shown = blocks(&page).into_iter().find_map(|block| match block {
        Block::File { name, text } if name == "sidecar.py" => Some(text),
        _ => None,
    });
    assert_eq!(shown, Some(shipped));
}

#[tokio::test]
async fn the_router_stands_behind_nginx_as_the_how_to_says() {
    Reader::new().follows(&page("how-to/behind-nginx.md")).await;
}

#[tokio::test]
async fn an_old_file_is_taken_over_as_the_how_to_says() {
    Reader::new()
        .follows(&page("how-to/migrate-from-the-original.md"))
        .await;
}

#[tokio::test]
async fn split_clients_is_replaced_as_the_how_to_says() {
    Reader::new()
        .follows(&page("how-to/from-split-clients.md"))
        .await;
}

#[tokio::test]
async fn auth_request_is_replaced_as_the_how_to_says() {
    Reader::new()
        .follows(&page("how-to/from-auth-request.md"))
        .await;
}
