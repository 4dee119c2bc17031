//! What the program says it is: its version, and the commit that it was built from.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use canary_router::{COMMIT, LONG_VERSION, VERSION};

use crate::support::*;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// `build.rs`, as a program of its own.
struct BuildScript {
    program: PathBuf,
    _folder: Folder,
}

impl BuildScript {
    fn new() -> BuildScript {
        let folder = Folder::new();
        let program = folder.0.join("build");
        let built = Command::new("rustc")
            .args(["--edition=2024", "--crate-name=build", "-o"])
            .arg(&program)
            .arg(format!("{ROOT}/build.rs"))
            .output()
            .expect("rustc is there: it built this test");
        assert!(built.status.success(), "{built:?}");
        BuildScript {
            program,
            _folder: folder,
        }
    }

    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .current_dir(folder)
            .env("CARGO_PKG_VERSION", "1.2.3")
            .env_remove("CANARY_BUILD_COMMIT");
        command
    }

    fn run(&self, folder: &Path) -> Said {
        Said::of(self.command(folder).output().unwrap())
    }
}

/// What it tells cargo.
struct Said(Vec<String>);

impl Said {
    fn of(output: Output) -> Said {
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        let said = Said(said.lines().map(str::to_owned).collect());
        // With nothing to look at, cargo would run it whenever any file has changed.
        assert!(
            said.0
                .contains(&"cargo::rerun-if-changed=build.rs".to_owned())
        );
        assert!(
            said.0
                .contains(&"cargo::rerun-if-env-changed=CANARY_BUILD_COMMIT".to_owned())
        );
        said
    }

    fn all(&self, begin: &str) -> Vec<&str> {
        self.0
            .iter()
            .filter_map(|line| line.strip_prefix(begin))
            .collect()
    }

    fn version(&self) -> (&str, &str) {
        let one = |name: &str| {
            let found = self.all(&format!("cargo::rustc-env={name}="));
            assert_eq!(found.len(), 1, "{name}: {:?}", self.0);
            found[0]
        };
        (one("BUILD_VERSION"), one("BUILD_COMMIT"))
    }

