//! The manifests for Kubernetes: taken by its schemas, and of one mind with the configuration in them, the image and the
//! page that says what to do.

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use canary_router::config::Config;
use serde_json::{Value, json};

use crate::{
    peers::{Scratch, run},
    support::*,
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sample/kubernetes");
/// The oldest version that the page promises, and the newest that can be asked here.
const VERSIONS: [&str; 2] = ["1.30", "1.37"];

fn page() -> String {
    fs::read_to_string(format!("{FOLDER}/README.md")).unwrap()
}

fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    let found = value.pointer(pointer);
    found.unwrap_or_else(|| panic!("no {pointer} in {value:#}"))
}

fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    at(value, pointer).as_array().unwrap().iter()
}

/// The one of a list that has this name.
#[track_caller]
fn named<'a>(value: &'a Value, pointer: &str, name: &str) -> &'a Value {
    let found = items(value, pointer).find(|item| item["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {pointer} of {value:#}"))
}

/// Manifests, each with what these versions of Kubernetes have against it.
async fn judged(manifests: Vec<u8>, versions: &[&str]) -> Vec<(Value, Option<String>)> {
    let mut command = python("manifests.py");
    command.args(versions);
    let output = run(command, "python3", manifests).await;
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn accepted(judged: Vec<(Value, Option<String>)>) -> Vec<Value> {
    let accept = |(manifest, against)| {
        assert_eq!(against, None, "{manifest:#}");
        manifest
    };
    judged.into_iter().map(accept).collect()
}

async fn built(folder: &str) -> Vec<u8> {
    let mut command = Command::new("kubectl");
    command.args(["kustomize", folder]);
    let output = run(command, "kubernetes-client", Vec::new()).await;
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// All that `kubectl apply -k` applies.
struct Applied(Vec<Value>);

impl Applied {
    async fn new() -> Applied {
        Applied::judged(&[]).await
    }

    async fn judged(versions: &[&str]) -> Applied {
        let mut manifests = built(FOLDER).await;
        manifests.extend(b"---\n");
        manifests.extend(built(&format!("{FOLDER}/monitoring")).await);
        Applied(accepted(judged(manifests, versions).await))
    }

    #[track_caller]
    fn one(&self, kind: &str, name: &str) -> &Value {
        let wanted =
            |manifest: &&Value| manifest["kind"] == kind && manifest["metadata"]["name"] == name;
        let found = self.0.iter().find(wanted);
        found.unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    fn pod(&self) -> &Value {
        at(
            self.one("Deployment", "canary-router"),
            "/spec/template/spec",
        )
    }

    fn container(&self) -> &Value {
        at(self.pod(), "/containers/0")
    }

    /// The configuration as it is in the ConfigMap.
    fn config(&self) -> Value {
        let text = &self.one("ConfigMap", "canary-router")["data"]["config.json"];
        serde_json::from_str(text.as_str().unwrap()).unwrap()
    }
}

#[tokio::test]
async fn kubernetes_takes_everything_and_there_is_nothing_else() {
    let applied = Applied::judged(&VERSIONS).await;
    let kinds = applied
        .0
        .iter()
        .map(|manifest| manifest["kind"].as_str().unwrap());
    let kinds: Vec<&str> = kinds.collect();
    assert_eq!(kinds.len(), 7, "{kinds:?}");
    for manifest in &applied.0 {
        assert!(
            manifest["metadata"].get("namespace").is_none(),
            "it is its user's to say"
        );
    }
    // Each file is one of theirs, or tells of them.
    for folder in [FOLDER.to_owned(), format!("{FOLDER}/monitoring")] {
        let kustomization = fs::read_to_string(format!("{folder}/kustomization.yaml")).unwrap();
        for file in fs::read_dir(&folder).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            if !["kustomization.yaml", "README.md", "monitoring"].contains(&&*name) {
                assert!(kustomization.contains(&name), "{name}");
            }
        }
    }
}

/// That the validation is one: what it would have let pass if it were not.
#[tokio::test]
async fn a_misspelt_field_is_found() {
    let deployment = fs::read_to_string(format!("{FOLDER}/deployment.yaml")).unwrap();
    let mistakes = [
        ("readOnlyRootFilesystem:", "readonlyRootFilesystem:"),
        ("sleep: {seconds: 5}", "sleep: {second: 5}"),
        ("maxSurge: 1", "maxSurge: [1]"),
    ];
    let manifests = mistakes.map(|(right, wrong)| {
        assert!(deployment.contains(right));
        deployment.replace(right, wrong)
    });
    let judged = judged(manifests.join("\n---\n").into(), &VERSIONS[1..]).await;
    assert_eq!(judged.len(), mistakes.len());
    for ((_, against), (_, wrong)) in judged.into_iter().zip(mistakes) {
        assert!(against.is_some(), "{wrong}");
    }
}

#[tokio::test]
async fn the_configuration_is_one_and_its_files_are_where_they_are_mounted() {
    let applied = Applied::new().await;
    let mut config = applied.config();
    let container = applied.container();
    let mounted = |volume: &str| {
        let mount = named(container, "/volumeMounts", volume);
        // Only folders follow what they are made of.
        assert!(mount.get("subPath").is_none());
        mount["mountPath"].as_str().unwrap()
    };
    let file = format!("{}/config.json", mounted("config"));
    assert_eq!(container["args"], json!(["-c", file]));
    assert_eq!(config["reload"]["watch"], true);
    let token = format!("{}/token", mounted("token"));
    assert_eq!(config["instrumentation"]["token-file"], token);
    assert_eq!(
        named(container, "/env", "CANARY_ROUTER_TOKEN_FILE")["value"],
        token
    );
    assert_eq!(
        config["state"]["file"],
        format!("{}/state.json", mounted("state"))
    );
    assert!(named(applied.pod(), "/volumes", "state")["emptyDir"].is_object());
    // By what the page has its reader type.
    let secret = &named(applied.pod(), "/volumes", "token")["secret"];
    assert_eq!(secret["defaultMode"], 0o440);
    let secret = secret["secretName"].as_str().unwrap();
    assert!(page().contains(&format!(
        "create secret generic {secret} --from-file=token\n"
    )));
    let map = &named(applied.pod(), "/volumes", "config")["configMap"]["name"];
    assert_eq!(map, "canary-router");

    let scratch = Scratch::new();
    fs::write(scratch.path("token"), "0123456789abcdef\n").unwrap();
    config["instrumentation"]["token-file"] = json!(scratch.path("token"));
    Config::parse("config.json", &config.to_string()).unwrap_or_else(|error| panic!("{error}"));
    // Nobody is in the canary of a pod that knows of no rollback.
    assert_eq!(config["traffic"]["weight"], 0);
}

#[tokio::test]
async fn ports_probes_and_services_agree_with_the_configuration() {
    let applied = Applied::new().await;
    let config = applied.config();
    let container = applied.container();
    let ports = [
        ("http", "router-server"),
        ("instrumentation", "instrumentation"),
    ];
    for (name, section) in ports {
        assert_eq!(
            named(container, "/ports", name)["containerPort"],
            config[section]["port"]
        );
        assert_eq!(config[section]["host"], "0.0.0.0", "{section}");
    }

    // A router that runs answers what the probes ask.
    let main = Upstream::named("main", 200).await;
    let router = router_to(&main.url());
    for (probe, path) in [
        ("startupProbe", "/health/live"),
        ("livenessProbe", "/health/live"),
        ("readinessProbe", "/health/ready"),
    ] {
        let asked = at(container, &format!("/{probe}/httpGet"));
        assert_eq!(*asked, json!({"path": path, "port": "instrumentation"}));
        assert_eq!(get(router.instrumentation, path, "").await.status, 200);
    }

    let labels = at(
        applied.one("Deployment", "canary-router"),
        "/spec/template/metadata/labels",
    );
    for (service, port) in [
        ("canary-router", "http"),
        ("canary-router-instrumentation", "instrumentation"),
    ] {
        let service = applied.one("Service", service);
        assert_eq!(at(service, "/spec/selector"), labels);
        assert_eq!(named(service, "/spec/ports", port)["targetPort"], port);
    }
    for pointer in [
        "/spec/selector/matchLabels",
        "/spec/template/spec/topologySpreadConstraints/0/labelSelector/matchLabels",
    ] {
        assert_eq!(
            at(applied.one("Deployment", "canary-router"), pointer),
            labels
        );
    }
    assert_eq!(
        at(
            applied.one("PodDisruptionBudget", "canary-router"),
            "/spec/selector/matchLabels"
        ),
        labels
    );

    // Requests from everywhere; the instrumentation port from somewhere.
    let policy = applied.one("NetworkPolicy", "canary-router");
    assert_eq!(at(policy, "/spec/podSelector/matchLabels"), labels);
    let open: Vec<_> = items(policy, "/spec/ingress")
        .map(|rule| {
            (
                at(rule, "/ports/0/port").as_str().unwrap(),
                rule.get("from").is_some(),
            )
        })
        .collect();
    assert_eq!(open, [("http", false), ("instrumentation", true)]);

    // No schema of it is to be had offline: these are fields that it has, and are all that is used of it.
    let monitor = applied.one("ServiceMonitor", "canary-router");
    assert_eq!(monitor["apiVersion"], "monitoring.coreos.com/v1");
    let fields = |pointer: &str| -> Vec<&str> {
        let fields = at(monitor, pointer).as_object().unwrap().keys();
        fields.map(String::as_str).collect()
    };
    assert_eq!(fields("/spec"), ["endpoints", "jobLabel", "selector"]);
    assert_eq!(fields("/spec/endpoints/0"), ["interval", "path", "port"]);
    let scraped = applied.one("Service", "canary-router-instrumentation");
    assert_eq!(
        at(monitor, "/spec/selector/matchLabels"),
        at(scraped, "/metadata/labels")
    );
    assert_eq!(at(monitor, "/spec/endpoints/0/port"), "instrumentation");
    let path = at(monitor, "/spec/endpoints/0/path").as_str().unwrap();
    assert_eq!(get(router.instrumentation, path, "").await.status, 200);
    // The name by which the alerts know the job.
    let label = at(monitor, "/spec/jobLabel").as_str().unwrap();
    let job = scraped["metadata"]["labels"][label].as_str().unwrap();
    let alerts = fs::read_to_string(format!("{FOLDER}/../observability/alerts.yml")).unwrap();
    assert!(alerts.contains(&format!("up{{job=\"{job}\"}}")));
}

#[tokio::test]
async fn a_pod_that_goes_has_the_time_that_its_drain_may_take() {
    let applied = Applied::new().await;
    let pod = applied.pod();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    let before = at(applied.container(), "/lifecycle/preStop/sleep/seconds")
        .as_u64()
        .unwrap();
    let drain = applied.config()["router-server"]["shutdown-timeout"].clone();
    let drain = humantime::parse_duration(drain.as_str().unwrap()).unwrap();
    assert!(before > 0);
    let needed = Duration::from_secs(before + 10) + drain;
    assert!(needed <= Duration::from_secs(grace), "{needed:?} {grace}");

    let deployment = applied.one("Deployment", "canary-router");
    let strategy = at(deployment, "/spec/strategy/rollingUpdate");
    assert_eq!(*strategy, json!({"maxUnavailable": 0, "maxSurge": 1}));
}

/// The profile `restricted` of the Pod Security Standards, and what it does not ask for.
#[tokio::test]
async fn the_pod_may_do_no_more_than_it_has_to() {
    let applied = Applied::new().await;
    let pod = applied.pod();
    let image = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Dockerfile")).unwrap();
    let security = &pod["securityContext"];
    let [user, group] = ["runAsUser", "runAsGroup"].map(|key| &security[key]);
    assert!(image.contains(&format!("\nUSER {user}:{group}\n")));
    assert_eq!(security["fsGroup"], *group);
    assert_eq!(security["runAsNonRoot"], true);
    assert_eq!(
        security["seccompProfile"],
        json!({"type": "RuntimeDefault"})
    );
    let security = &applied.container()["securityContext"];
    assert_eq!(
        *security,
        json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]}
        })
    );
    assert_eq!(pod["automountServiceAccountToken"], false);
    // Else CANARY_ROUTER_PORT is tcp://10.96.0.1:80.
    assert_eq!(pod["enableServiceLinks"], false);
    for limited in [
        "/resources/requests/cpu",
        "/resources/requests/memory",
        "/resources/limits/memory",
    ] {
        assert!(at(applied.container(), limited).is_string(), "{limited}");
    }
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        applied.container()["image"],
        format!("canary-router:{version}")
    );
}

