//! gRPC: a client and a service that others wrote find nothing of us between them, and what the service
//! says about itself counts.
//!
//! What the two say is in `peers/grpc_client.py` and `peers/grpc_server.py`; both were checked against each
//! other without a router. `tests/run` installs what they need.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdin, Stdio},
};

use h2::{Reason, client};
use serde_json::{Value, json};

use crate::support::{
    h2peer::{Do, H2Client, H2Upstream, Pairs, asks, fields},
    pki::Authority,
    *,
};

/// The service. It ends with this value.
pub struct Service {
    pub address: SocketAddr,
    process: Child,
    _stdin: ChildStdin,
}

impl Service {
    pub fn start(arguments: &[&str]) -> Service {
        let mut process = python("grpc_server.py")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = process.stdin.take().unwrap();
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut port)
            .unwrap();
        let port: u16 = port.trim().parse().expect("a port, on its first line");
        Service {
            address: ([127, 0, 0, 1], port).into(),
            process,
            _stdin: stdin,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// Does it through a router.
pub fn play(scenario: &str, router: SocketAddr, service: SocketAddr, ca: Option<&str>) {
    let played = python("grpc_client.py")
        .args([scenario, &router.to_string(), &service.to_string()])
        .args(ca)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        played.status.success() && played.stdout == b"fine\n",
        "{scenario}: {}{}",
        String::from_utf8_lossy(&played.stdout),
        String::from_utf8_lossy(&played.stderr)
    );
}

/// Does it without and with a sidecar, which gets only the heads.
fn comes_out_right(scenario: &str) {
    let service = Service::start(&[]);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let sidecar = runtime.block_on(Upstream::named("", 200));
    let h2 = json!({"proxy-client": {"to-main-and-canary": {"protocol": "h2"}}});
    let mut with_sidecar = h2.clone();
    merge(
        &mut with_sidecar,
        json!({"sidecar-url": sidecar.url(), "sidecar": {"body": "none"}}),
    );
    for config in [h2, with_sidecar] {
        let router = router_with(&service.url(), config);
        play(scenario, router.address, service.address, None);
    }
    assert!(sidecar.count() > 0);
}

#[test]
fn one_request_has_one_response() {
    comes_out_right("one_request_one_response");
}

#[test]
fn many_requests_have_one_response() {
    comes_out_right("many_requests_one_response");
}

#[test]
fn one_request_has_many_responses() {
    comes_out_right("one_request_many_responses");
}

#[test]
fn messages_go_to_and_fro_while_the_call_goes_on() {
    comes_out_right("ping_pong");
}

#[test]
fn metadata_arrive_both_ways_in_text_and_binary() {
    comes_out_right("metadata");
}

#[test]
fn statuses_arrive_with_their_messages_and_trailers() {
    comes_out_right("statuses");
}

#[test]
fn a_deadline_reaches_the_service_and_ends_the_call() {
    comes_out_right("deadline");
}

#[test]
fn a_call_that_is_cancelled_is_cancelled_at_the_service() {
    comes_out_right("cancellation");
}

#[test]
fn messages_of_megabytes_arrive() {
    comes_out_right("large_messages");
}

#[test]
fn compressed_messages_arrive() {
    comes_out_right("compression");
}

#[test]
fn a_hundred_calls_go_on_at_once() {
    comes_out_right("concurrency");
}

#[test]
fn all_of_it_comes_out_right_over_tls() {
    let service = Service::start(&["gzip"]);
    let folder = Folder::new();
    let authority = Authority::new("ours");
    let ca = authority.write(&folder, "ca.pem");
    let tls = authority.issue(&["localhost"]).write(&folder, "router");
    let router = router_with(
        &service.url(),
        json!({
            "router-server": {"tls": tls},
            "proxy-client": {"to-main-and-canary": {"protocol": "h2"}}
        }),
    );
    for scenario in [
        "one_request_one_response",
        "ping_pong",
        "metadata",
        "statuses",
        "cancellation",
        "large_messages",
    ] {
        let ca = ca.to_str();
        play(scenario, router.address, service.address, ca);
    }
}

// ---- what counts

/// A main that is well, a canary that answers what the request's `x-status` says, and a router that
/// sends to the canary what it may.
struct Judged {
    main: H2Upstream,
    canary: H2Upstream,
    router: Router,
    _sidecar: Upstream,
}

const ERRORS_LEFT: &str = "canary_router_error_budget_remaining";
const GRPC: Pairs = &[("content-type", "application/grpc+proto")];

/// A message, as it is framed.
const MESSAGE: &[u8] = b"\0\0\0\0\x05hello";

/// How a canary says its status.
#[derive(Debug, Clone, Copy)]
enum Says {
    /// In trailers behind a message.
    Behind,
    /// In trailers behind nothing.
    InTrailers,
    /// In a head that is all there is (`Trailers-Only`).
    InTheHead,
}

impl Judged {
    async fn start(config: Value) -> Judged {
        let main = H2Upstream::start(|_| status(Says::Behind, "0")).await;
        let canary = H2Upstream::eager(|asked| {
            let says = match asked.header("x-says") {
                Some("head") => Says::InTheHead,
                Some("trailers") => Says::InTrailers,
                _ => Says::Behind,
            };
            match asked.header("x-status").unwrap_or("0") {
                // No status at all.
                "none" => vec![
                    Do::Head(200, fields(GRPC)),
                    Do::Data(MESSAGE.to_vec()),
                    Do::End,
                ],
                "reset" => vec![
                    Do::Head(200, fields(GRPC)),
                    Do::Reset(Reason::INTERNAL_ERROR),
                ],
                "hang" => vec![Do::Head(200, fields(GRPC)), Do::Hang],
                code => status(says, code),
            }
        })
        .await;
        let sidecar = Upstream::named("", 200).await;
        let mut file = json!({
            "main-target": main.url(),
            "canary-target": canary.url(),
            "sidecar-url": sidecar.url(),
            "sidecar": {"body": "none"},
            "circuit-breaker": {"error-limit-canary": 3},
            "proxy-client": {"to-main-and-canary": {"protocol": "h2"}}
        });
        merge(&mut file, config);
        Judged {
            router: Router::start(file),
            main,
            canary,
            _sidecar: sidecar,
        }
    }