    /// What is in the files that cargo looks at, from `folder`; all of them are there.
    fn watched(&self, folder: &Path) -> Vec<Vec<u8>> {
        let files = self.all("cargo::rerun-if-changed=").into_iter();
        let files = files.filter(|file| *file != "build.rs");
        files
            .map(|file| fs::read(folder.join(file)).unwrap())
            .collect()
    }
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(folder)
        .args([
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@example",
            "-c",
            "init.defaultBranch=main",
        ])
        .args(arguments)
        .env("GIT_COMMITTER_DATE", "2026-11-25T12:00:00Z")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn commit(folder: &Path) -> String {
    git(
        folder,
        &["commit", "--quiet", "--allow-empty", "--message", "x"],
    );
    git(folder, &["rev-parse", "--short=12", "HEAD"])
}

#[test]
fn in_a_checkout_it_is_its_commit_and_asked_for_again_when_that_changes() {
    let script = BuildScript::new();
    let folder = Folder::new();
    let folder = folder.0.as_path();
    git(folder, &["init", "--quiet"]);
    assert_eq!(
        script.run(folder).version(),
        ("1.2.3", ""),
        "there is no commit yet"
    );

    let mut before = None;
    let changes: [&[&[&str]]; 4] = [
        &[],
        &[&["checkout", "--quiet", "-b", "other"]],
        &[&["pack-refs", "--all"]],
        &[&["checkout", "--quiet", "--detach"]],
    ];
    for change in changes {
        for arguments in change {
            git(folder, arguments);
        }
        for _ in 0..2 {
            let hash = commit(folder);
            assert_eq!(hash.len(), 12);
            let said = script.run(folder);
            let version = format!("1.2.3 ({hash} 2026-11-25)");
            assert_eq!(said.version(), (&*version, &*hash));
            // What cargo looked at then is not what it is now.
            let watched = said.watched(folder);
            if let Some((files, content)) = before {
                assert_ne!(Said(files).watched(folder), content, "{change:?}");
            }
            before = Some((said.0, watched));
        }
    }

    let worktree = Folder::new();
    let worktree = worktree.0.join("worktree");
    git(
        folder,
        &["worktree", "add", "--quiet", worktree.to_str().unwrap()],
    );
    let hash = commit(&worktree);
    let said = script.run(&worktree);
    assert_eq!(said.version().1, hash);
    assert!(said.watched(&worktree).len() >= 2);
}

#[test]
fn without_a_repository_of_its_own_or_without_git_it_is_only_the_version() {
    let script = BuildScript::new();
    let alone = Folder::new();
    assert_eq!(script.run(&alone.0).version(), ("1.2.3", ""));
    // Unpacked into a folder of another project.
    let above = Folder::new();
    git(&above.0, &["init", "--quiet"]);
    commit(&above.0);
    let below = above.0.join("vendor");
    fs::create_dir(&below).unwrap();
    assert_eq!(script.run(&below).version(), ("1.2.3", ""));
    fs::create_dir(below.join(".git")).unwrap();
    assert_eq!(
        script.run(&below).version(),
        ("1.2.3", ""),
        "what is there is no repository"
    );

    let output = script
        .command(&above.0)
        .env("PATH", "/nowhere")
        .output()
        .unwrap();
    assert_eq!(Said::of(output).version(), ("1.2.3", ""));
}

#[test]
fn who_builds_it_can_say_what_it_is() {
    let script = BuildScript::new();
    let folder = Folder::new();
    git(&folder.0, &["init", "--quiet"]);
    commit(&folder.0);
    let given = |commit: &str| {
        let mut command = script.command(&folder.0);
        command.env("CANARY_BUILD_COMMIT", commit).output().unwrap()
    };
    for (commit, version, hash) in [
        (
            "abcdef123456 2026-11-25",
            "1.2.3 (abcdef123456 2026-11-25)",
            "abcdef123456",
        ),
        ("abcdef1", "1.2.3 (abcdef1)", "abcdef1"),
        ("", "1.2.3", ""),
        (" ", "1.2.3", ""),
    ] {
        let said = Said::of(given(commit));
        assert_eq!(said.version(), (version, hash), "{commit:?}");
        assert_eq!(said.all("cargo::rerun-if-changed="), ["build.rs"]);
    }
    for junk in ["a\nb", "(abcdef)", "\"", &"a".repeat(65)] {
        let output = given(junk);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && stderr.contains("is no commit"),
            "{stderr}"
        );
    }
}

#[tokio::test]
async fn the_version_is_told_with_the_commit() {
    let folder = Folder::new();
    for option in ["-V", "--version"] {
        let mut process = Process::start(&folder, &[option]);
        assert_eq!(process.ended().await.code(), Some(0));
        assert_eq!(process.stdout(), [format!("canary-router {LONG_VERSION}")]);
    }
    let rest = LONG_VERSION.strip_prefix(VERSION).unwrap();
    match COMMIT {
        "" => assert_eq!(rest, ""),
        commit => assert!(
            rest.starts_with(&format!(" ({commit}")) && rest.ends_with(')'),
            "{rest}"
        ),
    }
    // This one is built as the script says.
    if option_env!("CANARY_BUILD_COMMIT").is_none() && Path::new(ROOT).join(".git").exists() {
        assert!(!COMMIT.is_empty(), "it knows nothing of its commit");
    }
}

/// Else the image could not be built, or would be of no known commit.
#[test]
fn the_image_is_built_with_the_script_and_can_be_told() {
    let image = fs::read_to_string(format!("{ROOT}/Dockerfile")).unwrap();
    let (before, _) = image.split_once("RUN packaging/image root").unwrap();
    assert!(before.contains("\nCOPY . .\n") && before.contains("\nARG CANARY_BUILD_COMMIT\n"));
    let context = fs::read_to_string(format!("{ROOT}/.dockerignore")).unwrap();
    assert!(context.contains("\n!build.rs\n"));
}