/// What the page has its reader pipe into `kubectl apply`.
#[tokio::test]
async fn the_alerts_become_a_rule_that_the_operator_takes() {
    let page = page();
    let (before, _) = page.split_once("| kubectl apply -f -\n").unwrap();
    let (_, pipe) = before.rsplit_once("```sh\n").unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-euc", pipe])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = run(command, "nothing", Vec::new()).await;
    assert!(output.status.success(), "{output:?}");
    let rules = accepted(judged(output.stdout, &[]).await);
    let [rule] = &*rules else {
        panic!("{rules:?}");
    };
    assert_eq!(rule["apiVersion"], "monitoring.coreos.com/v1");
    assert_eq!(rule["kind"], "PrometheusRule");
    assert!(rule["metadata"]["name"].is_string());
    // Which Prometheus itself takes (observability.rs).
    let alerts = crate::observability::yaml(&format!("{FOLDER}/../observability/alerts.yml")).await;
    assert_eq!(rule["spec"], alerts);
    let alerts: BTreeSet<&str> = items(&alerts, "/groups")
        .flat_map(|group| items(group, "/rules"))
        .filter_map(|rule| rule["alert"].as_str())
        .collect();
    // Those that the page speaks of.
    let named = page
        .split('`')
        .filter(|word| word.starts_with("CanaryRouter"));
    for name in named {
        assert!(alerts.contains(name), "{name}");
    }
}
