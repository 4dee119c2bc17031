//! What is installed: units that systemd takes, a package that has what they need, and a configuration to begin with.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Command, Output},
};

use canary_router::config::Config;
use serde_json::{Value, json};

use crate::{
    peers::{Scratch, run},
    support::*,
};

const HERE: &str = env!("CARGO_MANIFEST_DIR");
const BINARY: &str = env!("CARGO_BIN_EXE_canary-router");
/// Where it is when it is installed, and where its configuration is.
const INSTALLED: &str = "/usr/bin/canary-router";
const CONFIG: &str = "/etc/canary-router/config.json";
const UNITS: [&str; 3] = [
    "canary-router.service",
    "canary-router.socket",
    "canary-router-instrumentation.socket",
];

fn shipped(file: &str) -> String {
    let path = format!("{HERE}/packaging/{file}");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn unit(name: &str) -> String {
    shipped(&format!("systemd/{name}"))
}

/// What a unit says of a key, each time that it does.
fn settings<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value)
        .collect()
}

#[track_caller]
fn setting<'a>(unit: &'a str, key: &str) -> &'a str {
    let [value] = *settings(unit, key) else {
        panic!("{key} stands there other than once");
    };
    value
}

fn config() -> Value {
    serde_json::from_str(&shipped("debian/config.json")).unwrap()
}

// ---- the units

async fn systemd_analyze(arguments: &[&str], units: &[String]) -> Output {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).arg("--no-pager").args(units);
    run(command, "systemd", Vec::new()).await
}

/// The units as they would be with this build at its place.
fn installed(scratch: &Scratch) -> Vec<String> {
    let write = |name: &&str| {
        let path = scratch.path(name);
        fs::write(&path, unit(name).replace(INSTALLED, BINARY)).unwrap();
        path
    };
    UNITS.iter().map(write).collect()
}

#[tokio::test]
async fn systemd_has_nothing_to_say_against_the_units() {
    let scratch = Scratch::new();
    let units = installed(&scratch);
    let arguments = ["verify", "--man=no", "--recursive-errors=no"];
    let output = systemd_analyze(&arguments, &units).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");

    // And would have: a key that it does not know.
    fs::write(&units[0], unit(UNITS[0]).replace("UMask=", "UMsak=")).unwrap();
    let output = systemd_analyze(&arguments, &units).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("UMsak"), "{output:?}");
}

#[tokio::test]
async fn the_service_is_shut_in_as_far_as_a_proxy_can_be() {
    let scratch = Scratch::new();
    let units = installed(&scratch);
    // In tenths; 100 is a service without any protection. 1.4 as long as it may open sockets and read /proc/stat.
    let arguments = ["security", "--offline=true", "--threshold=15"];
    let output = systemd_analyze(&arguments, &units[..1]).await;
    assert!(output.status.success(), "{output:?}");
    // And not, if it were root.
    fs::write(&units[0], unit(UNITS[0]).replace("\nUser=", "\n#")).unwrap();
    let output = systemd_analyze(&arguments, &units[..1]).await;
    assert!(!output.status.success(), "{output:?}");
}

/// The commands of the service, and what they say here.
#[tokio::test]
async fn what_the_service_runs_is_what_the_program_understands() {
    let service = unit(UNITS[0]);
    let scratch = Scratch::new();
    let file = scratch.path("config.json");
    fs::write(&file, shipped("debian/config.json")).unwrap();
    let checks = [
        settings(&service, "ExecStartPre"),
        settings(&service, "ExecReload"),
    ];
    let mut ours = 0;
    for command in checks.concat() {
        let Some(script) = command.strip_prefix("/bin/sh -c '") else {
            assert_eq!(command, "/bin/kill -HUP $MAINPID");
            continue;
        };
        ours += 1;
        let script = script.strip_suffix('\'').unwrap();
        let check = |file: &str| {
            let mut command = Command::new("/bin/sh");
            command.args([
                "-c",
                &script.replace(INSTALLED, BINARY).replace(CONFIG, file),
            ]);
            run(command, "nothing", Vec::new())
        };
        let output = check(&file).await;
        assert!(output.status.success(), "{output:?}");
        assert!(
            output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        );
        // What is wrong ends a start, and a reload, before it has begun, and is told.
        let output = check(&scratch.path("nothing.json")).await;
        assert!(
            !output.status.success() && !output.stderr.is_empty(),
            "{output:?}"
        );
    }
    assert_eq!(ours, 2);

    assert_eq!(
        setting(&service, "ExecStart"),
        format!("{INSTALLED} -c {CONFIG}")
    );
}

