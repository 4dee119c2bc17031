//! The sidecar: what it is given, and that nothing it does harms the request.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::*;

const FAILED: &str = "Sidecar error";
const KIB: usize = 1 << 10;

/// Main and canary answer 200 with their names; the sidecar does what `sidecar` says, for which it
/// has 300 ms.
async fn with_sidecar(
    sidecar: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
    config: Value,
) -> Trio {
    let mut file = json!({"proxy-client": {"to-sidecar": {"timeout": "300ms"}}});
    merge(&mut file, config);
    Trio::start(
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
        Upstream::start(sidecar).await,
        file,
    )
}

/// Something to see whether a body came through whole and in order.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

async fn post(trio: &Trio, headers: &str, body: &[u8]) -> Response {
    let head = format!("POST /path?q=1 HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
    let mut client = Client::connect(trio.router.address).await;
    client
        .roundtrip("POST", [head.as_bytes(), body].concat())
        .await
}

/// Main (or the canary) answers a request with a body, and has got all of it.
async fn reaches(trio: &Trio, name: &str) {
    let upstream = match name {
        "main" => &trio.main,
        _ => &trio.canary,
    };
    let body = pattern(10_000);
    // Two seconds are the sidecar's timeout where none is configured.
    let answered = post(trio, "content-length: 10000\r\n", &body);
    let response = tokio::time::timeout(Duration::from_millis(1900), answered)
        .await
        .expect("an answer within the sidecar's timeout, more or less");
    assert_eq!((response.status, response.text().as_str()), (200, name));
    assert!(response.complete);
    let seen = upstream.only();
    assert_eq!(seen.start_line(), "POST /path?q=1 HTTP/1.1");
    assert!(seen.body == body, "{} bytes", seen.body.len());
    assert_eq!(trio.main.count() + trio.canary.count(), 1);
}

/// A sidecar that does this: the request goes to main, whole.
async fn means_main(steps: Vec<Step>) {
    let trio = with_sidecar(move |_| steps.clone(), json!({})).await;
    reaches(&trio, "main").await;
    trio.router.counts(&reason(FAILED, "main"), 1.0).await;
}

fn write(bytes: &str) -> Step {
    Step::Write(bytes.into())
}

/// This much of a body, slowly, and for far longer than anybody waits.
fn drip(piece: &str, every: Duration) -> Vec<Step> {
    (0..1000)
        .flat_map(|_| [write(piece), Step::Pause(every)])
        .collect()
}

#[tokio::test]
async fn the_sidecar_gets_method_query_headers_and_the_whole_body() {
    let trio = Trio::named(json!({})).await;
    for (method, body) in [
        ("GET", ""),
        ("HEAD", ""),
        ("POST", "some body"),
        ("PUT", "some body"),
        ("PATCH", "some body"),
        ("DELETE", "some body"),
        ("OPTIONS", ""),
        ("GET", "a GET with a body"),
        ("PROPFIND", "some body"),
    ] {
        for (status, upstream) in [(204, &trio.main), (200, &trio.canary)] {
            let headers = format!(
                "x-sidecar: {status}\r\naccept: a\r\naccept: b\r\ncookie: id=1\r\n\
                 authorization: Basic eA==\r\nX-Upper: Ünïcode\r\nx-canary: maybe\r\n"
            );
            request(
                trio.router.address,
                method,
                "/a%2Fb//c?q=1&r=%20",
                &headers,
                body,
            )
            .await;
            let asked = trio.sidecar.seen().pop().unwrap();
            let got = upstream.seen().pop().unwrap();
            for seen in [&asked, &got] {
                assert_eq!(
                    seen.start_line(),
                    format!("{method} /a%2Fb//c?q=1&r=%20 HTTP/1.1")
                );
                assert_eq!(seen.text(), body);
                assert_eq!(seen.all("accept"), ["a", "b"]);
                for (name, value) in [
                    ("cookie", "id=1"),
                    ("authorization", "Basic eA=="),
                    ("x-upper", "Ünïcode"),
                    ("x-canary", "maybe"),
                    ("x-forwarded-for", "127.0.0.1"),
                ] {
                    assert_eq!(seen.header(name), Some(value), "{method}");
                }
                assert_eq!(seen.header("user-agent"), None);
                assert_eq!(seen.header("x-canary-body"), None);
            }
        }
    }
}

#[tokio::test]
async fn the_sidecar_sees_its_own_host_and_base_path() {
    let (main, canary, sidecar) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
        Upstream::start(asked).await,
    );
    let router = Router::start(json!({
        "main-target": main.url(),
        "main-header-host": "main.example",
        "canary-target": canary.url(),
        "canary-header-host": "canary.example:81",
        "sidecar-url": format!("{}/which/one/?key=secret", sidecar.url())
    }));
    get(router.address, "/of?them=1", "x-sidecar: 204\r\n").await;
    get(router.address, "/of?them=2", "").await;
    let own = sidecar.address.to_string();
    for (asked, query) in sidecar.seen().iter().zip(["them=1", "them=2"]) {
        assert_eq!(asked.header("host"), Some(own.as_str()));
        assert_eq!(
            asked.target(),
            format!("/which/one/of?key=secret&{query}"),
            "exactly one slash, and both queries"
        );
    }
    assert_eq!(main.only().header("host"), Some("main.example"));
    assert_eq!(main.only().target(), "/of?them=1");
    assert_eq!(canary.only().header("host"), Some("canary.example:81"));
}

