//! The sample in containers, without containers: each of its files is read by the program that it is for, and the parts
//! do together what its first lines say.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    observability::yaml,
    peers::{Nginx, Running, Scratch, run, start},
    support::*,
};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sample/");
/// The address that nginx has there, and that the router believes.
const NGINX: &str = "172.30.13.10";

fn sample(file: &str) -> String {
    fs::read_to_string(format!("{SAMPLE}{file}")).unwrap_or_else(|error| panic!("{file}: {error}"))
}

async fn compose() -> Value {
    yaml(&format!("{SAMPLE}compose.yaml")).await
}

fn services(compose: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let services = compose["services"].as_object().unwrap().iter();
    services.map(|(name, service)| (&**name, service))
}

fn texts(list: &Value) -> Vec<&str> {
    let list = list.as_array().into_iter().flatten();
    list.map(|text| text.as_str().unwrap()).collect()
}

// ---- compose.yaml

#[tokio::test]
async fn the_compose_file_is_what_the_compose_specification_says() {
    let mut command = Command::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/target/tools/bin/check-jsonschema"
    ));
    command.args(["--builtin-schema", "vendor.compose-spec"]);
    command.arg(format!("{SAMPLE}compose.yaml"));
    let output = run(command, "python3", Vec::new()).await;
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn every_container_is_pinned_watched_and_kept_small() {
    let compose = compose().await;
    for (name, service) in services(&compose) {
        let image = service["image"].as_str().unwrap();
        let tag = image.rsplit_once(':').map(|(_, tag)| tag);
        assert!(!matches!(tag, None | Some("latest")), "{name}: {image}");
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"], json!(["ALL"]), "{name}");
        for port in texts(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
        }
        if name == "visitors" {
            // It ends.
            assert_eq!(service["restart"], "no");
            continue;
        }
        assert_eq!(service["restart"], "unless-stopped", "{name}");
        assert!(!texts(&service["healthcheck"]["test"]).is_empty(), "{name}");
    }
    let published = services(&compose).filter(|(_, service)| !service["ports"].is_null());
    let published: Vec<&str> = published.map(|(name, _)| name).collect();
    assert_eq!(published, ["nginx", "router", "prometheus", "grafana"]);
}

/// What is in a container, by its path there, of files that are here.
fn mounts(service: &Value) -> BTreeMap<&str, &str> {
    texts(&service["volumes"])
        .into_iter()
        .filter_map(|volume| {
            let (here, there) = volume.split_once(':').unwrap();
            Some((there.strip_suffix(":ro")?, here))
        })
        .collect()
}

#[tokio::test]
async fn everything_that_the_compose_file_refers_to_is_there() {
    let compose = compose().await;
    for (name, service) in services(&compose) {
        for volume in texts(&service["volumes"]) {
            let (source, _) = volume.split_once(':').unwrap();
            match source.strip_prefix("./") {
                Some(file) => {
                    assert!(Path::new(SAMPLE).join(file).exists(), "{name}: {file}");
                    assert!(volume.ends_with(":ro"), "{name}: {volume}");
                }
                None => assert!(compose["volumes"].get(source).is_some(), "{name}: {source}"),
            }
        }
        for secret in texts(&service["secrets"]) {
            assert!(compose["secrets"].get(secret).is_some(), "{name}: {secret}");
        }
        for (other, when) in service["depends_on"].as_object().into_iter().flatten() {
            assert!(compose["services"].get(other).is_some(), "{name}: {other}");
            assert_eq!(when["condition"], "service_healthy", "{name}: {other}");
        }
        // A script that is run is a file that is mounted.
        for script in [texts(&service["command"]), texts(&service["entrypoint"])].concat() {
            if script.ends_with(".py") {
                let there = format!("{}/{script}", service["working_dir"].as_str().unwrap());
                assert!(mounts(service).contains_key(&*there), "{name}: {there}");
            }
        }
    }
    // The only file that is not there: who runs it makes it, and nobody commits it.
    let token = compose["secrets"]["router-token"]["file"].as_str().unwrap();
    assert_eq!(token, "./compose/token");
    assert!(sample("compose.yaml").contains("openssl rand -hex 32 >sample/compose/token"));
    assert_eq!(sample("compose/.gitignore"), "token\n");
}

