//! Upstreams that close a connection at the very moment at which a request is sent on it: it is sent
//! again where it is certain that nobody has read any of it, and nowhere else.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr},
    time::Duration,
};

use canary_router::clock;
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::support::*;

/// More than what tokio takes note of at a time (`max_io_events_per_tick`).
const CROWD: usize = 1100;

/// A router with an idle connection to its upstream, and so much to look at that it does not see what
/// becomes of that in time.
///
/// The kernel tells of what happened in the order in which it did, 1024 at a time. So the process is
/// stopped, a request sent to it, then something by a crowd of others; what the upstream does now it will
/// notice when it has sent the request.
struct Distracted {
    program: Program,
    upstream: ByHand,
    service: Option<Client>,
    client: Client,
    crowd: Vec<Client>,
}

impl Distracted {
    async fn start() -> Distracted {
        let upstream = ByHand::start().await;
        let program = Program::start(json!({
            "main-target": upstream.url(),
            "canary-target": upstream.url(),
            "router-server": {"workers": 1, "read-timeout": "1h"},
        }))
        .await;
        let mut crowd = Vec::new();
        for _ in 0..CROWD {
            crowd.push(Client::connect(program.address).await);
        }
        eventually(|| program.descriptors() > CROWD).await;
        let mut client = Client::connect(program.address).await;
        client.send(head("GET /first", "")).await;
        let mut service = upstream.accept().await;
        service.head().await;
        service.send(ok("")).await;
        assert_eq!(client.response("GET").await.unwrap().status, 200);
        Distracted {
            program,
            upstream,
            service: Some(service),
            client,
            crowd,
        }
    }

    /// Has the router send `request` on the connection with which the upstream does something just before.
    async fn meanwhile<T>(&mut self, request: &str, then: impl AsyncFnOnce(Client) -> T) -> T {
        self.program.process.signal("STOP");
        eventually(|| self.program.is_stopped()).await;
        self.client.send(request).await;
        for client in &mut self.crowd {
            client.send("G").await;
        }
        let done = then(self.service.take().unwrap()).await;
        self.program.process.signal("CONT");
        done
    }

    async fn is_all(&self) {
        is_all(&self.upstream, self.program.address).await;
    }
}

/// The upstream has got nothing but what the test has seen.
async fn is_all(upstream: &ByHand, router: SocketAddr) {
    let mut client = Client::connect(router).await;
    client.send(head("GET /last", "")).await;
    let mut service = upstream.accept().await;
    let head = service.head().await;
    assert!(head.starts_with("GET /last "), "{head}");
}

/// What a request for it begins with when it arrives.
const REQUEST: &str = "GET /second HTTP/1.1\r\n";

fn ok(lines: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}content-length: 0\r\n\r\n")
}

#[tokio::test]
async fn a_request_that_meets_the_end_of_its_connection_is_sent_again() {
    for (method, lines) in [
        ("GET", "x-own: 1\r\n"),
        ("HEAD", ""),
        ("DELETE", ""),
        ("PUT", "content-length: 0\r\n"),
    ] {
        let mut router = Distracted::start().await;
        let request = head(&format!("{method} /second"), lines);
        router
            .meanwhile(&request, async |service| drop(service))
            .await;
        let mut service = router.upstream.accept().await;
        let again = service.request().await;
        assert_eq!(again.start_line(), format!("{method} /second HTTP/1.1"));
        let own = (method == "GET").then_some("1");
        assert_eq!(again.header("x-own"), own);
        service.send(ok("connection: close\r\n")).await;
        let response = router.client.response(method).await.unwrap();
        assert_eq!(response.status, 200, "{method}");
        router.is_all().await;
    }
}

/// What was sent of a body is not kept, and a POST is not for a proxy to repeat (RFC 9110 section 9.2.2).
#[tokio::test]
async fn what_cannot_or_may_not_be_sent_again_is_502_if_it_meets_the_end_of_its_connection() {
    for (method, length, body) in [("PUT", 4, "body"), ("POST", 0, "")] {
        let mut router = Distracted::start().await;
        let lines = format!("content-length: {length}\r\n");
        let request = head(&format!("{method} /second"), &lines) + body;
        router
            .meanwhile(&request, async |service| drop(service))
            .await;
        let response = router.client.response(method).await.unwrap();
        assert_eq!(response.status, 502, "{method}");
        router.is_all().await;
    }
}

/// The connection ends as it does where an upstream closes it, but here somebody is still there to read.
#[tokio::test]
async fn a_request_that_an_upstream_reads_which_only_stopped_sending_is_not_sent_again() {
    for waits in [false, true] {
        let mut router = Distracted::start().await;
        let finish = async |mut service: Client| {
            service.finish().await;
            service
        };
        let mut service = router.meanwhile(&head("DELETE /second", ""), finish).await;
        let request = service.head().await;
        assert!(request.starts_with("DELETE /second "), "{request}");
        if !waits {
            drop(service);
        }
        let response = router.client.response("DELETE").await.unwrap();
        assert_eq!(response.status, 502);
        router.is_all().await;
    }
}

