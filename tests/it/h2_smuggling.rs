//! HTTP/2 requests that would be something else in HTTP/1.1: lengths of their own, line ends in names
//! and values, targets that are none. Nothing of them reaches an upstream, or exactly one proper request
//! does, with the body that was in the frames.
//!
//! They are made from tables, in all combinations of what is wrong, where it stands and what comes with
//! it. The upstream accepts nothing but proper HTTP/1.1, and behind each of them it gets an innocent
//! request, which has to get its own answer.

use serde_json::json;

use crate::support::{
    h2raw::{End, Raw, data, flag, head, pseudo},
    hpack::{Field, block},
    strict::{Message, Strict},
    *,
};

/// What may become of it.
#[derive(Clone, Copy)]
enum Fate {
    /// Nothing of it reaches anybody.
    Refused,
    /// It may be found out on the way, but nobody sees it whole.
    Cut,
    /// The same; but who has had so many bytes, which is what was announced, has a request.
    Announced(usize),
    /// Nobody sees it, or one proper request with its body.
    Either,
    /// The upstream gets it, and it is like that.
    Passes(fn(&Message) -> bool),
}

/// What comes behind the head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// Nothing: the head ends the stream.
    End,
    /// DATA.
    Data(&'static str),
    /// DATA that is a request in HTTP/1.1.
    Smuggled,
    /// DATA, and trailers.
    Trailers,
}

const SMUGGLED: &str =
    "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nx=1&y";

impl Then {
    fn body(self) -> &'static str {
        match self {
            Then::End => "",
            Then::Data(body) => body,
            Then::Smuggled => SMUGGLED,
            Then::Trailers => "hello",
        }
    }
}

struct Case {
    fields: Vec<Field>,
    then: Then,
    trailers: Vec<Field>,
    fate: Fate,
}

impl Case {
    fn new(fields: Vec<Field>, then: Then, fate: Fate) -> Case {
        Case {
            fields,
            then,
            trailers: vec![field("x-sum", "1")],
            fate,
        }
    }

    /// Its frames on stream 1.
    fn frames(&self) -> Vec<u8> {
        let mut frames = match self.then {
            Then::End => return head(1, flag::END_STREAM, coded(&self.fields)),
            _ => head(1, 0, coded(&self.fields)),
        };
        match self.then {
            Then::Trailers => {
                frames.extend(data(1, 0, self.then.body()));
                frames.extend(head(1, flag::END_STREAM, coded(&self.trailers)));
            }
            then => frames.extend(data(1, flag::END_STREAM, then.body())),
        }
        frames
    }

    fn describe(&self) -> String {
        let show = |fields: &[Field]| {
            let shown = fields.iter().map(|(name, value)| {
                let value = value[..value.len().min(80)].escape_ascii();
                format!("{}={value}", name.escape_ascii())
            });
            shown.collect::<Vec<_>>().join(" ")
        };
        let mut text = format!("{} then {:?}", show(&self.fields), self.then);
        if self.then == Then::Trailers {
            text += &format!(" {}", show(&self.trailers));
        }
        text
    }
}

fn coded(fields: &[Field]) -> Vec<u8> {
    block(fields.iter().map(|(name, value)| (name, value)))
}