#[test]
fn the_service_gives_a_drain_its_time() {
    let service = unit(UNITS[0]);
    let stop = setting(&service, "TimeoutStopSec");
    let stop: u64 = stop.strip_suffix('s').unwrap().parse().unwrap();
    let template = fs::read_to_string(format!("{HERE}/config.template.json")).unwrap();
    let template: Value = serde_json::from_str(&template).unwrap();
    let drain = template["router-server"]["shutdown-timeout"]
        .as_u64()
        .unwrap();
    // The spans have two seconds, the state as long as the disk takes.
    assert!(drain + 10 <= stop, "{drain} {stop}");
}

/// systemd does not wait for a router that has come after another one (SIGUSR2): it is not its child. So the unit does.
#[tokio::test]
async fn a_stop_waits_until_the_router_has_ended() {
    let service = unit(UNITS[0]);
    let stop = setting(&service, "ExecStop");
    let script = stop.strip_prefix("/bin/sh -c '").unwrap();
    let script = script.strip_suffix('\'').unwrap();
    let stop = |process: &str| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env("MAINPID", process);
        run(command, "coreutils", Vec::new())
    };
    let gate = Gate::shut();
    let slow = gate.clone();
    let main = Upstream::start(move |_| {
        let mut steps = vec![Step::Wait(slow.clone())];
        steps.extend(answer(200, "", "late"));
        steps
    })
    .await;
    let mut router = Program::start(json!({
        "main-target": main.url(),
        "canary-target": main.url(),
        "log": {"level": "info"}
    }))
    .await;
    let mut client = Client::connect(router.address).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| main.count() == 1).await;
    let stopping = tokio::spawn(stop(&router.process.id().to_string()));
    let is_draining = |line: &Value| line["signal"] == "SIGTERM";
    eventually(|| router.process.log().iter().any(is_draining)).await;
    assert!(!stopping.is_finished());
    gate.open();
    assert_eq!(client.response("GET").await.unwrap().text(), "late");
    assert!(router.process.ended().await.success());
    let output = stopping.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    // One that has crashed is not there to be told.
    assert!(stop("").await.status.success());
}

/// The contract between them: the router knows its sockets by these names, and insists on the port.
#[test]
fn the_sockets_are_those_that_the_packaged_configuration_asks_for() {
    let config = config();
    for (file, name, section) in [
        (UNITS[1], "proxy", "router-server"),
        (UNITS[2], "instrumentation", "instrumentation"),
    ] {
        let unit = unit(file);
        assert_eq!(setting(&unit, "FileDescriptorName"), name);
        let listen = &config[section];
        let address = format!("{}:{}", listen["host"].as_str().unwrap(), listen["port"]);
        assert_eq!(setting(&unit, "ListenStream"), address);
        let service = file.replace(".socket", ".service");
        assert!(
            service == UNITS[0] || setting(&unit, "Service") == UNITS[0],
            "{file} starts {service}"
        );
    }
}

#[tokio::test]
async fn the_packaged_configuration_starts_and_says_what_to_change() {
    Config::parse("config.json", &config().to_string()).unwrap();
    let folder = setting(&unit(UNITS[0]), "StateDirectory").to_owned();
    let state = config()["state"]["file"].clone();
    assert_eq!(state, format!("/var/lib/{folder}/state.json"));

    let scratch = Scratch::new();
    let mut file = config();
    // Nobody is there, as on a machine on which it has just been installed.
    let nobody = [Port::reserve(), Port::reserve()];
    merge(
        &mut file,
        json!({
            "main-target": format!("http://{}", nobody[0].address),
            "canary-target": format!("http://{}", nobody[1].address),
            "state": {"file": scratch.path("state.json")}
        }),
    );
    let router = Program::start(file).await;
    let got = get(router.address, "/", "").await;
    assert_eq!(got.status, 503);
    for told in [CONFIG, "main-target", "systemctl reload canary-router"] {
        assert!(got.text().contains(told), "{}", got.text());
    }
}

