//! `reload.watch`: a change of the file, or of one that it names, is noticed by itself. All that is waited for here
//! takes two looks, of which there is one a second; so it is waited for together.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use tokio::join;

use super::*;
use crate::support::pki::Authority;

const BY_ITSELF: &str = "a file has changed";

async fn watching(main: &Upstream, config: Value) -> Program {
    let mut file = json!({
        "main-target": main.url(), "canary-target": main.url(), "reload": {"watch": true}, "log": {"level": "info"}
    });
    merge(&mut file, config);
    Program::start(file).await
}

/// Puts a link in the place of what is there, at once for who reads it.
fn point(link: &Path, to: &str) {
    let new = link.with_file_name("new-link");
    symlink(to, &new).unwrap();
    fs::rename(new, link).unwrap();
}

#[tokio::test]
async fn a_change_is_noticed_however_it_is_made() {
    let (one, other) = (service("one").await, service("other").await);
    let to = |main: &Upstream| json!({"main-target": main.url(), "canary-target": main.url()});
    let is_other = |program: &Program| until_text(program.address, "/", "other /");
    let renamed = async {
        let program = watching(&one, json!({})).await;
        let began = Instant::now();
        program.rewrite(to(&other));
        is_other(&program).await;
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
        // What was read for another reason is not read again for this one.
        change(&program, to(&one)).await;
        program.rewrite(to(&other));
        is_other(&program).await;
        eventually(|| said(&program, IN_FORCE).len() == 3).await;
        let said = said(&program, IN_FORCE);
        let whys: Vec<_> = said.iter().map(|line| &line["why"]).collect();
        assert_eq!(whys, [BY_ITSELF, "an operator", BY_ITSELF]);
    };
    let written_in_place = async {
        let program = watching(&one, json!({})).await;
        let file = program.path("config.json");
        let old = fs::read_to_string(&file).unwrap();
        let new = old.replace(&one.url(), &other.url());
        // While it is being written it is not looked at.
        fs::write(&file, &new[..new.len() / 2]).unwrap();
        fs::write(&file, &new).unwrap();
        is_other(&program).await;
        assert_eq!(
            (
                reloads(&program, "succeeded").await,
                reloads(&program, "failed").await
            ),
            (1.0, 0.0)
        );
    };
    let pointed_elsewhere = async {
        // As Kubernetes does it with what is mounted of a ConfigMap.
        let program = watching(&one, json!({})).await;
        let file = program.path("config.json");
        let old = fs::read_to_string(&file).unwrap();
        for (folder, text) in [
            ("..1", old.clone()),
            ("..2", old.replace(&one.url(), &other.url())),
        ] {
            fs::create_dir(program.path(folder)).unwrap();
            fs::write(program.path(folder).join("config.json"), text).unwrap();
        }
        symlink("..1", program.path("..data")).unwrap();
        point(&file, "..data/config.json");
        until_reloads(&program, "succeeded", 1.0).await;
        assert_eq!(get(program.address, "/", "").await.text(), "one /");
        point(&program.path("..data"), "..2");
        is_other(&program).await;
        point(&program.path("..data"), "..1");
        fs::remove_dir_all(program.path("..2")).unwrap();
        until_text(program.address, "/", "one /").await;
        assert_eq!(reloads(&program, "failed").await, 0.0);
    };
    join!(renamed, written_in_place, pointed_elsewhere);
}

#[tokio::test]
async fn what_cannot_be_used_is_told_once_and_what_can_is_taken_when_it_is_there() {
    let (one, other) = (service("one").await, service("other").await);
    let to = |main: &Upstream| json!({"main-target": main.url(), "canary-target": main.url()});
    let torn = async {
        let program = watching(&one, json!({})).await;
        let good = fs::read_to_string(program.path("config.json")).unwrap();
        program.write(&good[..good.len() / 2]);
        until_reloads(&program, "failed", 1.0).await;
        fs::remove_file(program.path("config.json")).unwrap();
        until_reloads(&program, "failed", 2.0).await;
        assert_ne!(
            status(&program).await["config"]["last_failure"],
            Value::Null
        );
        // The same as it was at the start.
        program.write(&good);
        until_reloads(&program, "succeeded", 1.0).await;
        assert_eq!(reloads(&program, "failed").await, 2.0);
        assert_eq!(
            status(&program).await["config"]["last_failure"],
            Value::Null
        );
        assert_eq!(get(program.address, "/", "").await.text(), "one /");
    };
    let named_and_not_there = async {
        let program = watching(&one, json!({})).await;
        let mut config = to(&other);
        let page = program.path("page.html");
        merge(
            &mut config,
            json!({"fallback": {"static": {"status": 503, "file": page}}}),
        );
        program.rewrite(config);
        until_reloads(&program, "failed", 1.0).await;
        assert_eq!(get(program.address, "/", "").await.text(), "one /");
        // What is missing may come behind.
        fs::write(page, "sorry").unwrap();
        until_text(program.address, "/", "other /").await;
        assert_eq!(reloads(&program, "failed").await, 1.0);
    };
    join!(torn, named_and_not_there);
}