fn field(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Field {
    (name.as_ref().to_vec(), value.as_ref().to_vec())
}

/// A proper head, to be spoilt.
fn proper(then: Then) -> Vec<Field> {
    let method = match then {
        Then::End => "GET",
        _ => "POST",
    };
    let pseudo = pseudo(method, "/front");
    pseudo.map(|(name, value)| field(name, value)).to_vec()
}

/// The head with this field behind the others.
fn with(then: Then, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<Field> {
    let mut fields = proper(then);
    fields.push(field(name, value));
    fields
}

/// The head with another value of a pseudo-header field.
fn instead(then: Then, name: &str, value: impl AsRef<[u8]>) -> Vec<Field> {
    let mut fields = proper(then);
    for (n, v) in &mut fields {
        if n == name.as_bytes() {
            *v = value.as_ref().to_vec();
        }
    }
    fields
}

/// The head without a pseudo-header field.
fn without(then: Then, name: &str) -> Vec<Field> {
    let mut fields = proper(then);
    fields.retain(|(n, _)| n != name.as_bytes());
    fields
}

/// `bad` before, within and behind `good`.
fn placed(good: &str, bad: &[u8]) -> [Vec<u8>; 3] {
    let (first, second) = good.as_bytes().split_at(good.len() / 2 + 1);
    [
        [bad, first, second].concat(),
        [first, bad, second].concat(),
        [first, second, bad].concat(),
    ]
}

/// What is wrong with what a service got: these bytes and these requests, one of which is innocent.
fn judge(
    case: &Case,
    fate: Fate,
    innocent: &str,
    bytes: &[u8],
    seen: &[Message],
) -> Result<bool, String> {
    let start = format!("GET {innocent} HTTP/1.1\r\n");
    let ends = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let only_the_innocent = bytes.starts_with(start.as_bytes()) && ends == Some(bytes.len() - 4);
    let others: Vec<_> = seen
        .iter()
        .filter(|seen| seen.target() != innocent.as_bytes())
        .collect();
    if seen.len() - others.len() != 1 {
        return Err("the innocent request was lost, or doubled".into());
    }
    match (fate, &others[..]) {
        (Fate::Refused, _) if !only_the_innocent => Err("bytes of it arrived".into()),
        (Fate::Refused | Fate::Cut | Fate::Announced(_) | Fate::Either, []) => Ok(false),
        (Fate::Announced(length), [message]) => {
            match message.body == case.then.body().as_bytes()[..length] {
                true => Ok(false),
                false => Err("the body is another".into()),
            }
        }
        (Fate::Cut, _) => Err("it arrived as if it were whole".into()),
        (Fate::Passes(_), []) => Err("it did not arrive".into()),
        (Fate::Either | Fate::Passes(_), [message]) => {
            if message.body != case.then.body().as_bytes() {
                return Err("the body is another".into());
            }
            if let Some((name, _)) = foreign(message) {
                return Err(format!("{name} arrived"));
            }
            match fate {
                Fate::Passes(fits) if !fits(message) => Err("it is not as it has to be".into()),
                _ => Ok(true),
            }
        }
        _ => Err("more arrived than was sent".into()),
    }
}

/// A field that belongs to a connection, or may not stand where it does, or was made of another's value.
fn foreign(message: &Message) -> Option<&(String, Vec<u8>)> {
    let of_connections = [
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "http2-settings",
        "x-injected",
    ];
    let not_in_trailers = [
        "content-length",
        "transfer-encoding",
        "host",
        "connection",
        "te",
        "trailer",
        "authorization",
        "cookie",
        "content-type",
        "expect",
        "x-canary",
    ];
    let name = |(name, _): &&(String, Vec<u8>)| {
        name.starts_with(':') || of_connections.contains(&name.as_str())
    };
    let in_trailers =
        |field: &&(String, Vec<u8>)| name(field) || not_in_trailers.contains(&field.0.as_str());
    let in_head = message.fields.iter().find(name);
    in_head.or(message.trailers.iter().find(in_trailers))
}

/// Sends each, and an innocent request behind each.
async fn hold(cases: &[Case], with_sidecar: bool) {
    let upstream = Strict::start(200).await;
    let sidecar = Strict::start(204).await;
    let mut services = vec![&upstream];
    let mut config = json!({"router-server": {"read-timeout": "5s", "write-timeout": "5s"}});
    if with_sidecar {
        config["sidecar-url"] = sidecar.url().into();
        services.push(&sidecar);
    }
    let router = router_with(&upstream.url(), config);
    let mut wrong = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let mut raw = Raw::client(router.address).await;
        raw.sends(case.frames()).await;
        let answer = raw.answer(1).await;
        let answered = format!("answered {} {:?}", answer.status, answer.end);

        // On the same connection, if it is still one.
        let innocent = format!("/innocent/{i}");
        let mut after = raw.get(3, &innocent).await;
        if matches!(after.end, End::GoAway(_) | End::Closed) {
            after = Raw::client(router.address).await.get(1, &innocent).await;
        }
        let mut whys = Vec::new();
        if (after.status, after.end, &*after.text()) != (200, End::Whole, &*innocent) {
            whys.push(format!("{} {:?} behind it", after.status, after.end));
        }
        let mut arrived = false;
        for (i, service) in services.iter().enumerate() {
            let fate = match (case.fate, i) {
                // It is not told the trailers.
                (Fate::Passes(_), 1) => Fate::Passes(|_| true),
                (fate, _) => fate,
            };
            let seen = service.take();
            match judge(case, fate, &innocent, &service.take_bytes(), &seen) {
                Ok(came) => arrived |= came,
                Err(why) => whys.push(format!("{why}: {seen:?}")),
            }
            whys.extend(service.take_wrong());
        }
        let refused = match answer.end {
            End::Whole => matches!(answer.status, 400..=499 | 501),
            End::Reset(_) | End::GoAway(_) | End::Closed => true,
        };
        let fits = match arrived {
            true => (answer.status, answer.end) == (200, End::Whole),
            false => refused,
        };
        if !fits {
            whys.push("that is no answer to it".to_owned());
        }
        if !whys.is_empty() {
            wrong.push(format!(
                "{}\n    {answered}; {}",
                case.describe(),
                whys.join("; ")
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

async fn hold_both(cases: Vec<Case>, at_least: usize) {
    assert!(cases.len() >= at_least, "{} cases", cases.len());
    for with_sidecar in [false, true] {
        hold(&cases, with_sidecar).await;
    }
}

const BODIES: [Then; 4] = [
    Then::End,
    Then::Data("hello"),
    Then::Smuggled,
    Then::Trailers,
];

/// What ends a line, or a field, or a request in HTTP/1.1, or looks as if.
const ENDS: [&[u8]; 6] = [
    b"\r",
    b"\n",
    b"\0",
    b"\r\n",
    b"\r\nx-injected: 1",
    b"\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n",
];

#[tokio::test]
async fn line_ends_in_values_reach_nobody() {
    let mut cases = Vec::new();
    let places: [(&str, &str); 7] = [
        ("x-a", "abc"),
        ("cookie", "a=b"),
        ("host", "client.example"),
        ("content-type", "text/plain"),
        ("te", "trailers"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-canary", "true"),
    ];
    for then in BODIES {
        for (name, good) in places {
            for value in ENDS.iter().flat_map(|bad| placed(good, bad)) {
                cases.push(Case::new(with(then, name, value), then, Fate::Refused));
            }
        }
    }
    hold_both(cases, 500).await;
}

#[tokio::test]
async fn line_ends_in_names_reach_nobody() {
    let mut cases = Vec::new();
    for then in BODIES {
        for name in ENDS.iter().flat_map(|bad| placed("x-a", bad)) {
            cases.push(Case::new(with(then, name, "b"), then, Fate::Refused));
        }
    }
    hold_both(cases, 72).await;
}

#[tokio::test]
async fn line_ends_in_pseudo_header_fields_reach_nobody() {
    let mut cases = Vec::new();
    let places = [
        (":method", "POST"),
        (":path", "/front"),
        (":path", "/front?a=b"),
        (":authority", "client.example"),
        (":scheme", "http"),
    ];
    let requests: [&[u8]; 2] = [
        b" HTTP/1.1\r\nhost: h\r\n\r\nGET /smuggled",
        b" HTTP/1.1\r\nx-injected: 1\r\nx: ",
    ];
    for then in BODIES {
        for (name, good) in places {
            let bad = ENDS.iter().chain(&requests);
            for value in bad.flat_map(|bad| placed(good, bad)) {
                cases.push(Case::new(instead(then, name, value), then, Fate::Refused));
            }
        }
    }
    hold_both(cases, 480).await;
}

#[tokio::test]
async fn names_that_are_none_reach_nobody() {
    let mut cases = Vec::new();
    let bad = [
        ":", " ", "\t", "(", ")", "<", ">", "@", ",", ";", "\\", "\"", "/", "[", "]", "?", "=",
        "{", "}", "A", "Z", "\x01", "\x1b", "\x7f", "\u{e4}",
    ];
    for then in [Then::End, Then::Data("hello")] {
        for name in bad.iter().flat_map(|bad| placed("x-a", bad.as_bytes())) {
            cases.push(Case::new(with(then, name, "b"), then, Fate::Refused));
        }
        for name in [
            "",
            ":",
            "X-A",
            "x-A",
            "Host",
            "Content-Length",
            "TRANSFER-ENCODING",
            "Cookie",
            "transfer-encoding ",
            " transfer-encoding",
            "transfer-encoding:",
            "transfer\u{2d}encoding\t",
            "content-length:",
            "content-length ",
        ] {
            cases.push(Case::new(with(then, name, "5"), then, Fate::Refused));
        }
    }
    hold_both(cases, 150).await;
}

#[tokio::test]
async fn fields_of_a_connection_reach_nobody() {
    let mut cases = Vec::new();
    let fields = [
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "Chunked"),
        ("transfer-encoding", "gzip, chunked"),
        ("transfer-encoding", "identity"),
        ("transfer-encoding", ""),
        ("connection", "close"),
        ("connection", "keep-alive"),
        ("connection", "x-a"),
        ("connection", "content-length"),
        ("connection", "upgrade"),
        ("connection", ""),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("upgrade", "h2c"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
        ("te", "chunked"),
        ("te", "trailers;q=0.5, chunked"),
    ];
    for then in BODIES {
        for (name, value) in fields {
            cases.push(Case::new(with(then, name, value), then, Fate::Refused));
            // With a length that is right, besides.
            let mut both = with(then, "content-length", then.body().len().to_string());
            both.push(field(name, value));
            cases.push(Case::new(both, then, Fate::Refused));
        }
    }
    hold_both(cases, 150).await;
}

#[tokio::test]
async fn lengths_that_are_not_that_of_the_data_reach_nobody() {
    let mut cases = Vec::new();
    let bodies = [
        Then::Data("hello"),
        Then::Data("a longer one"),
        Then::Smuggled,
        Then::Trailers,
    ];
    for then in bodies {
        let right = then.body().len();
        for length in [0, 1, right - 1, right + 1, right + 100, 1 << 40] {
            let fields = with(then, "content-length", length.to_string());
            let fate = match length < right {
                true => Fate::Announced(length),
                false => Fate::Cut,
            };
            cases.push(Case::new(fields, then, fate));
        }
    }
    for length in ["1", "5", "99999"] {
        // That is known as soon as the head is.
        let fields = with(Then::End, "content-length", length);
        cases.push(Case::new(fields, Then::End, Fate::Refused));
    }
    hold_both(cases, 27).await;
}

#[tokio::test]
async fn lengths_that_are_none_reach_nobody() {
    let mut cases = Vec::new();
    let lengths = [
        "",
        "x",
        "+5",
        "-5",
        "0x5",
        "5x",
        "5.0",
        "5e0",
        "5,5",
        "5, 5",
        "5;",
        "5 5",
        "\u{b2}",
        "18446744073709551621",
        "99999999999999999999999",
        "5\t5",
        "-0",
        "five",
    ];
    for then in [
        Then::Data("hello"),
        Then::Trailers,
        Then::Smuggled,
        Then::End,
    ] {
        for length in lengths {
            let fields = with(then, "content-length", length);
            cases.push(Case::new(fields, then, Fate::Refused));
        }
        // Two of them, of which none or one is right.
        for (first, second) in [("5", "6"), ("6", "5"), ("4", "6"), ("5", ""), ("0", "5")] {
            let mut fields = with(then, "content-length", first);
            fields.push(field("content-length", second));
            cases.push(Case::new(fields, then, Fate::Refused));
        }
    }
    hold_both(cases, 90).await;
}

#[tokio::test]
async fn a_length_that_is_right_arrives_once() {
    fn framed_once(message: &Message) -> bool {
        message.all("content-length").len() + message.all("transfer-encoding").len() <= 1
    }
    let mut cases = Vec::new();
    for then in BODIES {
        let length = then.body().len().to_string();
        // What follows a body that has a length is a trailer only in chunks.
        let fields = with(then, "content-length", &length);
        cases.push(Case::new(fields, then, Fate::Passes(framed_once)));
        cases.push(Case::new(proper(then), then, Fate::Passes(framed_once)));
        let mut twice = with(then, "content-length", &length);
        twice.push(field("content-length", &length));
        cases.push(Case::new(twice, then, Fate::Either));
        for blank in [" ", "\t"] {
            for value in [format!("{length}{blank}"), format!("{blank}{length}")] {
                let fields = with(then, "content-length", value);
                cases.push(Case::new(fields, then, Fate::Either));
            }
        }
    }
    hold_both(cases, 28).await;
}

#[tokio::test]
async fn authorities_that_are_none_reach_nobody() {
    let mut cases = Vec::new();
    let authorities = [
        "user@client.example",
        "user:password@client.example",
        "@client.example",
        "client.example@evil.example",
        "client example",
        " client.example",
        "client.example ",
        "client.example\t",
        "client.example/path",
        "client.example?query",
        "client.example#fragment",
        "client.example\\path",
        "client.example:",
        "client.example:x",
        "client.example:-1",
        "client.example:65536",
        "client.example:80:80",
        "http://client.example",
        "[::1",
        "::1]",
        "[::1]x",
        "<client.example>",
        "\"client.example\"",
        "client.example\u{7f}",
        "a,b",
    ];
    // The port that is none is one that is left out (RFC 3986 section 3.2.3), and a comma may stand in a name.
    let odd = ["client.example:", "a,b"];
    for then in [Then::End, Then::Data("hello"), Then::Trailers] {
        for authority in authorities {
            let fate = match odd.contains(&authority) {
                true => Fate::Either,
                false => Fate::Refused,
            };
            let fields = instead(then, ":authority", authority);
            cases.push(Case::new(fields, then, fate));
            let mut fields = without(then, ":authority");
            fields.push(field("host", authority));
            cases.push(Case::new(fields, then, fate));
        }
        // Two that have to agree.
        for host in [
            "evil.example",
            "client.example:81",
            "",
            "client.example, evil.example",
        ] {
            cases.push(Case::new(with(then, "host", host), then, Fate::Either));
        }
        cases.push(Case::new(
            with(then, "host", "client.example"),
            then,
            Fate::Passes(|message| message.all("host").len() == 1),
        ));
        for hosts in [["client.example", "evil.example"], ["client.example"; 2]] {
            let mut fields = with(then, "host", hosts[0]);
            fields.push(field("host", hosts[1]));
            cases.push(Case::new(fields.clone(), then, Fate::Refused));
            fields.retain(|(name, _)| name != b":authority");
            cases.push(Case::new(fields, then, Fate::Refused));
        }
        for fields in [without(then, ":authority"), instead(then, ":authority", "")] {
            cases.push(Case::new(fields, then, Fate::Either));
        }
    }
    hold_both(cases, 170).await;
}

#[tokio::test]
async fn targets_that_are_none_reach_nobody() {
    let mut cases = Vec::new();
    let paths = [
        "",
        "front",
        "?front",
        " /front",
        "/front ",
        "/fro nt",
        "/fro\tnt",
        "/front HTTP/1.1",
        "/front HTTP/1.0",
        "*",
        "**",
        "http://evil.example/front",
        "http:/front",
        "client.example/front",
        "client.example:80",
        "\\front",
        "/front\u{7f}",
        "/front\x01",
        "/front\x1b",
    ];
    for then in BODIES {
        for path in paths {
            let fields = instead(then, ":path", path);
            cases.push(Case::new(fields, then, Fate::Refused));
        }
        // What others make of them is their business, but a service has to get them as they are, or not.
        for path in [
            "/front#fragment",
            "/front?a#b",
            "/fr\u{f6}nt",
            "/<front>",
            "/\"",
            "/fr|nt",
        ] {
            let fields = instead(then, ":path", path);
            cases.push(Case::new(fields, then, Fate::Either));
        }
    }
    hold_both(cases, 100).await;
}

#[tokio::test]
async fn odd_targets_that_are_some_arrive_as_they_are() {
    type Fits = fn(&Message) -> bool;
    fn is(message: &Message, target: &str) -> bool {
        message.target() == target.as_bytes()
    }
    let mut cases = Vec::new();
    let targets: [(&str, Fits); 8] = [
        ("//evil.example/", |m| is(m, "//evil.example/")),
        ("/a/../b", |m| is(m, "/a/../b")),
        ("/%0d%0ax-injected:%201", |m| {
            is(m, "/%0d%0ax-injected:%201")
        }),
        ("/%00", |m| is(m, "/%00")),
        ("/%2f%2F", |m| is(m, "/%2f%2F")),
        ("/a?b?c=http://d/", |m| is(m, "/a?b?c=http://d/")),
        ("/?", |m| is(m, "/?")),
        ("/:80/@", |m| is(m, "/:80/@")),
    ];
    for then in BODIES {
        for (target, fits) in targets {
            let fields = instead(then, ":path", target);
            cases.push(Case::new(fields, then, Fate::Passes(fits)));
        }
    }
    hold_both(cases, 32).await;
}

#[tokio::test]
async fn methods_that_are_none_reach_nobody() {
    let mut cases = Vec::new();
    let methods = [
        "",
        "GE T",
        " GET",
        "GET ",
        "GET\t",
        "GET /smuggled HTTP/1.1",
        "G(T",
        "G:T",
        "G/T",
        "\"GET\"",
        "G\u{cb}T",
        "GET\u{7f}",
        // Those are some, and are not for us (405).
        "CONNECT",
        "TRACE",
    ];
    for then in BODIES {
        for method in methods {
            let fields = instead(then, ":method", method);
            cases.push(Case::new(fields, then, Fate::Refused));
        }
        for method in ["get", "PRI", "M-SEARCH", "!#$%&'*+-.^_`|~"] {
            let fields = instead(then, ":method", method);
            cases.push(Case::new(fields, then, Fate::Either));
        }
    }
    hold_both(cases, 72).await;
}

#[tokio::test]
async fn pseudo_header_fields_out_of_place_reach_nobody() {
    let mut cases = Vec::new();
    let names = [":method", ":scheme", ":path", ":authority"];
    for then in BODIES {
        let mut refused = |fields| cases.push(Case::new(fields, then, Fate::Refused));
        let value = |name: &str| {
            let fields = proper(then);
            let of_this_name = fields.into_iter().find(|(n, _)| n == name.as_bytes());
            of_this_name.expect("it is proper").1
        };
        for name in names {
            // Twice, the same or another; in front, or late.
            refused(with(then, name, value(name)));
            refused(with(then, name, "/smuggled"));
            let mut doubled = proper(then);
            doubled.insert(0, field(name, "GET"));
            refused(doubled);
            let mut late = without(then, name);
            late.push(field("x-a", "b"));
            late.push(field(name, value(name)));
            refused(late);
            if name != ":authority" {
                refused(without(then, name));
            }
        }
        for name in [":status", ":x", ":", "::", ":host", ":Path", ":path "] {
            refused(with(then, name, "200"));
            let mut first = proper(then);
            first.insert(0, field(name, "200"));
            refused(first);
        }
        // RFC 8441 has it for CONNECT.
        refused({
            let mut fields = proper(then);
            fields.insert(0, field(":protocol", "websocket"));
            fields
        });
        refused(vec![field("x-a", "b")]);
        refused(vec![field(":method", "GET")]);
    }
    hold_both(cases, 140).await;
}

#[tokio::test]
async fn schemes_do_not_make_another_request() {
    let mut cases = Vec::new();
    for then in BODIES {
        for scheme in [
            "",
            "ht tp",
            "http://evil.example/?",
            "ftp",
            "javascript",
            "HTTP",
            "https",
            "h:p",
        ] {
            let fields = instead(then, ":scheme", scheme);
            cases.push(Case::new(fields, then, Fate::Either));
        }
    }
    hold_both(cases, 32).await;
}

#[tokio::test]
async fn crumbs_of_a_cookie_arrive_as_one() {
    let mut cases = Vec::new();
    for then in BODIES {
        let mut fields = with(then, "cookie", "a=1");
        fields.push(field("x-a", "b"));
        fields.push(field("cookie", "b=2"));
        fields.push(field("cookie", "c=3; d=4"));
        cases.push(Case::new(
            fields,
            then,
            Fate::Passes(|message| message.all("cookie") == [b"a=1; b=2; c=3; d=4"]),
        ));
        let mut crumbs = proper(then);
        crumbs.extend((0..300).map(|i| field("cookie", format!("c{i}={i}"))));
        cases.push(Case::new(
            crumbs,
            then,
            Fate::Passes(|message| {
                let crumbs: Vec<_> = (0..300).map(|i| format!("c{i}={i}")).collect();
                message.all("cookie") == [crumbs.join("; ").as_bytes()]
            }),
        ));
    }
    hold_both(cases, 8).await;
}

#[tokio::test]
async fn blanks_around_values_make_no_other_value() {
    fn trimmed(message: &Message) -> bool {
        message.all("x-a") == [b"b"] && message.all("x-c") == [b"d"]
    }
    let mut cases = Vec::new();
    for then in BODIES {
        for value in [" b", "b ", "\tb", "b\t", " \t b \t "] {
            let mut fields = with(then, "x-a", value);
            fields.push(field("x-c", "d"));
            // Who takes it takes it without them; RFC 9113 section 8.2.1 has it refused.
            cases.push(Case::new(fields, then, Fate::Either));
        }
        let mut fields = with(then, "x-a", "b");
        fields.push(field("x-c", "d"));
        cases.push(Case::new(fields, then, Fate::Passes(trimmed)));
    }
    hold_both(cases, 24).await;
}

#[tokio::test]
async fn te_and_expect_are_as_in_http_1() {
    let mut cases = Vec::new();
    for then in BODIES {
        cases.push(Case::new(
            with(then, "te", "trailers"),
            then,
            Fate::Passes(|message| message.all("te") == [b"trailers"]),
        ));
        cases.push(Case::new(
            with(then, "expect", "100-continue"),
            then,
            Fate::Passes(|_| true),
        ));
        cases.push(Case::new(with(then, "expect", "x"), then, Fate::Either));
    }
    hold_both(cases, 12).await;
}

#[tokio::test]
async fn trailers_that_are_none_reach_nobody() {
    let mut cases = Vec::new();
    let mut trailers = |name: &[u8], value: &[u8], fate| {
        let mut case = Case::new(proper(Then::Trailers), Then::Trailers, fate);
        case.trailers.push(field(name, value));
        cases.push(case);
    };
    for bad in ENDS {
        for value in placed("abc", bad) {
            trailers(b"x-a", &value, Fate::Cut);
        }
        for name in placed("x-a", bad) {
            trailers(&name, b"b", Fate::Cut);
        }
    }
    for name in [
        ":method", ":path", ":status", ":x", "X-A", "x a", "x:a", "", "x-a:", "x\"a",
    ] {
        trailers(name.as_bytes(), b"b", Fate::Cut);
    }
    // Those are left out, or all is refused.
    for (name, value) in [
        ("content-length", "5"),
        ("content-length", "6"),
        ("transfer-encoding", "chunked"),
        ("host", "evil.example"),
        ("connection", "close"),
        ("te", "trailers"),
        ("trailer", "x-a"),
        ("upgrade", "h2c"),
        ("keep-alive", "timeout=5"),
        ("authorization", "Basic x"),
        ("cookie", "a=b"),
        ("content-type", "text/plain"),
        ("expect", "100-continue"),
        ("x-canary", "true"),
    ] {
        trailers(name.as_bytes(), value.as_bytes(), Fate::Either);
    }
    // And those that are some arrive.
    let mut good = Case::new(
        proper(Then::Trailers),
        Then::Trailers,
        Fate::Passes(|message| {
            let of = |(name, value): &(String, Vec<u8>)| {
                format!("{name}={}", String::from_utf8_lossy(value))
            };
            let trailers: Vec<_> = message.trailers.iter().map(of).collect();
            trailers == ["x-sum=1", "x-more=2"]
        }),
    );
    good.trailers.push(field("x-more", "2"));
    cases.push(good);
    hold_both(cases, 60).await;
}

/// What is refused for its size is not forwarded in part.
#[tokio::test]
async fn heads_that_are_too_large_reach_nobody() {
    let mut cases = Vec::new();
    for then in BODIES {
        let long = "x".repeat(70_000);
        cases.push(Case::new(with(then, "x-a", &long), then, Fate::Refused));
        let path = format!("/{long}");
        cases.push(Case::new(instead(then, ":path", path), then, Fate::Refused));
        let mut many = proper(then);
        many.extend((0..9_000).map(|i| field(format!("x-{i}"), "")));
        cases.push(Case::new(many, then, Fate::Refused));
    }
    hold_both(cases, 12).await;
}