#[tokio::test]
async fn a_hop_by_hop_header_is_not_for_the_sidecar_either() {
    let trio = Trio::named(json!({})).await;
    get(
        trio.router.address,
        "/",
        "connection: x-mine\r\nx-mine: 1\r\nkeep-alive: timeout=5\r\nproxy-authorization: Basic eA==\r\n",
    )
    .await;
    let asked = trio.sidecar.only();
    for name in ["x-mine", "keep-alive", "proxy-authorization"] {
        assert_eq!(asked.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn a_redirect_of_the_sidecar_is_not_followed() {
    let elsewhere = Upstream::named("elsewhere", 200).await;
    let location = format!("location: {}/\r\n", elsewhere.url());
    for status in [301, 302, 303, 307, 308] {
        let location = location.clone();
        let trio = with_sidecar(move |_| answer(status, &location, ""), json!({})).await;
        reaches(&trio, "main").await;
        assert_eq!(trio.sidecar.count(), 1);
        let other = "Sidecar returns non standard status code";
        trio.router.counts(&reason(other, "main"), 1.0).await;
    }
    assert_eq!(elsewhere.connections().0, 0);
}

#[tokio::test]
async fn the_answer_of_the_sidecar_does_not_show_in_the_response() {
    let trio = with_sidecar(
        |_| {
            answer(
                200,
                "x-sidecar: 1\r\nset-cookie: s=1\r\n",
                "from the sidecar",
            )
        },
        json!({}),
    )
    .await;
    let response = get(trio.router.address, "/", "").await;
    assert_eq!(response.text(), "canary");
    assert_eq!(response.header("x-sidecar"), None);
    assert_eq!(response.header("set-cookie"), None);
}

#[tokio::test]
async fn a_sidecar_that_hangs_means_main_within_its_timeout() {
    means_main(vec![Step::Hang]).await;
}

#[tokio::test]
async fn a_sidecar_that_drips_its_head_does_not_move_its_timeout() {
    let mut steps = vec![write("HTTP/1.1 200 OK\r\n")];
    steps.extend(drip("x", Duration::from_millis(50)));
    means_main(steps).await;
}

#[tokio::test]
async fn a_sidecar_that_resets_or_closes_means_main() {
    means_main(vec![Step::Reset]).await;
    means_main(vec![Step::Close]).await;
    means_main(vec![write("HTTP/1.1 200 OK\r\ncontent-le"), Step::Close]).await;
    means_main(vec![write("HTTP/1.1 200 OK\r\ncontent-le"), Step::Reset]).await;
}

#[tokio::test]
async fn a_sidecar_that_talks_garbage_means_main() {
    means_main(vec![write("220 mail.example ESMTP\r\n\r\n"), Step::Hang]).await;
    means_main(vec![Step::Write(vec![0x16, 3, 1, 0, 0, 0xff]), Step::Hang]).await;
    means_main(vec![write("HTTP/1.1 2000 OK\r\n\r\n"), Step::Close]).await;
    means_main(vec![write(&"x".repeat(200 * KIB)), Step::Hang]).await;
}

#[tokio::test]
async fn a_sidecar_that_refuses_means_main_and_main_gets_the_body() {
    let main = Upstream::named("main", 200).await;
    let router = Router::start(json!({
        "main-target": main.url(),
        "canary-target": format!("http://{}", Upstream::nobody().await),
        "sidecar-url": format!("http://{}", Upstream::nobody().await)
    }));
    let response = request(router.address, "POST", "/", "", "some body").await;
    assert_eq!((response.status, response.text().as_str()), (200, "main"));
    assert_eq!(main.only().text(), "some body");
    router.counts(&reason(FAILED, "main"), 1.0).await;
}

#[tokio::test]
async fn a_sidecar_whose_name_has_no_address_means_main() {
    let main = Upstream::named("main", 200).await;
    let router = Router::start(json!({
        "main-target": main.url(),
        "canary-target": format!("http://{}", Upstream::nobody().await),
        "sidecar-url": "http://name.invalid",
        "proxy-client": {"to-sidecar": {"timeout": "300ms"}}
    }));
    let response = request(router.address, "POST", "/", "", "some body").await;
    assert_eq!((response.status, response.text().as_str()), (200, "main"));
    assert_eq!(main.only().text(), "some body");
    router.counts(&reason(FAILED, "main"), 1.0).await;
}

#[tokio::test]
async fn nobody_waits_for_the_body_of_the_sidecars_answer() {
    for (status, name) in [(200, "canary"), (503, "main")] {
        for (framing, piece) in [
            ("transfer-encoding: chunked", "5\r\nhello\r\n"),
            ("content-length: 1000000000000", "hello"),
            ("x-until: close", "hello"),
        ] {
            let trio = with_sidecar(
                move |_| {
                    let mut steps =
                        vec![write(&format!("HTTP/1.1 {status} X\r\n{framing}\r\n\r\n"))];
                    steps.extend(drip(piece, Duration::from_millis(1)));
                    steps
                },
                json!({}),
            )
            .await;
            reaches(&trio, name).await;
        }
    }
}

#[tokio::test]
async fn an_endless_answer_of_the_sidecar_is_hung_up_on() {
    let trio = with_sidecar(
        |_| {
            let mut steps = vec![write("HTTP/1.1 200 OK\r\n\r\n")];
            // As fast as it can, and more than any buffer between us holds.
            steps.extend(vec![write(&"x".repeat(64 * KIB)); 1000]);
            steps.push(Step::Hang);
            steps
        },
        json!({}),
    )
    .await;
    reaches(&trio, "canary").await;
    eventually(|| trio.sidecar.connections() == (1, 0)).await;
}

#[tokio::test]
async fn a_sidecar_that_dies_after_its_head_has_spoken() {
    for (head, name) in [
        ("200 OK\r\ncontent-length: 100", "canary"),
        ("200 OK\r\ntransfer-encoding: chunked", "canary"),
        ("204 No Content\r\nx-a: b", "main"),
        ("404 Not Found\r\ncontent-length: 100", "main"),
    ] {
        for end in [Step::Close, Step::Reset] {
            let end = end.clone();
            let trio = with_sidecar(
                move |_| {
                    let head = format!("HTTP/1.1 {head}\r\n\r\n");
                    // The head has arrived before the end comes.
                    let pause = Step::Pause(Duration::from_millis(50));
                    vec![write(&head), pause, end.clone()]
                },
                json!({}),
            )
            .await;
            reaches(&trio, name).await;
            // And the next request finds a way to the sidecar again.
            let response = get(trio.router.address, "/", "").await;
            assert_eq!((response.status, response.text().as_str()), (200, name));
        }
    }
}

#[tokio::test]
async fn of_a_body_over_max_body_the_sidecar_gets_that_much_and_the_upstream_all() {
    let trio = Trio::named(json!({"sidecar": {"max-body": "64KiB"}})).await;
    for length in [64 * KIB + 1, 100_000, KIB * KIB] {
        let body = pattern(length);
        for (status, upstream) in [(204, &trio.main), (200, &trio.canary)] {
            let with_length = format!("x-sidecar: {status}\r\ncontent-length: {length}\r\n");
            let pieces: Vec<&[u8]> = body.chunks(10_000).collect();
            let chunks = chunked(&pieces, "");
            let in_chunks = format!("x-sidecar: {status}\r\ntransfer-encoding: chunked\r\n");
            for (headers, sent) in [(&with_length, &body), (&in_chunks, &chunks)] {
                let response = post(&trio, headers, sent).await;
                assert_eq!(response.status, 200);
                let asked = trio.sidecar.seen().pop().unwrap();
                assert_eq!(asked.header("x-canary-body"), Some("partial"), "{length}");
                assert_eq!(asked.body.len(), 64 * KIB);
                assert!(asked.body == body[..64 * KIB], "{length}");
                let got = upstream.seen().pop().unwrap();
                assert!(got.body == body, "{} of {length}", got.body.len());
                assert_eq!(got.header("x-canary-body"), None);
            }
        }
    }
    assert_eq!(trio.seen(), (6, 6, 12));
}

#[tokio::test]
async fn a_body_of_exactly_max_body_is_whole() {
    let trio = Trio::named(json!({"sidecar": {"max-body": "64KiB"}})).await;
    for length in [0, 1, 64 * KIB - 1, 64 * KIB] {
        let body = pattern(length);
        let with_length = format!("content-length: {length}\r\n");
        let pieces: Vec<&[u8]> = body.chunks(10_000).collect();
        let chunks = chunked(&pieces, "");
        let in_chunks = "transfer-encoding: chunked\r\n".to_string();
        for (headers, sent) in [(&with_length, &body), (&in_chunks, &chunks)] {
            let response = post(&trio, headers, sent).await;
            assert_eq!((response.status, response.text().as_str()), (200, "canary"));
            for upstream in [&trio.sidecar, &trio.canary] {
                let seen = upstream.seen().pop().unwrap();
                assert_eq!(seen.header("x-canary-body"), None, "{length} {headers}");
                assert!(seen.body == body, "{} of {length}", seen.body.len());
            }
        }
    }
}

#[tokio::test]
async fn an_upload_of_a_mebibyte_gets_through_though_the_sidecar_does_not_answer() {
    let trio = with_sidecar(
        |_| vec![Step::Hang],
        json!({"sidecar": {"max-body": "64KiB"}}),
    )
    .await;
    let body = pattern(KIB * KIB);
    let response = post(&trio, &format!("content-length: {}\r\n", body.len()), &body).await;
    assert_eq!((response.status, response.text().as_str()), (200, "main"));
    assert!(trio.main.only().body == body);
}

#[tokio::test]
async fn a_client_cannot_say_that_the_sidecar_got_a_part_only() {
    let trio = Trio::named(json!({"sidecar": {"max-body": 8}})).await;
    let claims = "x-canary-body: partial\r\nX-Canary-Body: none\r\n";
    request(trio.router.address, "POST", "/", claims, "whole").await;
    let asked = trio.sidecar.seen().pop().unwrap();
    assert_eq!(asked.header("x-canary-body"), None);
    assert_eq!(asked.text(), "whole");
    request(trio.router.address, "POST", "/", claims, "not whole").await;
    let asked = trio.sidecar.seen().pop().unwrap();
    assert_eq!(asked.header("x-canary-body"), Some("partial"));
    assert_eq!(asked.text(), "not whol");
}

#[tokio::test]
async fn chunks_and_trailers_pass_the_sidecar_by() {
    let trio = Trio::named(json!({})).await;
    for (status, upstream) in [(204, &trio.main), (200, &trio.canary)] {
        for method in ["POST", "GET", "DELETE"] {
            let head = format!(
                "{method} / HTTP/1.1\r\nhost: a\r\nx-sidecar: {status}\r\nte: trailers\r\n\
                 trailer: x-sum, x-other\r\ntransfer-encoding: chunked\r\n\r\n"
            );
            let body = chunked(&[b"some", b" ", b"body"], "x-sum: 1\r\nX-Other: 2\r\n");
            let mut client = Client::connect(trio.router.address).await;
            let response = client
                .roundtrip(method, [head.into_bytes(), body].concat())
                .await;
            assert_eq!(response.status, 200);
            assert_eq!(trio.sidecar.seen().pop().unwrap().text(), "some body");
            let got = upstream.seen().pop().unwrap();
            assert_eq!((got.method(), got.text().as_str()), (method, "some body"));
            assert_eq!(
                got.trailers.to_lowercase(),
                "x-sum: 1\r\nx-other: 2\r\n",
                "{method}"
            );
        }
    }
}

#[tokio::test]
async fn a_client_that_pauses_for_longer_than_the_sidecar_may_take_gets_its_answer() {
    let trio = with_sidecar(asked, json!({})).await;
    for (headers, first, second) in [
        ("content-length: 9\r\n", "some ", "body"),
        (
            "transfer-encoding: chunked\r\n",
            "5\r\nsome \r\n",
            "4\r\nbody\r\n0\r\n\r\n",
        ),
        ("content-length: 9\r\n", "", "some body"),
    ] {
        let before = trio.main.count() + trio.canary.count();
        let mut client = Client::connect(trio.router.address).await;
        client
            .send(format!(
                "POST / HTTP/1.1\r\nhost: a\r\n{headers}\r\n{first}"
            ))
            .await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        client.send(second).await;
        let response = client.response("POST").await.unwrap();
        assert_eq!(response.status, 200, "{}", response.text());
        let seen = match response.text().as_str() {
            "main" => trio.main.seen(),
            _ => trio.canary.seen(),
        };
        assert_eq!(seen.last().unwrap().text(), "some body");
        assert_eq!(trio.main.count() + trio.canary.count(), before + 1);
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_reaches_nobody() {
    // Before the sidecar was asked, and while the upload is on its way to main or the canary.
    for max_body in [KIB * KIB, 2] {
        let trio = with_sidecar(asked, json!({"sidecar": {"max-body": max_body}})).await;
        for status in [204, 200] {
            for (framing, part) in [
                ("content-length: 100", "half a body"),
                ("transfer-encoding: chunked", "4\r\nhalf\r\n"),
                ("transfer-encoding: chunked", "9\r\nhalf"),
                ("transfer-encoding: chunked", "4\r\nhalf\r\n0\r\n"),
            ] {
                let mut client = Client::connect(trio.router.address).await;
                client
                    .send(format!(
                        "POST / HTTP/1.1\r\nhost: a\r\nx-sidecar: {status}\r\n{framing}\r\n\r\n{part}"
                    ))
                    .await;
                client.0.shutdown().await.unwrap();
                let answer = String::from_utf8_lossy(&client.rest().await).into_owned();
                assert!(
                    answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
                    "{max_body} {framing}: {answer}"
                );
                eventually(|| trio.main.connections().1 == 0 && trio.canary.connections().1 == 0)
                    .await;
                assert_eq!((trio.main.count(), trio.canary.count()), (0, 0));
            }
        }
    }
}

#[tokio::test]
async fn a_malformed_chunk_is_a_400_and_reaches_nobody() {
    for max_body in [KIB * KIB, 2] {
        let trio = with_sidecar(asked, json!({"sidecar": {"max-body": max_body}})).await;
        for status in [204, 200] {
            for chunk in [
                "zz\r\nhalf\r\n",
                "4\r\nhalfX\r\n",
                "0x4\r\nhalf\r\n",
                "-1\r\n\r\n",
            ] {
                let mut client = Client::connect(trio.router.address).await;
                client
                    .send(format!(
                        "POST / HTTP/1.1\r\nhost: a\r\nx-sidecar: {status}\r\n\
                         transfer-encoding: chunked\r\n\r\n4\r\ngood\r\n{chunk}0\r\n\r\n"
                    ))
                    .await;
                let response = client.response("POST").await.unwrap();
                assert_eq!(response.status, 400, "{max_body} {status} {chunk:?}");
                client.closed().await;
                eventually(|| trio.main.connections().1 == 0 && trio.canary.connections().1 == 0)
                    .await;
                assert_eq!((trio.main.count(), trio.canary.count()), (0, 0));
            }
        }
    }
}

#[tokio::test]
async fn the_sidecar_is_asked_on_connections_that_are_kept() {
    let trio = Trio::named(json!({"router-server": {"workers": 1}})).await;
    let mut client = Client::connect(trio.router.address).await;
    for i in 1..=10 {
        let response = client
            .roundtrip("GET", "GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await;
        assert_eq!((response.status, response.text().as_str()), (200, "canary"));
        assert_eq!(trio.sidecar.count(), i);
    }
    assert!(
        trio.sidecar.connections().0 < 10,
        "{:?}",
        trio.sidecar.connections()
    );
}

#[tokio::test]
async fn what_the_sidecar_says_beforehand_is_for_nobody() {
    let trio = with_sidecar(
        |_| {
            let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
            [vec![write(hints)], answer(200, "", "")].concat()
        },
        json!({}),
    )
    .await;
    let response = get(trio.router.address, "/", "").await;
    assert_eq!((response.status, response.text().as_str()), (200, "canary"));
    assert_eq!(response.informational, [""; 0]);
}

#[tokio::test]
async fn a_sidecar_that_switches_protocols_unasked_means_main() {
    let trio = with_sidecar(
        |_| {
            let head =
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
            vec![write(head), Step::Hang]
        },
        json!({}),
    )
    .await;
    reaches(&trio, "main").await;
}

#[tokio::test]
async fn the_sidecar_is_not_asked_for_an_upgrade() {
    let trio = Trio::named(json!({})).await;
    get(
        trio.router.address,
        "/",
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
    )
    .await;
    let asked = trio.sidecar.only();
    assert_eq!(asked.header("upgrade"), None);
    assert_eq!(asked.header("sec-websocket-version"), Some("13"));
    assert_eq!(trio.canary.only().header("upgrade"), Some("websocket"));
}

#[tokio::test]
async fn a_client_that_expects_100_continue_is_told_to_go_on() {
    let trio = Trio::named(json!({})).await;
    let mut client = Client::connect(trio.router.address).await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")
        .await;
    let mut told = [0; 25];
    soon(tokio::io::AsyncReadExt::read_exact(
        &mut client.0,
        &mut told,
    ))
    .await
    .unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    let response = client.roundtrip("POST", "some body").await;
    assert_eq!((response.status, response.text().as_str()), (200, "canary"));
    assert_eq!(trio.sidecar.only().text(), "some body");
    assert_eq!(trio.canary.only().text(), "some body");
}

#[tokio::test]
async fn the_time_that_the_client_takes_is_not_the_sidecars() {
    let trio = with_sidecar(
        |request| {
            let think = Step::Pause(Duration::from_millis(600));
            [vec![think], asked(request)].concat()
        },
        json!({"proxy-client": {"to-sidecar": {"timeout": "1s"}}}),
    )
    .await;
    let mut client = Client::connect(trio.router.address).await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nsome ")
        .await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let response = client.roundtrip("POST", "body").await;
    assert_eq!((response.status, response.text().as_str()), (200, "canary"));
    assert_eq!(trio.sidecar.only().text(), "some body");
}

#[tokio::test]
async fn a_client_that_leaves_while_the_sidecar_thinks_reaches_nobody() {
    let trio = with_sidecar(
        |_| vec![Step::Hang],
        json!({"proxy-client": {"to-sidecar": {"timeout": "1h"}}}),
    )
    .await;
    let mut client = Client::connect(trio.router.address).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| trio.sidecar.count() == 1).await;
    drop(client);
    eventually(|| trio.sidecar.connections().1 == 0).await;
    assert_eq!(trio.main.connections().0, 0);
    assert_eq!(trio.canary.connections().0, 0);
}
