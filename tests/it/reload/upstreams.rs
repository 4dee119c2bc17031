//! Connections to upstreams: those go on that would be made the same way now, and no other is used again.

use super::*;
use crate::support::{
    h2peer::{self, H2Upstream, When},
    pki::Authority,
};

/// So many that the kernel gives each worker some.
const CLIENTS: usize = 16;

/// Connections that stay.
async fn clients(program: &Program) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::connect(program.address).await);
    }
    clients
}

/// Each of them asks main, the canary, and whom the sidecar says, one after the other.
async fn all_ask(clients: &mut [Client]) {
    for client in clients {
        for headers in ["x-canary: false\r\n", "x-canary: true\r\n", ""] {
            let response = client.roundtrip("GET", head("GET /a/x", headers)).await;
            assert_eq!(response.status, 200, "{headers}: {}", response.text());
        }
    }
}

#[tokio::test]
async fn a_reload_makes_no_connection_anew_to_an_upstream_that_stays_as_it_is() {
    let (main, canary) = (service("main").await, service("canary").await);
    let sidecar = Upstream::start(asked).await;
    let program = Program::start(json!({
        "main-target": main.url(), "canary-target": canary.url(), "sidecar-url": sidecar.url()
    }))
    .await;
    let mut clients = clients(&program).await;
    all_ask(&mut clients).await;
    for upstream in [&main, &canary, &sidecar] {
        assert_eq!(upstream.connections(), (2, 2), "one of each worker");
    }
    let other = service("other").await;
    for (i, config) in [
        json!({}),
        json!({"trim-prefix": "/a", "log": {"access": "json"}}),
        json!({"main-target": format!("{}/base?key=1", main.url()), "main-header-host": "a.example"}),
        json!({"canary-target": format!("{}/base", canary.url()), "canary-header-host": "a.example"}),
        json!({"sidecar-url": format!("{}/decide", sidecar.url()), "sidecar": {"body": "none"}}),
        json!({"circuit-breaker": {"request-limit-canary": 1000, "failure-rate-threshold": 50}}),
        json!({"traffic": {"weight": 50, "sticky": {"by": "client-ip"}}}),
        json!({"router-server": {"read-timeout": "3s", "max-connections": 100, "trusted-proxies": ["127.0.0.1"]}}),
        json!({"fallback": {"replay": "failures"}, "rollout": {"steps": [{"weight": 5, "for": "1h"}]}}),
    ]
    .into_iter()
    .enumerate()
    {
        change(&program, config.clone()).await;
        all_ask(&mut clients).await;
        for upstream in [&main, &canary, &sidecar] {
            assert_eq!(upstream.connections(), (2, 2), "{i}: {config}");
        }
    }
    // What becomes of one is nothing to the others.
    change(&program, json!({"canary-target": other.url()})).await;
    all_ask(&mut clients).await;
    change(
        &program,
        json!({"proxy-client": {"to-sidecar": {"timeout": "7s"}}}),
    )
    .await;
    all_ask(&mut clients).await;
    eventually(|| canary.connections() == (4, 2)).await;
    eventually(|| sidecar.connections() == (4, 2)).await;
    eventually(|| other.connections() == (2, 0)).await;
    assert_eq!(main.connections(), (2, 2));
}

#[tokio::test]
async fn what_upstreams_are_no_longer_asked_by_is_closed_also_when_nobody_asks_anything() {
    let (main, canary, next) = (
        service("main").await,
        service("canary").await,
        service("next").await,
    );
    let shared = H2Upstream::named("shared", 200).await;
    let to = |main: &str, protocol: &str| {
        json!({
            "main-target": main, "canary-target": canary.url(),
            "proxy-client": {"to-main-and-canary": {"protocol": protocol}}
        })
    };
    let program = Program::start(to(&main.url(), "http1")).await;
    let mut clients = clients(&program).await;
    all_ask(&mut clients).await;
    assert_eq!((main.connections(), canary.connections()), ((2, 2), (2, 2)));
    change(&program, to(&next.url(), "http1")).await;
    eventually(|| main.connections() == (2, 0)).await;
    assert_eq!(canary.connections(), (2, 2));

    let mut both = to(&shared.url(), "h2");
    merge(&mut both, json!({"canary-target": shared.url()}));
    change(&program, both).await;
    eventually(|| canary.connections() == (2, 0)).await;
    all_ask(&mut clients).await;
    // Of each worker one to main and one to the canary, though they are in one place.
    assert_eq!(shared.connections(), (4, 4));
    change(&program, to(&next.url(), "http1")).await;
    eventually(|| shared.connections() == (4, 0)).await;
    all_ask(&mut clients).await;
    assert_eq!((main.connections(), shared.connections()), ((2, 0), (4, 0)));
}

/// The settings are of how connections are made or kept: none that was made by others is used again.
#[tokio::test]
async fn no_request_goes_on_a_connection_that_was_made_by_other_settings() {
    let main = service("main").await;
    let program =
        Program::start(json!({"main-target": main.url(), "canary-target": main.url()})).await;
    let mut client = Client::connect(program.address).await;
    let others = [
        json!({"idle-conn-timeout": "50s"}),
        json!({"max-conn-age": "50s"}),
        json!({"max-idle-conns": 7}),
        json!({"connect-timeout": "500ms"}),
        json!({}),
    ];
    for (made, config) in (1..).zip(others) {
        let config = json!({"proxy-client": {"to-main-and-canary": config}});
        change(&program, config.clone()).await;
        let asked = client.roundtrip("GET", head("GET /", "")).await;
        assert_eq!(asked.status, 200);
        eventually(|| main.connections() == (made, 1)).await;
    }
}

/// A connection that is trusted no longer has to be gone at once: the next request would go there.
#[tokio::test]
async fn an_upstream_that_another_ca_has_signed_gets_no_request_after_the_reload() {
    let folder = Folder::new();
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let acceptor = ours.issue(&["localhost"]).acceptor(&["h2"], None);
    let main = H2Upstream::with(
        h2::server::Builder::new(),
        Some(acceptor),
        When::Whole,
        |_| h2peer::answers(200, &[], "main"),
    );
    let ca = ours.write(&folder, "ca.pem");
    let program = Program::start(json!({
        "main-target": format!("https://localhost:{}", main.address.port()),
        "canary-target": format!("https://localhost:{}", main.address.port()),
        "proxy-client": {"to-main-and-canary": {"protocol": "auto", "tls": {"ca": ca}}}
    }))
    .await;
    let mut client = Client::connect(program.address).await;
    let ask = head("GET /", "");
    assert_eq!(client.roundtrip("GET", &ask).await.text(), "main");
    assert_eq!(reload(&program).await.0, 200);
    assert_eq!(client.roundtrip("GET", &ask).await.text(), "main");
    assert_eq!(main.connections(), (1, 1));
    // The path is the same, and so is the text of the configuration.
    others.write(&folder, "ca.pem");
    assert_eq!(reload(&program).await.0, 200);
    assert_eq!(client.roundtrip("GET", &ask).await.status, 502);
    assert_eq!(main.count(), 2);
    ours.write(&folder, "ca.pem");
    assert_eq!(reload(&program).await.0, 200);
    assert_eq!(client.roundtrip("GET", &ask).await.text(), "main");
    eventually(|| main.connections().1 == 1).await;
}