/// Where it has received anything, the upstream may have read it.
#[tokio::test]
async fn a_request_of_which_an_upstream_has_received_anything_is_not_sent_again() {
    for read in [0, 5, REQUEST.len()] {
        // Closes; stops sending and closes; resets; stops sending and resets.
        for (finishes, resets) in [(false, false), (true, false), (false, true), (true, true)] {
            let upstream = ByHand::start().await;
            let router = router_to(&upstream.url());
            let mut client = Client::connect(router.address).await;
            client.send(head("GET /first", "")).await;
            let mut service = upstream.accept().await;
            service.head().await;
            service.send(ok("")).await;
            assert_eq!(client.response("GET").await.unwrap().status, 200);

            client.send(head("GET /second", "")).await;
            let mut peeked = [0];
            assert_eq!(
                soon(service.0.get_ref().peek(&mut peeked)).await.unwrap(),
                1
            );
            // Past its buffer: what is left lies with the kernel.
            let mut part = vec![0; read];
            soon(service.0.get_mut().read_exact(&mut part))
                .await
                .unwrap();
            assert_eq!(part, REQUEST.as_bytes()[..read]);
            if finishes {
                service.finish().await;
            }
            match resets {
                true => service.reset(),
                false => drop(service),
            }
            let status = client.response("GET").await.unwrap().status;
            assert_eq!(status, 502, "{read} {finishes} {resets}");
            is_all(&upstream, router.address).await;
        }
    }
}

/// A reset comes before the request: nothing of it can be sent on that connection.
#[tokio::test]
async fn a_request_that_meets_a_reset_connection_is_sent_on_another() {
    let mut router = Distracted::start().await;
    let request = head("POST /second", "content-length: 4\r\n") + "body";
    router
        .meanwhile(&request, async |service| service.reset())
        .await;
    let mut service = router.upstream.accept().await;
    assert_eq!(service.request().await.text(), "body");
    service.send(ok("connection: close\r\n")).await;
    assert_eq!(router.client.response("POST").await.unwrap().status, 200);
    router.is_all().await;
}

#[tokio::test]
async fn a_request_is_sent_again_only_once() {
    for reset in [false, true] {
        let mut router = Distracted::start().await;
        router
            .meanwhile(&head("GET /second", ""), async |service| drop(service))
            .await;
        let service = router.upstream.accept().await;
        match reset {
            false => drop(service),
            true => service.reset(),
        }
        assert_eq!(router.client.response("GET").await.unwrap().status, 502);
        router.is_all().await;
    }
}

/// The upstream closes right behind its answer, a little later each time, so that its closing and the next
/// request meet everywhere. It closes both sides by `shutdown`, and so can tell what had come before.
#[tokio::test]
async fn what_had_not_come_when_its_connection_was_closed_is_sent_again_and_what_had_is_502() {
    const REQUESTS: u64 = 1500;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let router = router_to(&format!("http://{}", listener.local_addr().unwrap()));
    let upstream = std::thread::spawn(move || {
        let (mut answered, mut too_late) = (Vec::new(), Vec::new());
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            answered.extend(target_of_next(&mut stream));
            if answered.last().is_some_and(|target| target == "/end") {
                return (answered, too_late);
            }
            stream.write_all(ok("").as_bytes()).unwrap();
            let written = clock::now();
            while written.elapsed() < Duration::from_micros(answered.len() as u64 % 150) {
                std::hint::spin_loop();
            }
            stream.shutdown(Shutdown::Both).unwrap();
            too_late.extend(target_of_next(&mut stream));
        }
    });
    let mut client = Client::connect(router.address).await;
    let mut statuses = Vec::new();
    for i in 0..REQUESTS {
        let target = format!("/{i}");
        let request = head(&format!("GET {target}"), "");
        let status = client.roundtrip("GET", request).await.status;
        statuses.push((target, status));
    }
    while !upstream.is_finished() {
        let _end = client.roundtrip("GET", head("GET /end", "")).await;
    }
    let (answered, too_late) = upstream.join().unwrap();
    for (target, status) in statuses {
        let times = |seen: &[String]| seen.iter().filter(|seen| **seen == target).count();
        match (times(&answered), times(&too_late)) {
            (1, 0) => assert_eq!(status, 200, "{target}"),
            (0, 1) => assert_eq!(status, 502, "{target}"),
            seen => panic!("{target}: {seen:?}"),
        }
    }
}

/// The target of the request that comes next; `None` where the connection has ended.
fn target_of_next(stream: &mut std::net::TcpStream) -> Option<String> {
    let mut head = [0; 1024];
    let read = stream.read(&mut head).unwrap_or(0);
    let head = String::from_utf8_lossy(&head[..read]);
    Some(head.split(' ').nth(1)?.to_owned())
}