/// Where one of them changes, and nothing else.
#[tokio::test]
async fn each_file_that_the_configuration_names_is_watched() {
    let one = service("one").await;
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let names = [
        "certificate",
        "client-ca",
        "upstream-ca",
        "upstream-certificate",
        "token",
        "page",
    ];
    let changes = names.map(|name| {
        let (one, ours, others) = (&one, &ours, &others);
        async move {
            let folder = Folder::new();
            let mut server = ours.issue(&["localhost"]).write(&folder, "router");
            let mut client = ours.issue(&["a client"]).write(&folder, "client");
            merge(
                &mut server,
                json!({"client-ca": ours.write(&folder, "clients.pem")}),
            );
            merge(
                &mut client,
                json!({"ca": ours.write(&folder, "upstreams.pem")}),
            );
            let program = watching(one, json!({
                "canary-target": "https://localhost:1",
                "router-server": {"tls": server},
                "proxy-client": {"to-main-and-canary": {"tls": client}},
                "instrumentation": {"token-file": folder.write("token", "first-0123456789abcdef")},
                "fallback": {"static": {"status": 503, "file": folder.write("page.html", "one")}}
            }))
            .await;
            let begins = match name {
                "certificate" => "router",
                "client-ca" => "clients.pem",
                "upstream-ca" => "upstreams.pem",
                "upstream-certificate" => "client",
                "token" => "token",
                _ => "page.html",
            };
            match name {
                "certificate" => drop(others.issue(&["localhost"]).write(&folder, "router")),
                "client-ca" => drop(others.write(&folder, "clients.pem")),
                "upstream-ca" => drop(others.write(&folder, "upstreams.pem")),
                "upstream-certificate" => {
                    drop(others.issue(&["a client"]).write(&folder, "client"))
                }
                "token" => drop(folder.write("token", "other-0123456789abcdef")),
                _ => drop(folder.write("page.html", "two")),
            }
            until_reloads(&program, "succeeded", 1.0).await;
            assert_eq!(reloads(&program, "failed").await, 0.0, "{name}");
            eventually(|| !said(&program, IN_FORCE).is_empty()).await;
            let line = said(&program, IN_FORCE).remove(0);
            assert_eq!(line["why"], BY_ITSELF);
            // No key says something else than before.
            assert_eq!(line["changed"], json!([]));
            let files = line["files"].as_array().unwrap();
            let is_meant = |file: &Value| {
                let file = Path::new(file.as_str().unwrap());
                file.file_name()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .starts_with(begins)
            };
            assert!(!files.is_empty() && files.iter().all(is_meant), "{line}");
            if name == "token" {
                let weight = |token: &str| {
                    let token = format!("authorization: Bearer {token}-0123456789abcdef\r\n");
                    async move {
                        request(program.instrumentation, "POST", "/limits/reset", &token, "")
                            .await
                            .status
                    }
                };
                assert_eq!((weight("first").await, weight("other").await), (401, 200));
            }
        }
    });
    futures_util::future::join_all(changes).await;
}

/// Who watches is who is told to, by the configuration in force.
#[tokio::test]
async fn watching_can_be_switched_on_and_off() {
    let (one, other) = (service("one").await, service("other").await);
    let watch = |watch: bool, main: &Upstream| json!({"main-target": main.url(), "canary-target": main.url(), "reload": {"watch": watch}});
    let (on, off) = (
        watching(&one, watch(false, &one)).await,
        watching(&one, json!({})).await,
    );
    change(&on, watch(true, &one)).await;
    change(&off, watch(false, &one)).await;
    for (i, main) in [&other, &one].into_iter().enumerate() {
        off.rewrite(watch(true, main));
        on.rewrite(watch(true, main));
        until_text(on.address, "/", ["other /", "one /"][i]).await;
    }
    // By then the other one has looked as often.
    assert_eq!(reloads(&off, "succeeded").await, 1.0);
    assert_eq!(reloads(&on, "succeeded").await, 3.0);
}