    /// A call; the status that its client gets.
    async fn call(&self, headers: Pairs<'_>) -> Option<String> {
        let mut client = H2Client::connect(self.router.address).await;
        let mut all = vec![
            ("content-type", "application/grpc+proto"),
            ("te", "trailers"),
        ];
        all.extend(headers);
        let request = asks("POST", "/test.Peer/Echo", &all);
        let got = client.ask(request, MESSAGE, fields(&[])).await;
        let of = |headers: &http::HeaderMap| {
            let status = headers.get("grpc-status")?;
            Some(status.to_str().unwrap().to_owned())
        };
        of(&got.headers).or_else(|| of(&got.trailers))
    }

    fn seen(&self) -> (usize, usize) {
        (self.main.heads().len(), self.canary.heads().len())
    }
}

fn status(says: Says, code: &str) -> Vec<Do> {
    let mut head = fields(GRPC);
    let status = fields(&[("grpc-status", code)]);
    match says {
        Says::Behind => vec![
            Do::Head(200, head),
            Do::Data(MESSAGE.to_vec()),
            Do::Trailers(status),
        ],
        Says::InTrailers => vec![Do::Head(200, head), Do::Trailers(status)],
        Says::InTheHead => {
            head.extend(status);
            vec![Do::Whole(200, head)]
        }
    }
}

const FAILURES: [&str; 5] = ["2", "4", "13", "14", "15"];
const ANSWERS: [&str; 12] = [
    "0", "1", "3", "5", "6", "7", "8", "9", "10", "11", "12", "16",
];

#[tokio::test]
async fn statuses_that_are_failures_of_the_canary_count_against_its_limit() {
    for says in ["head", "trailers", "behind"] {
        for code in FAILURES {
            let judged = Judged::start(json!({})).await;
            let headers = [("x-status", code), ("x-says", says)];
            for left in [2.0, 1.0, 0.0] {
                assert_eq!(judged.call(&headers).await.as_deref(), Some(code));
                judged.router.counts(ERRORS_LEFT, left).await;
            }
            // And no more of them.
            assert_eq!(judged.call(&headers).await.as_deref(), Some("0"));
            assert_eq!(judged.seen(), (1, 3), "{says} {code}");
        }
    }
}

#[tokio::test]
async fn statuses_that_are_answers_do_not_count() {
    let judged = Judged::start(json!({})).await;
    let mut calls = 0;
    for says in ["head", "trailers", "behind"] {
        for code in ANSWERS {
            let headers = [("x-status", code), ("x-says", says)];
            assert_eq!(judged.call(&headers).await.as_deref(), Some(code));
            calls += 1;
        }
    }
    judged
        .router
        .counts(
            &reason("Sidecar returns status code 200", "canary"),
            f64::from(calls),
        )
        .await;
    judged.router.counts(ERRORS_LEFT, 3.0).await;
    assert_eq!(judged.seen(), (0, 36));
}

#[tokio::test]
async fn failures_of_calls_that_are_forced_to_the_canary_are_charged_too() {
    let judged = Judged::start(json!({})).await;
    for (code, left) in [("5", 3.0), ("13", 2.0), ("14", 1.0), ("3", 1.0), ("2", 0.0)] {
        let headers = [("x-status", code), ("x-canary", "true")];
        assert_eq!(judged.call(&headers).await.as_deref(), Some(code));
        judged.router.counts(ERRORS_LEFT, left).await;
    }
    // They are never refused.
    let forced = [("x-status", "0"), ("x-canary", "true")];
    assert_eq!(judged.call(&forced).await.as_deref(), Some("0"));
    assert_eq!(judged.seen(), (0, 6));
    assert_eq!(judged.call(&[]).await.as_deref(), Some("0"));
    assert_eq!(judged.seen(), (1, 6));
}

/// A call without a status has failed to its client; so has one that broke off.
#[tokio::test]
async fn calls_that_end_without_a_status_count() {
    let judged = Judged::start(json!({})).await;
    for (what, left) in [("none", 2.0), ("reset", 1.0), ("none", 0.0)] {
        assert_eq!(judged.call(&[("x-status", what)]).await, None, "{what}");
        judged.router.counts(ERRORS_LEFT, left).await;
    }
    assert_eq!(judged.call(&[]).await.as_deref(), Some("0"));
    assert_eq!(judged.seen(), (1, 3));
}

/// A client that gives up says nothing about the canary, and leaves nothing reserved.
#[tokio::test]
async fn calls_that_their_clients_give_up_do_not_count() {
    let judged = Judged::start(json!({})).await;
    for _ in 0..5 {
        let before = judged.canary.resets().len();
        let mut client = H2Client::connect(judged.router.address).await;
        let headers = [("content-type", "application/grpc"), ("x-status", "hang")];
        let request = asks("POST", "/test.Peer/Never", &headers);
        let (response, mut sending): (client::ResponseFuture, _) =
            client.begin(request, false).await.unwrap();
        let head = soon(response).await.unwrap();
        assert_eq!(head.status(), 200);
        sending.send_reset(Reason::CANCEL);
        eventually(|| judged.canary.resets().len() == before + 1).await;
    }
    assert_eq!(judged.canary.resets(), [Reason::CANCEL; 5]);
    for code in ["13", "14", "15"] {
        assert_eq!(
            judged.call(&[("x-status", code)]).await.as_deref(),
            Some(code)
        );
    }
    assert_eq!(judged.call(&[]).await.as_deref(), Some("0"));
    assert_eq!(judged.seen(), (1, 8));
}

/// What has no content type of gRPC's is judged by its HTTP status alone.
#[tokio::test]
async fn a_status_of_what_is_not_grpc_is_a_field_like_any_other() {
    let main = H2Upstream::named("main", 200).await;
    let canary = H2Upstream::start(|_| {
        vec![
            Do::Head(200, fields(&[("content-type", "text/plain")])),
            Do::Data(b"canary".to_vec()),
            Do::Trailers(fields(&[("grpc-status", "13")])),
        ]
    })
    .await;
    let sidecar = Upstream::named("", 200).await;
    let router = Router::start(json!({
        "main-target": main.url(), "canary-target": canary.url(), "sidecar-url": sidecar.url(),
        "circuit-breaker": {"error-limit-canary": 1},
        "proxy-client": {"to-main-and-canary": {"protocol": "h2"}}
    }));
    for _ in 0..3 {
        let got = H2Client::connect(router.address).await.get("/", &[]).await;
        assert_eq!(got.text(), "canary");
    }
    router.counts(ERRORS_LEFT, 1.0).await;
}

/// Failures open the breaker, answers keep it closed.
#[tokio::test]
async fn the_breaker_opens_for_statuses_that_are_failures_only() {
    let breaker = json!({"circuit-breaker": {
        "error-limit-canary": 0, "failure-rate-threshold": 50, "minimum-number-of-calls": 10,
        "wait-open": "1h"
    }});
    let judged = Judged::start(breaker).await;
    for _ in 0..20 {
        assert_eq!(
            judged.call(&[("x-status", "5")]).await.as_deref(),
            Some("5")
        );
    }
    let mut failed = 0;
    for _ in 0..40 {
        if judged.call(&[("x-status", "14")]).await.as_deref() == Some("14") {
            failed += 1;
        }
    }
    assert!(
        (15..=25).contains(&failed),
        "{failed} failures until it opened"
    );
    assert_eq!(judged.call(&[]).await.as_deref(), Some("0"));
    assert_eq!(judged.seen().0, 41 - failed);
}