// ---- the package

/// Files of the package by their paths, each with its permissions.
fn contents(listing: &str) -> BTreeMap<String, String> {
    let file = |line: &str| {
        let mode = line.split(' ').next()?;
        let path = line.split_once(" ./")?.1;
        mode.starts_with('-')
            .then(|| (format!("/{path}"), mode.to_owned()))
    };
    listing.lines().filter_map(file).collect()
}

async fn dpkg_deb(arguments: &[&str]) -> String {
    let mut command = Command::new("dpkg-deb");
    command.args(arguments);
    let output = run(command, "dpkg", Vec::new()).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Made as a release is, of the build that is tested.
#[tokio::test]
async fn the_package_has_everything_and_works_where_it_is_unpacked() {
    let scratch = Scratch::new();
    // Three seconds of work, which a busy machine may well make twenty of.
    let output = Command::new(format!("{HERE}/packaging/deb"))
        .args(["--binary", BINARY, "--output", &scratch.path("out")])
        .env("DEBFULLNAME", "A test")
        .env("DEBEMAIL", "test@localhost")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    // Such as that two files have one place.
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("warning"), "{said}");
    let made: Vec<_> = fs::read_dir(scratch.path("out")).unwrap().collect();
    let [Ok(package)] = &*made else {
        panic!("{made:?}");
    };
    let package = package.path().to_str().unwrap().to_owned();

    let files = contents(&dpkg_deb(&["--contents", &package]).await);
    assert_eq!(files[INSTALLED], "-rwxr-xr-x");
    let doc = "/usr/share/doc/canary-router";
    for wanted in [
        CONFIG,
        "/usr/lib/sysusers.d/canary-router.conf",
        "/usr/share/man/man1/canary-router.1.gz",
        "/usr/share/bash-completion/completions/canary-router",
        "/usr/share/zsh/vendor-completions/_canary-router",
        "/usr/share/fish/vendor_completions.d/canary-router.fish",
        "/usr/share/canary-router/config.schema.json",
        "/usr/share/canary-router/config.template.json",
        &format!("{doc}/copyright"),
        &format!("{doc}/README.md"),
        &format!("{doc}/docs/install.md"),
        &format!("{doc}/docs/operations.md"),
        &format!("{doc}/changelog.gz"),
        &format!("{doc}/changelog.Debian.gz"),
        &format!("{doc}/examples/observability/alerts.yml"),
        &format!("{doc}/examples/kubernetes/kustomization.yaml"),
    ] {
        assert_eq!(files[wanted], "-rw-r--r--", "{wanted}");
    }
    for unit in UNITS {
        assert!(files.contains_key(&format!("/usr/lib/systemd/system/{unit}")));
    }
    // What the units and scripts name is in it, or is made.
    let named = [unit(UNITS[0]), shipped("debian/README.Debian")].concat();
    let paths = named.split([' ', '=', ':', '\'', '\n']).filter(|word| {
        ["/usr/bin/", "/usr/share/", "/etc/canary-router/"]
            .iter()
            .any(|folder| word.starts_with(folder))
    });
    let made = ["/etc/canary-router/token"];
    let missing: BTreeSet<&str> = paths
        .map(|path| path.trim_end_matches([',', '.']))
        .filter(|path| !files.contains_key(*path) && !made.contains(path))
        .filter(|path| !path.ends_with('/'))
        .collect();
    assert_eq!(missing, BTreeSet::new());

    // Kept on an upgrade, and nothing else is.
    assert_eq!(
        dpkg_deb(&["--info", &package, "conffiles"]).await,
        format!("{CONFIG}\n")
    );
    let depends = dpkg_deb(&["--field", &package, "Depends"]).await;
    assert!(
        depends.contains("libc6 (>= ") && depends.contains("systemd"),
        "{depends}"
    );
    for script in ["postinst", "prerm", "postrm"] {
        let packed = dpkg_deb(&["--info", &package, script]).await;
        assert_eq!(packed, shipped(&format!("debian/{script}")));
    }

    let root = scratch.path("root");
    dpkg_deb(&["--extract", &package, &root]).await;
    let here = |path: &str| format!("{root}{path}");
    let mut command = Command::new(here(INSTALLED));
    command.args(["check", "-c", &here(CONFIG)]);
    let output = run(command, "nothing", Vec::new()).await;
    assert!(output.status.success(), "{output:?}");
    let schema = fs::read_to_string(here("/usr/share/canary-router/config.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    assert!(schema["properties"]["main-target"].is_object());
    let completion = here("/usr/share/bash-completion/completions/canary-router");
    assert!(fs::read_to_string(completion).unwrap().contains("rollout"));
}

/// What is shipped beside the binary is in the package, or makes it.
#[test]
fn everything_in_the_folder_is_packaged() {
    let manifest = fs::read_to_string(format!("{HERE}/Cargo.toml")).unwrap();
    let folders = ["systemd", "debian"].map(|folder| format!("{HERE}/packaging/{folder}"));
    for file in folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap())
    {
        let path = file.unwrap().path();
        let path = path.strip_prefix(HERE).unwrap();
        let extension = path.extension().unwrap_or_default().to_str().unwrap();
        let asset = match extension {
            "service" | "socket" => path.with_file_name(format!("*.{extension}")),
            // By name.
            "" => Path::new("packaging/debian/").to_owned(),
            _ => path.to_owned(),
        };
        assert!(
            manifest.contains(&format!("\"{}", asset.display())),
            "{}",
            path.display()
        );
    }
}

// ---- the image

/// The root of the image, laid out as the Dockerfile has it done, and entered: what is not in it is not there.
#[tokio::test]
async fn the_image_has_all_that_the_program_needs_to_run() {
    let scratch = Scratch::new();
    let root = scratch.path("image");
    let mut command = Command::new(format!("{HERE}/packaging/image"));
    command.args(["root", &root]).env("BINARY", BINARY);
    let output = run(command, "binutils ca-certificates", Vec::new()).await;
    assert!(output.status.success(), "{output:?}");
    let dockerfile = fs::read_to_string(format!("{HERE}/Dockerfile")).unwrap();
    let words = |instruction: &str| -> Vec<String> {
        let line = dockerfile.lines().find_map(|line| {
            let line = line.trim_start();
            line.strip_prefix(instruction)
        });
        serde_json::from_str(line.unwrap()).unwrap()
    };
    let entrypoint = words("ENTRYPOINT ");
    let inside = |program: &[String], arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "chroot", &root]);
        command.args(program).args(arguments);
        command
    };

    fs::copy(
        format!("{HERE}/packaging/debian/config.json"),
        format!("{root}/etc/canary-router/config.json"),
    )
    .unwrap();
    let check = inside(&entrypoint, &["check", "-c", CONFIG]);
    let output = run(check, "util-linux", Vec::new()).await;
    assert!(output.status.success(), "{output:?}");

    // The health check tells a router that runs from none. Names are looked up in there, too.
    fs::write(format!("{root}/etc/hosts"), "127.0.0.1 the-router\n").unwrap();
    let main = Upstream::named("main", 200).await;
    let router = router_to(&main.url());
    let nobody = Port::reserve();
    for (port, healthy) in [
        (router.instrumentation.port(), true),
        (nobody.address.port(), false),
    ] {
        let mut health = inside(&words("CMD "), &[]);
        health.env("CANARY_ROUTER_URL", format!("http://the-router:{port}"));
        let output = run(health, "util-linux", Vec::new()).await;
        assert_eq!(output.status.success(), healthy, "{output:?}");
    }

    let authorities = fs::read_to_string(format!("{root}/etc/ssl/certs/ca-certificates.crt"));
    assert!(authorities.unwrap().contains("BEGIN CERTIFICATE"));
    let user = fs::read_to_string(format!("{root}/etc/passwd")).unwrap();
    assert!(
        user.starts_with("canary-router:x:10001:10001:")
            && dockerfile.contains("\nUSER 10001:10001\n")
    );
}