#[tokio::test]
async fn what_the_image_of_the_router_has_is_what_the_compose_file_wants() {
    let compose = compose().await;
    let router = &compose["services"]["router"];
    let image = Path::new(SAMPLE)
        .join(router["build"].as_str().unwrap())
        .join("Dockerfile");
    let image = fs::read_to_string(image).unwrap();
    let [_, program, verb] = *texts(&router["healthcheck"]["test"]) else {
        panic!("{}", router["healthcheck"]);
    };
    assert!(image.contains(&format!("ENTRYPOINT [\"/usr/local/bin/{program}\"]")));
    assert!(image.contains("\nENV PATH=/usr/local/bin\n"));
    // What the router looks for where no file is named.
    assert!(image.contains("\nWORKDIR /etc/canary-router\n") && !image.contains("\nCMD "));
    assert_eq!(
        mounts(router)["/etc/canary-router/config.json"],
        "./compose/config.json"
    );
    // A volume belongs to whom its folder in the image belongs to.
    let config: Value = serde_json::from_str(&sample("compose/config.json")).unwrap();
    let state = config["state"]["file"].as_str().unwrap();
    let (folder, _) = state.rsplit_once('/').unwrap();
    assert!(image.contains(&format!("--chown=10001:10001 /image{folder} {folder}\n")));
    assert!(image.contains("\nUSER 10001:10001\n"));
    assert!(texts(&router["volumes"]).contains(&&*format!("router-state:{folder}")));
    // Where a secret is to be found.
    let token = &config["instrumentation"]["token-file"];
    assert_eq!(token, "/run/secrets/router-token");
    assert_eq!(*token, router["environment"]["CANARY_ROUTER_TOKEN_FILE"]);

    // The health check is a command that a router that runs answers.
    let main = Upstream::named("main", 200).await;
    let router = router_to(&main.url());
    let mut command = Command::new(env!("CARGO_BIN_EXE_canary-router"));
    command.arg(verb).env(
        "CANARY_ROUTER_URL",
        format!("http://{}", router.instrumentation),
    );
    let output = run(command, "nothing", Vec::new()).await;
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn prometheus_and_grafana_find_their_files_in_their_containers() {
    let compose = compose().await;
    let prometheus = &compose["services"]["prometheus"];
    let files = mounts(prometheus);
    let config = texts(&prometheus["command"]);
    let config = config
        .iter()
        .find_map(|flag| flag.strip_prefix("--config.file="));
    assert_eq!(files[config.unwrap()], "./compose/prometheus.yml");
    let scraped = yaml(&format!("{SAMPLE}compose/prometheus.yml")).await;
    let [rules] = *texts(&scraped["rule_files"]) else {
        panic!("{scraped}");
    };
    assert_eq!(files[rules], "./observability/alerts.yml");
    // But for addresses and paths it is the other one.
    let mut shipped = yaml(&format!("{SAMPLE}observability/prometheus.yml")).await;
    shipped["rule_files"] = scraped["rule_files"].clone();
    shipped["scrape_configs"][0]["static_configs"][0]["targets"] = json!(["router:8888"]);
    assert_eq!(scraped, shipped);

    let grafana = &compose["services"]["grafana"];
    let files = mounts(grafana);
    let provisioning = "./observability/grafana/provisioning";
    assert_eq!(files["/etc/grafana/provisioning"], provisioning);
    let dashboards = yaml(&format!(
        "{SAMPLE}{provisioning}/dashboards/canary-router.yml"
    ))
    .await;
    let folder = dashboards["providers"][0]["options"]["path"]
        .as_str()
        .unwrap();
    let home = &grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"];
    let home = home.as_str().unwrap();
    assert_eq!(home.rsplit_once('/').unwrap().0, folder);
    assert_eq!(files[home], "./observability/grafana-dashboard.json");
    assert_eq!(
        grafana["environment"]["PROMETHEUS_URL"],
        "http://prometheus:9090"
    );
}

// ---- the parts, together

/// The services under the addresses that they have here. A name that is left over is one that nothing answers to.
fn at(text: &str, addresses: &[(&str, SocketAddr)]) -> String {
    addresses
        .iter()
        .fold(text.to_owned(), |text, (name, address)| {
            assert!(text.contains(name), "no {name} in {text}");
            text.replace(name, &address.to_string())
        })
}

/// A script of the sample, with these arguments and the address that it is to have.
async fn script(name: &str, arguments: &[&str]) -> (Running, Port) {
    let port = Port::reserve();
    let mut command = Command::new("python3");
    command
        .arg(format!("{SAMPLE}compose/{name}"))
        .args(arguments)
        .arg(port.address.to_string())
        .stdin(Stdio::null());
    let mut running = Running(start(&mut command, "python3"));
    eventually(|| {
        assert_eq!(running.0.try_wait().unwrap(), None, "{name} has ended");
        std::net::TcpStream::connect(port.address).is_ok()
    })
    .await;
    (running, port)
}

/// The sample's router, before these: old, new and sidecar.
async fn router([old, new, sidecar]: [SocketAddr; 3], scratch: &Scratch) -> Program {
    let addresses = [
        ("old:8080", old),
        ("new:8080", new),
        ("sidecar:8080", sidecar),
    ];
    let config = at(&sample("compose/config.json"), &addresses);
    assert!(config.contains(NGINX));
    let mut config: Value = serde_json::from_str(&config.replace(NGINX, "127.0.0.1")).unwrap();
    fs::write(scratch.path("token"), "0123456789abcdef").unwrap();
    merge(
        &mut config,
        json!({
            "instrumentation": {"token-file": scratch.path("token")},
            "state": {"file": scratch.path("state.json")}
        }),
    );
    Program::start(config).await
}

async fn nginx(router: &Program) -> Nginx {
    let config = sample("compose/nginx.conf");
    for ours in ["listen 8080;", "/dev/stderr warn"] {
        assert_eq!(config.matches(ours).count(), 1, "{ours}");
    }
    Nginx::start(|address, folder| {
        at(&config, &[("router:1345", router.address)])
            // First what is of the container: the folder here may well be below a /tmp.
            .replace("/tmp/", &format!("{folder}/"))
            .replace("/dev/stderr warn", &format!("{folder}/error.log warn"))
            .replace("listen 8080;", &format!("listen {address} reuseport;"))
    })
    .await
}

/// The router's own command, as it is given in its container.
async fn command(router: &Program, scratch: &Scratch, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_canary-router"));
    command
        .args(arguments)
        .env(
            "CANARY_ROUTER_URL",
            format!("http://{}", router.instrumentation),
        )
        .env("CANARY_ROUTER_TOKEN_FILE", scratch.path("token"));
    let output = run(command, "nothing", Vec::new()).await;
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn visitors(nginx: &Nginx, rate: &str, seconds: &str) -> String {
    let mut command = Command::new("python3");
    command.arg(format!("{SAMPLE}compose/visitors.py")).args([
        &nginx.address.to_string(),
        rate,
        seconds,
    ]);
    let output = run(command, "python3", Vec::new()).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_new_version_of_the_sample_is_rolled_back_while_visitors_are_there() {
    let scratch = Scratch::new();
    let (_old, old) = script("service.py", &["old", "0"]).await;
    let (_new, new) = script("service.py", &["new", "20"]).await;
    let (_sidecar, sidecar) = script("sidecar.py", &[]).await;
    let upstreams = [old.address, new.address, sidecar.address];
    let router = router(upstreams, &scratch).await;
    let nginx = nginx(&router).await;
    assert_eq!(get(nginx.address, "/nginx-health", "").await.text(), "ok\n");
    for service in [&old, &new, &sidecar] {
        assert_eq!(get(service.address, "/health", "").await.status, 200);
    }
    let before = visitors(&nginx, "100", "0.5").await;
    assert_eq!(
        before,
        "      5  enterprise: 200 old\n     45  free: 200 old\n"
    );

    command(&router, &scratch, &["rollout", "start"]).await;
    let during = visitors(&nginx, "150", "8").await;
    for got in ["free: 200 old", "free: 200 new", "free: 500 new fails"] {
        assert!(during.contains(got), "{got}: {during}");
    }
    assert!(!during.contains("enterprise: 200 new"), "{during}");
    soon(async {
        while !command(&router, &scratch, &["status"])
            .await
            .contains("rolled-back")
        {}
    })
    .await;
    assert_eq!(visitors(&nginx, "100", "0.5").await, before);
    nginx.is_content();
}

#[tokio::test]
async fn the_nginx_of_the_sample_says_who_the_client_is_and_lets_nobody_choose_the_canary() {
    let scratch = Scratch::new();
    let old = Upstream::start(|request| match request.target() {
        "/socket" => {
            let agrees = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                          upgrade: websocket\r\n\r\nhello ";
            vec![Step::Write(agrees.into()), Step::Echo]
        }
        _ => answer(200, "", "old"),
    })
    .await;
    let new = Upstream::named("new", 200).await;
    let sidecar = Upstream::named("sidecar", 200).await;
    let upstreams = [old.address, new.address, sidecar.address];
    let router = router(upstreams, &scratch).await;
    let nginx = nginx(&router).await;
    let lies = "x-canary: true\r\nx-forwarded-for: 192.0.2.1\r\nx-forwarded-proto: https\r\n\
                x-forwarded-host: evil.example\r\nforwarded: for=192.0.2.1\r\n";
    assert_eq!(get(nginx.address, "/", lies).await.text(), "old");
    let seen = old.only();
    for (name, value) in [
        ("x-canary", None),
        // The client, and nginx.
        ("x-forwarded-for", Some("127.0.0.1, 127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("client.example")),
        ("forwarded", None),
    ] {
        assert_eq!(seen.header(name), value, "{name}");
    }

    let mut client = Client::connect(nginx.address).await;
    client
        .send(
            "GET /socket HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        .await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    client.expect("hello ").await;
    client.send("ping").await;
    client.expect("ping").await;
    drop(client);
    nginx.is_content();
}
