//! HTTP in frames, section 8 of RFC 7540, and HPACK, RFC 7541.

use super::*;

pub fn messages(cases: &mut Vec<Case>) {
    let posted = |trailers: &[(&str, &str)]| {
        vec![
            Send(post(1, "/")),
            Send(data(1, 0, "test")),
            Send(headers(
                1,
                flag::END_HEADERS,
                block(trailers.iter().copied()),
            )),
            MALFORMED,
        ]
    };
    section(
        cases,
        "http2/8.1",
        [(
            "a second HEADERS that does not end the stream",
            posted(&[("x-test", "ok")]),
        )],
    );
    section(
        cases,
        "http2/8.1.2",
        [(
            "a name with capital letters",
            vec![field("X-TEST", "ok"), MALFORMED],
        )],
    );
    let late = [block([("x-test", "ok")]), ask("GET")].concat();
    section(
        cases,
        "http2/8.1.2.1",
        [
            (
                "an unknown pseudo-header field",
                vec![field(":test", "ok"), MALFORMED],
            ),
            (
                "the pseudo-header field of a response",
                vec![field(":status", "200"), MALFORMED],
            ),
            (
                "a pseudo-header field in trailers",
                posted(&[(":method", "POST")]),
            ),
            (
                "pseudo-header fields behind others",
                vec![whole(late), MALFORMED],
            ),
        ],
    );
    section(
        cases,
        "http2/8.1.2.2",
        [
            (
                "a field of a connection",
                vec![field("connection", "keep-alive"), MALFORMED],
            ),
            (
                "TE that is not for trailers",
                vec![
                    with(&block([("trailers", "test"), ("te", "trailers, deflate")])),
                    MALFORMED,
                ],
            ),
        ],
    );
    let without = |omitted: &str| {
        let fields = pseudo("GET", "/");
        let left = fields.into_iter().filter(|(name, _)| *name != omitted);
        vec![whole(block(left)), MALFORMED]
    };
    let twice = |name, value| vec![field(name, value), MALFORMED];
    section(
        cases,
        "http2/8.1.2.3",
        [
            (
                "an empty path",
                vec![whole(block(pseudo("GET", ""))), MALFORMED],
            ),
            ("no method", without(":method")),
            ("no scheme", without(":scheme")),
            ("no path", without(":path")),
            ("two methods", twice(":method", "GET")),
            ("two schemes", twice(":scheme", "http")),
            ("two paths", twice(":path", "/")),
        ],
    );
    let of_one = || {
        let block = [ask("POST"), block([("content-length", "1")])].concat();
        Send(headers(1, flag::END_HEADERS, block))
    };
    section(
        cases,
        "http2/8.1.2.6",
        [
            (
                "a length that is not that of the DATA",
                vec![of_one(), Send(data(1, flag::END_STREAM, "test")), MALFORMED],
            ),
            (
                "a length that is not that of all DATA",
                vec![
                    of_one(),
                    Send(data(1, 0, "test")),
                    Send(data(1, flag::END_STREAM, "test")),
                    MALFORMED,
                ],
            ),
        ],
    );
    let promise = [&3_u32.to_be_bytes(), &ask("GET")[..]].concat();
    section(
        cases,
        "http2/8.2",
        [(
            "a push by a client",
            vec![
                Send(frame(kind::PUSH_PROMISE, flag::END_HEADERS, 1, promise)),
                PROTOCOL,
            ],
        )],
    );
}

/// RFC 7541.
pub fn compression(cases: &mut Vec<Case>, allows: Allows) {
    let refused = |behind: &[u8]| vec![with(behind), COMPRESSION];
    section(
        cases,
        "hpack/2.3.3",
        [
            ("an index beyond the tables", refused(&indexed(126))),
            (
                "a name's index beyond the tables",
                refused(b"\x7f\x40\x04test"),
            ),
        ],
    );
    section(
        cases,
        "hpack/4.2",
        [(
            "a change of the table at the end of a block",
            refused(&table_size(1)),
        )],
    );
    section(
        cases,
        "hpack/5.2",
        [
            (
                "more than 7 bits of padding",
                refused(b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff"),
            ),
            (
                "padding with zeroes",
                refused(b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90"),
            ),
            (
                "the end-of-string symbol",
                refused(b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\xff\xff\xff\xfd\x25\x42\x7f"),
            ),
        ],
    );
    section(cases, "hpack/6.1", [("index 0", refused(&indexed(0)))]);
    let too_large = [table_size(allows.table + 1), ask("GET")].concat();
    section(
        cases,
        "hpack/6.3",
        [(
            "a table larger than may be",
            vec![whole(too_large), COMPRESSION],
        )],
    );
}
