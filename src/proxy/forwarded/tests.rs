use bytes::BytesMut;
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::proxy::fields::tests::fields;

const PROXIES: [&str; 3] = ["10.0.0.0/8", "192.0.2.1/32", "2001:db8:1::/48"];

fn trusted() -> Vec<IpNet> {
    PROXIES.map(|network| network.parse().unwrap()).to_vec()
}

fn peer(address: &str, secure: bool) -> Peer {
    Peer::new(address.parse().unwrap(), secure)
}

/// Client, scheme, host (or "-") and port of a request from there.
fn origin_of(peer: &Peer, lines: &[(&str, &str)]) -> [String; 4] {
    let headers = fields(lines);
    let origin = origin(&headers, peer, &trusted());
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    [
        origin.client.to_string(),
        text(origin.proto),
        text(origin.host.unwrap_or(b"-")),
        text(origin.port),
    ]
}

fn client_of(lines: &[(&str, &str)]) -> String {
    let [client, ..] = origin_of(&peer("10.0.0.1", false), lines);
    client
}

fn written(peer: &Peer, lines: &[(&str, &str)]) -> String {
    let headers = fields(lines);
    let mut out = BytesMut::new();
    let origin = origin(&headers, peer, &trusted());
    put_forwarded(&headers, peer, &origin, &mut out);
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn of_a_peer_that_is_not_trusted_only_host_counts() {
    let lies = [
        ("x-forwarded-for", "198.51.100.1"),
        ("x-forwarded-proto", "wss"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-port", "1"),
        (
            "forwarded",
            "for=198.51.100.2;proto=gopher;host=evil.example",
        ),
    ];
    for (secure, host, expected) in [
        (false, Some("a.example"), ["http", "a.example", "80"]),
        (true, Some("a.example"), ["https", "a.example", "443"]),
        (
            true,
            Some("a.example:8443"),
            ["https", "a.example:8443", "8443"],
        ),
        (
            false,
            Some("[2001:db8::1]"),
            ["http", "[2001:db8::1]", "80"],
        ),
        (
            false,
            Some("[2001:db8::1]:81"),
            ["http", "[2001:db8::1]:81", "81"],
        ),
        (false, Some("a.example:"), ["http", "a.example:", "80"]),
        (false, Some(""), ["http", "-", "80"]),
        (true, None, ["https", "-", "443"]),
    ] {
        let peer = peer("203.0.113.7", secure);
        let mut lines: Vec<_> = host.map(|host| ("host", host)).into_iter().collect();
        let honest = origin_of(&peer, &lines);
        assert_eq!(honest[0], "203.0.113.7");
        assert_eq!(honest[1..], expected);
        lines.extend(lies);
        assert_eq!(origin_of(&peer, &lines), honest);
    }
}

#[test]
fn what_is_not_believed_is_not_passed_on() {
    let lines = [
        ("a", "1"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "h"),
        ("x-forwarded-port", "1"),
        ("forwarded", "for=1.2.3.4"),
    ];
    for (address, expected) in [
        ("203.0.113.7", "a: 1\r\n"),
        ("10.0.0.1", "a: 1\r\nforwarded: for=1.2.3.4\r\n"),
    ] {
        let mut out = BytesMut::new();
        let (headers, peer) = (fields(&lines), peer(address, false));
        let origin = origin(&headers, &peer, &trusted());
        headers.put_without(origin.replaced(), &mut out);
        assert_eq!(out, expected);
    }
}

#[test]
fn the_client_is_the_last_one_that_is_no_proxy_of_ours() {
    for (lines, client) in [
        (&[][..], "10.0.0.1"),
        (&["198.51.100.1"], "198.51.100.1"),
        (&["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        (
            &["1.1.1.1, 198.51.100.1, 10.1.1.1,192.0.2.1"],
            "198.51.100.1",
        ),
        (
            &["1.1.1.1", "198.51.100.1, 10.1.1.1", "192.0.2.1"],
            "198.51.100.1",
        ),
        (&["1.1.1.1", "10.1.1.1"], "1.1.1.1"),
        // All of them are ours.
        (&["10.3.3.3, 10.2.2.2", "10.1.1.1"], "10.3.3.3"),
        // Lists may have empty members, and blanks (RFC 9110 section 5.6.1).
        (&[" ,, 198.51.100.1 \t, , 10.1.1.1 ,", ","], "198.51.100.1"),
        (&[""], "10.0.0.1"),
        (&["", " , "], "10.0.0.1"),
        // With ports, and IPv6.
        (&["198.51.100.1:1234"], "198.51.100.1"),
        (&["198.51.100.1, 10.1.1.1:80"], "198.51.100.1"),
        (&["2001:db8::1"], "2001:db8::1"),
        (&["2001:DB8:0::1"], "2001:db8::1"),
        (&["[2001:db8::1]"], "2001:db8::1"),
        (&["[2001:db8::1]:443"], "2001:db8::1"),
        (&["198.51.100.1, 2001:db8:1::7"], "198.51.100.1"),
        (&["198.51.100.1, [2001:db8:1::7]:1"], "198.51.100.1"),
        // An IPv4 address is one however it is written.
        (&["::ffff:198.51.100.1"], "198.51.100.1"),
        (&["198.51.100.1, ::ffff:10.1.1.1"], "198.51.100.1"),
        (&["198.51.100.1, [::ffff:a01:101]:80"], "198.51.100.1"),
    ] {
        let lines: Vec<_> = lines
            .iter()
            .map(|line| ("X-Forwarded-For", *line))
            .collect();
        assert_eq!(client_of(&lines), client, "{lines:?}");
    }
}

#[test]
fn what_is_no_address_ends_the_walk() {
    for garbage in [
        "unknown",
        "_hidden",
        "example.org",
        "198.51.100",
        "198.51.100.01",
        "198.51.100.1:",
        "198.51.100.1:x",
        "198.51.100.1:123456",
        "198.51.100.1:+1",
        "198.51.100.1 10.1.1.1",
        "[198.51.100.1]",
        "[2001:db8::1",
        "[2001:db8::1]x",
        "[2001:db8::1]:",
        "2001:db8::1]",
        "fe80::1%eth0",
        "\"198.51.100.1\"",
        "\u{e4}",
        "::1::",
        ":80",
        "[]",
        "127.0.0.1/8",
    ] {
        let line = |value| client_of(&[("x-forwarded-for", value)]);
        assert_eq!(line(garbage), "10.0.0.1", "{garbage}");
        let behind = format!("198.51.100.9, {garbage}");
        assert_eq!(line(&behind), "10.0.0.1", "{garbage}");
        let before = format!("198.51.100.9, {garbage}, 10.2.2.2, 10.1.1.1");
        assert_eq!(line(&before), "10.2.2.2", "{garbage}");
        let far_before = format!("{garbage}, 198.51.100.9, 10.1.1.1");
        assert_eq!(line(&far_before), "198.51.100.9", "{garbage}");
    }
}

#[test]
fn a_trusted_peer_is_believed_and_completed() {
    let all = |lines: &[_]| {
        let lines = [&[("host", "a.example:81")], lines].concat();
        let [_, rest @ ..] = origin_of(&peer("10.0.0.1", false), &lines);
        rest.join(" ")
    };
    for (lines, expected) in [
        (&[][..], "http a.example:81 81"),
        (&[("x-forwarded-proto", "https")], "https a.example:81 81"),
        (&[("x-forwarded-proto", "HTTPS")], "HTTPS a.example:81 81"),
        (&[("x-forwarded-host", "b.example")], "http b.example 80"),
        (
            &[("x-forwarded-host", "b.example:82")],
            "http b.example:82 82",
        ),
        (
            &[("x-forwarded-host", "2001:db8::82")],
            "http 2001:db8::82 80",
        ),
        (&[("x-forwarded-port", "83")], "http a.example:81 83"),
        (
            &[
                ("x-forwarded-host", "b.example"),
                ("x-forwarded-proto", "https"),
            ],
            "https b.example 443",
        ),
        (
            &[
                ("x-forwarded-host", "b.example"),
                ("x-forwarded-proto", "WSS"),
            ],
            "WSS b.example 443",
        ),
        (
            &[
                ("x-forwarded-host", "b.example"),
                ("x-forwarded-proto", "x"),
            ],
            "x b.example 80",
        ),
        (
            &[
                ("X-Forwarded-Port", "83"),
                ("X-Forwarded-Host", "b.example:82"),
                ("X-Forwarded-Proto", "https"),
            ],
            "https b.example:82 83",
        ),
        // Host and port are passed as they are; a scheme is a token.
        (&[("x-forwarded-host", "a b, c/d")], "http a b, c/d 80"),
        (&[("x-forwarded-port", "many")], "http a.example:81 many"),
        (
            &[("x-forwarded-proto", "https, http")],
            "http a.example:81 81",
        ),
        (&[("x-forwarded-proto", "https:")], "http a.example:81 81"),
        (&[("x-forwarded-proto", "\u{e4}")], "http a.example:81 81"),
        // Empty is missing.
        (
            &[
                ("x-forwarded-proto", ""),
                ("x-forwarded-host", ""),
                ("x-forwarded-port", ""),
            ],
            "http a.example:81 81",
        ),
        // Of two lines nobody knows who wrote which.
        (
            &[
                ("x-forwarded-proto", "https"),
                ("x-forwarded-proto", "https"),
            ],
            "http a.example:81 81",
        ),
        (
            &[("x-forwarded-host", "b"), ("x-forwarded-host", "c")],
            "http a.example:81 81",
        ),
        (
            &[("x-forwarded-port", "1"), ("x-forwarded-port", "2")],
            "http a.example:81 81",
        ),
    ] {
        assert_eq!(all(lines), expected, "{lines:?}");
    }
    // Our own TLS is what we know for ourselves.
    let secure = origin_of(&peer("10.0.0.1", true), &[("x-forwarded-proto", " ")]);
    assert_eq!(secure, ["10.0.0.1", "https", "-", "443"]);
}

#[test]
fn forwarded_says_what_x_forwarded_does_not() {
    for (lines, expected) in [
        (&["for=198.51.100.1"][..], "198.51.100.1 http a.example 80"),
        (
            &["for=198.51.100.1;proto=https;host=b.example;by=10.0.0.1"],
            "198.51.100.1 https b.example 443",
        ),
        (
            &["By=_x ; HOST=\"b.example:82\" ;Proto=\"https\"; For=\"198.51.100.1:99\""],
            "198.51.100.1 https b.example:82 82",
        ),
        (
            &["for=\"[2001:db8::1]:_port\""],
            "2001:db8::1 http a.example 80",
        ),
        (&["for=\"[2001:db8::1]\""], "2001:db8::1 http a.example 80"),
        // Not quoted, as it ought to be.
        (&["for=198.51.100.1:99"], "198.51.100.1 http a.example 80"),
        (&["for=[2001:db8::1]:99"], "2001:db8::1 http a.example 80"),
        (&["for=1.1.1.1;host=b:82"], "1.1.1.1 http b:82 82"),
        // The walk is that of X-Forwarded-For, and its end says the rest.
        (
            &["for=1.1.1.1;proto=a, for=2.2.2.2;proto=b, for=10.1.1.1;proto=c"],
            "2.2.2.2 b a.example 80",
        ),
        (
            &[
                "for=1.1.1.1;proto=a,for=2.2.2.2;host=b",
                "for=10.1.1.1;proto=c",
            ],
            "2.2.2.2 http b 80",
        ),
        (
            &["for=10.2.2.2;proto=a, for=10.1.1.1;proto=b"],
            "10.2.2.2 a a.example 80",
        ),
        // Who is hidden, or not named, has the address of the nearest proxy; what its element says
        // was written by a trusted one nevertheless.
        (&["for=unknown;proto=https"], "10.0.0.1 https a.example 443"),
        (&["for=_hidden;host=b"], "10.0.0.1 http b 80"),
        (&["proto=https"], "10.0.0.1 https a.example 443"),
        (
            &["for=1.1.1.1;proto=a, for=_x;proto=b, for=10.2.2.2, for=10.1.1.1;proto=c"],
            "10.2.2.2 b a.example 80",
        ),
        (
            &["for=1.1.1.1;proto=a, for=\"1.1.1.1\\\"\";proto=b"],
            "10.0.0.1 b a.example 80",
        ),
        // Commas and semicolons in quotes separate nothing; what is not known is skipped.
        (
            &["for=1.1.1.1;secret=\"a,b;c\\\",for=2.2.2.2\";proto=https"],
            "1.1.1.1 https a.example 443",
        ),
        (&[", ;, for=1.1.1.1 ,;"], "1.1.1.1 http a.example 80"),
        (&["", ",", "for=1.1.1.1"], "1.1.1.1 http a.example 80"),
        (&[""], "10.0.0.1 http a.example 80"),
        // No scheme, no host.
        (
            &["for=1.1.1.1;proto=\"h\\ttp\";host=\"\\b\""],
            "1.1.1.1 http a.example 80",
        ),
        (&["for=1.1.1.1;proto=\"a b\""], "1.1.1.1 http a.example 80"),
        (&["for=1.1.1.1;host=\"a b\""], "1.1.1.1 http a.example 80"),
        (
            &["for=1.1.1.1;host=\"\";proto=\"\""],
            "1.1.1.1 http a.example 80",
        ),
    ] {
        let mut headers = vec![("host", "a.example")];
        headers.extend(lines.iter().map(|line| ("Forwarded", *line)));
        let told = origin_of(&peer("10.0.0.1", false), &headers);
        assert_eq!(told.join(" "), expected, "{lines:?}");
    }
}

#[test]
fn x_forwarded_is_believed_before_forwarded() {
    let standard = ("forwarded", "for=1.1.1.1;proto=a;host=\"b:1\"");
    for (line, expected) in [
        (("x-forwarded-for", "2.2.2.2"), "2.2.2.2 a b:1 1"),
        (("x-forwarded-for", "unknown"), "10.0.0.1 a b:1 1"),
        (("x-forwarded-proto", "c"), "1.1.1.1 c b:1 1"),
        (("x-forwarded-proto", "c d"), "1.1.1.1 http b:1 1"),
        (("x-forwarded-host", "d"), "1.1.1.1 a d 80"),
        (("x-forwarded-port", "2"), "1.1.1.1 a b:1 2"),
    ] {
        let told = origin_of(&peer("10.0.0.1", false), &[standard, line]);
        assert_eq!(told.join(" "), expected, "{line:?}");
    }
}

#[test]
fn a_malformed_forwarded_is_ignored_as_a_whole() {
    for malformed in [
        "for",
        "for=",
        "=1.1.1.1",
        "for =1.1.1.1",
        "for= 1.1.1.1",
        "for=1.1.1.1 proto=https",
        "for=\"1.1.1.1",
        "for=\"1.1.1.1\\",
        "for=\"1.1.1.1\\\"",
        "for=\"1.1.1.1\"x",
        "for=1.1.1.1\"\"",
        "for=1.1.1.1;for=2.2.2.2",
        "proto=a;for=1.1.1.1;Proto=a",
        "host=a;host=a",
        "for=a@b",
        "f(o)r=1.1.1.1",
        "for=\u{e4}",
        "1.1.1.1",
    ] {
        let good = "for=2.2.2.2;proto=https;host=b";
        for lines in [
            &[malformed.to_owned()][..],
            &[format!("{malformed}, {good}")],
            &[format!("{good}, {malformed}")],
            &[malformed.to_owned(), good.to_owned()],
            &[good.to_owned(), malformed.to_owned()],
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("forwarded", &line[..])).collect();
            let told = origin_of(&peer("10.0.0.1", false), &lines);
            assert_eq!(told.join(" "), "10.0.0.1 http - 80", "{lines:?}");
        }
    }
}

#[test]
fn an_upstream_is_told_all_of_it() {
    let client = peer("::ffff:203.0.113.7", true);
    assert_eq!(
        written(&client, &[("host", "a.example")]),
        "x-forwarded-for: 203.0.113.7\r\nx-forwarded-proto: https\r\n\
         x-forwarded-host: a.example\r\nx-forwarded-port: 443\r\n"
    );
    assert_eq!(
        written(&client, &[("x-forwarded-for", "a, b")]),
        "x-forwarded-for: a, b, 203.0.113.7\r\nx-forwarded-proto: https\r\n\
         x-forwarded-port: 443\r\n"
    );
    let lines = [
        ("x-forwarded-for", "198.51.100.1, b"),
        ("X-Forwarded-For", ""),
        ("X-Forwarded-For", "c"),
        ("host", "h:1"),
        ("X-Forwarded-For", "10.1.1.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "b.example"),
        ("x-forwarded-port", "8443"),
    ];
    assert_eq!(
        written(&peer("2001:db8:1::1", false), &lines),
        "x-forwarded-for: 198.51.100.1, b, c, 10.1.1.1, 2001:db8:1::1\r\n\
         x-forwarded-proto: https\r\nx-forwarded-host: b.example\r\n\
         x-forwarded-port: 8443\r\n"
    );
}

#[test]
fn a_peer_is_trusted_by_its_network() {
    for (address, trusted) in [
        ("10.255.0.1", true),
        ("::ffff:10.0.0.1", true),
        ("11.0.0.1", false),
        ("192.0.2.1", true),
        ("192.0.2.2", false),
        ("2001:db8:1::5", true),
        ("2001:db8:2::5", false),
    ] {
        assert_eq!(
            peer(address, false).is_within(&self::trusted()),
            trusted,
            "{address}"
        );
    }
    assert!(!peer("10.0.0.1", true).is_within(&[]));
}

/// Members of a list of addresses, and whether they are one, and trusted.
const NODES: [(&str, Option<&str>, bool); 7] = [
    ("10.1.1.1", Some("10.1.1.1"), true),
    ("10.2.2.2", Some("10.2.2.2"), true),
    ("\"[2001:db8:1::1]:80\"", Some("2001:db8:1::1"), true),
    ("1.1.1.1", Some("1.1.1.1"), false),
    ("\"[2001:db8::1]\"", Some("2001:db8::1"), false),
    ("_hidden", None, false),
    ("unknown", None, false),
];

fn names() -> impl Strategy<Value = &'static str> {
    let names = [
        "host",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-port",
    ];
    select(names.to_vec())
}

fn values() -> impl Strategy<Value = String> {
    let pieces = [
        "for=", "proto=", "host=", "\"", "\\", ",", ";", "=", " ", "1.1.1.1", "10.1.1.1", "[", "]",
        "::1", ":80", "a", "\u{e4}", "_", "http", "",
    ];
    vec(select(pieces.to_vec()), 0..10).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// `Forwarded` is read from its beginning; it must not show.
    #[test]
    fn both_lists_are_walked_as_if_from_their_end(
        lines in vec(vec(0..NODES.len(), 0..5), 0..4),
    ) {
        let all: Vec<usize> = lines.concat();
        let mut client = "10.0.0.1";
        let mut element = None;
        for i in all.iter().enumerate().rev() {
            let (position, (_, address, trusted)) = (i.0, NODES[*i.1]);
            element = Some(position);
            client = address.unwrap_or(client);
            if !trusted {
                break;
            }
        }
        let mut count = 0;
        let mut lists = [vec![], vec![]];
        for line in lines {
            let nodes: Vec<_> = line.iter().map(|i| NODES[*i].0).collect();
            lists[0].push(nodes.join(", ").replace('"', ""));
            let elements: Vec<_> = nodes
                .iter()
                .map(|node| {
                    count += 1;
                    format!("for={node};proto=p{}", count - 1)
                })
                .collect();
            lists[1].push(elements.join(","));
        }
        for (name, list) in ["x-forwarded-for", "forwarded"].iter().zip(&lists) {
            let lines: Vec<_> = list.iter().map(|line| (*name, &line[..])).collect();
            let told = origin_of(&peer("10.0.0.1", false), &lines);
            prop_assert_eq!(&told[0], client);
            let proto = match element {
                Some(element) if *name == "forwarded" => format!("p{element}"),
                _ => "http".to_owned(),
            };
            prop_assert_eq!(&told[1], &proto);
        }
    }

    #[test]
    fn whatever_is_sent_an_upstream_is_told_once_and_of_a_stranger_the_same(
        lines in vec((names(), values()), 0..8),
    ) {
        let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, &value[..])).collect();
        let proxied = written(&peer("10.0.0.1", true), &lines);
        let mut names: Vec<_> = proxied.lines().filter_map(|line| line.split(": ").next()).collect();
        names.retain(|name| *name != "x-forwarded-host");
        prop_assert_eq!(names, ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-port"]);

        let stranger = peer("203.0.113.7", true);
        let hosts: Vec<_> = lines.iter().copied().filter(|(name, _)| *name == "host").collect();
        prop_assert_eq!(origin_of(&stranger, &lines), origin_of(&stranger, &hosts));
    }
}
