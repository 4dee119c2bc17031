//! What the README shows works: its files are read by those they are for, its commands run.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use canary_router::config::Config;

use crate::support::*;

fn readme() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap()
}

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<String> {
    let readme = readme();
    let blocks: Vec<String> = readme
        .split(&format!("```{language}\n"))
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect();
    assert!(
        !blocks.is_empty(),
        "the README has no {language} block any more"
    );
    blocks
}

fn scratch(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("canary-router-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn every_configuration_in_the_readme_is_one() {
    for block in blocks("json") {
        Config::parse("README.md", &block).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn prometheus_takes_the_scrape_configuration() {
    let folder = scratch("scrape");
    let file = folder.join("prometheus.yml");
    std::fs::write(&file, &blocks("yaml")[0]).unwrap();
    let checked = Command::new("promtool")
        .args(["check", "config"])
        .arg(&file)
        .output()
        .expect("promtool is there: install Debian's prometheus");
    assert!(checked.status.success(), "{checked:?}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn nginx_takes_the_server_block() {
    let folder = scratch("nginx");
    let file = folder.join("nginx.conf");
    let text = format!(
        "pid {folder}/pid; error_log {folder}/log; events {{}}\nhttp {{ access_log off; {}\n}}\n",
        blocks("nginx")[0],
        folder = folder.display()
    );
    std::fs::write(&file, text).unwrap();
    let checked = Command::new("/usr/sbin/nginx")
        .args(["-t", "-p"])
        .arg(&folder)
        .arg("-c")
        .arg(&file)
        .output()
        .expect("nginx is there: install Debian's nginx-light");
    assert!(checked.status.success(), "{checked:?}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// Runs the demo as the README says, every command that it prints, and then Ctrl-C.
#[tokio::test]
async fn the_demo_starts_shows_what_it_promises_and_ends() {
    let demo = Path::new(env!("CARGO_BIN_EXE_canary-router"))
        .with_file_name("examples")
        .join("demo");
    let mut demo = Command::new(&demo)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}: cargo build --examples", demo.display()));
    let mut lines = BufReader::new(demo.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let mut shown = Vec::new();
    for line in lines.by_ref() {
        shown.push(line);
        if shown.last().unwrap().contains("Ctrl-C") {
            break;
        }
    }
    let page = shown.join("\n");
    // Ten errors is the limit; which of the canary's answers they are does not matter.
    assert!(page.contains("   10  500 from canary"), "{page}");
    assert!(page.contains("  560  200 from main"), "{page}");
    let commands: Vec<&str> = shown
        .iter()
        .map(|line| line.trim())
        .filter(|line| line.starts_with("curl "))
        .collect();
    assert_eq!(commands.len(), 8, "{page}");
    assert!(
        page.contains("the canary is worse than allowed: rolled back"),
        "{page}"
    );
    for command in commands {
        let ran = Command::new("sh")
            .args(["-c", &format!("{command} -sS")])
            .output()
            .unwrap();
        assert!(
            ran.status.success() && !ran.stdout.is_empty(),
            "{command}: {ran:?}"
        );
    }
    let interrupted = Command::new("kill")
        .args(["-INT", &demo.id().to_string()])
        .status()
        .unwrap();
    assert!(interrupted.success());
    let mut status = None;
    eventually(|| {
        status = demo.try_wait().unwrap();
        status.is_some()
    })
    .await;
    assert!(status.unwrap().success());
}

/// The sidecar that readers copy says what the README says of it.
#[tokio::test]
async fn the_sample_sidecar_gives_the_canary_users_whose_number_ends_in_0() {
    let port = Upstream::nobody().await.to_string();
    let sidecar = Path::new(env!("CARGO_BIN_EXE_canary-router"))
        .with_file_name("examples")
        .join("sidecar");
    let mut sidecar = Command::new(&sidecar)
        .arg(&port)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}: cargo build --examples", sidecar.display()));
    let (main, canary) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
    );
    let router = Router::start(serde_json::json!({
        "main-target": main.url(),
        "canary-target": canary.url(),
        "sidecar-url": format!("http://{port}")
    }));
    eventually(|| std::net::TcpStream::connect(&port).is_ok()).await;
    let canary_user = get(router.address, "/", "x-user-id: 10\r\n").await;
    let main_user = get(router.address, "/", "x-user-id: 11\r\n").await;
    sidecar.kill().unwrap();
    sidecar.wait().unwrap();
    assert_eq!(
        (canary_user.text().as_str(), main_user.text().as_str()),
        ("canary", "main")
    );
    router
        .counts("canary_router_request_count{reason=\"Sidecar returns status code 204\",target=\"main\"}", 1.0)
        .await;
}
