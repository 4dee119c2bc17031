//! Frames and streams: sections 3 to 5 of RFC 7540, whose numbers the cases have.

use super::*;

pub fn frames_and_streams(cases: &mut Vec<Case>, allows: Allows) {
    let preface = || {
        Send(
            [
                PREFACE,
                &settings(&[(setting::INITIAL_WINDOW_SIZE, 65_535)]),
            ]
            .concat(),
        )
    };
    let request = || with(b"");
    let open = || Send(headers(1, flag::END_HEADERS, ask("GET")));
    let test = |stream| Send(data(stream, flag::END_STREAM, "test"));
    let more = || Send(continuation(1, flag::END_HEADERS, dummy()));
    section(
        cases,
        "http2/3.5",
        [
            ("a preface", vec![preface(), Wait(Until::Settings)]),
            (
                "what is no preface",
                vec![
                    Send(b"INVALID CONNECTION PREFACE\r\n\r\n".to_vec()),
                    PROTOCOL,
                ],
            ),
        ],
    );
    let unknown = || Send(frame(22, 0, 0, NOTHING));
    section(
        cases,
        "http2/4.1",
        [
            (
                "a frame of unknown type",
                vec![unknown(), Send(ping(NOTHING)), Wait(Until::Pong(NOTHING))],
            ),
            (
                "flags that are not defined",
                vec![
                    Send(frame(kind::PING, 0x16, 0, NOTHING)),
                    Wait(Until::Pong(NOTHING)),
                ],
            ),
            (
                "the reserved bit",
                vec![
                    Send(frame(kind::PING, 0x16, 1 << 31, NOTHING)),
                    Wait(Until::Pong(NOTHING)),
                ],
            ),
        ],
    );
    let large = |length| Send(data(1, flag::END_STREAM, vec![b'x'; length]));
    let too_large = [ask("GET"), block([("x-dummy0", "x".repeat(allows.frame))])].concat();
    section(
        cases,
        "http2/4.2",
        [
            (
                "DATA as large as may be",
                vec![Send(post(1, "/")), large(16_384), ANSWERED],
            ),
            (
                "DATA larger than may be",
                vec![
                    Send(post(1, "/")),
                    large(allows.frame + 1),
                    Wait(Until::StreamError(&[FRAME_SIZE_ERROR])),
                ],
            ),
            (
                "HEADERS larger than may be",
                vec![
                    whole(too_large),
                    Wait(Until::ConnectionError(&[FRAME_SIZE_ERROR])),
                ],
            ),
        ],
    );
    let unfinished = || Send(headers(1, 0, ask("GET")));
    section(
        cases,
        "http2/4.3",
        [
            (
                "a block that is none",
                vec![Send(headers(1, flag::ALL, b"\x40")), COMPRESSION],
            ),
            (
                "PRIORITY within a block",
                vec![unfinished(), Send(priority(1, 0, 255)), more(), PROTOCOL],
            ),
            (
                "HEADERS of another stream within a block",
                vec![
                    unfinished(),
                    Send(headers(3, flag::ALL, ask("GET"))),
                    more(),
                    PROTOCOL,
                ],
            ),
        ],
    );
    const CONTINUED: Step = Wait(Until::StreamError(&[STREAM_CLOSED, PROTOCOL_ERROR]));
    section(
        cases,
        "http2/5.1",
        [
            ("idle: DATA", vec![test(1), PROTOCOL]),
            (
                "idle: RST_STREAM",
                vec![Send(rst_stream(1, CANCEL)), PROTOCOL],
            ),
            (
                "idle: WINDOW_UPDATE",
                vec![Send(window_update(1, 100)), PROTOCOL],
            ),
            (
                "idle: CONTINUATION",
                vec![
                    Send(continuation(1, flag::END_HEADERS, ask("GET"))),
                    PROTOCOL,
                ],
            ),
            (
                "half-closed: DATA",
                vec![request(), test(1), STREAM_CLOSED_HERE],
            ),
            (
                "half-closed: HEADERS",
                vec![request(), request(), STREAM_CLOSED_HERE],
            ),
            (
                "half-closed: CONTINUATION",
                vec![
                    request(),
                    Send(continuation(1, flag::END_HEADERS, ask("GET"))),
                    CONTINUED,
                ],
            ),
            (
                "reset: DATA",
                vec![
                    open(),
                    Send(rst_stream(1, CANCEL)),
                    test(1),
                    STREAM_CLOSED_HERE,
                ],
            ),
            (
                "reset: HEADERS",
                vec![
                    open(),
                    Send(rst_stream(1, CANCEL)),
                    request(),
                    STREAM_CLOSED_HERE,
                ],
            ),
            (
                "reset: CONTINUATION",
                vec![open(), Send(rst_stream(1, CANCEL)), more(), CONTINUED],
            ),
            (
                "closed: DATA",
                vec![
                    request(),
                    Wait(Until::StreamEnd),
                    test(1),
                    STREAM_CLOSED_HERE,
                ],
            ),
            (
                "closed: HEADERS",
                vec![
                    request(),
                    Wait(Until::StreamEnd),
                    request(),
                    Wait(Until::ConnectionError(&[STREAM_CLOSED])),
                ],
            ),
            (
                "closed: CONTINUATION",
                vec![
                    request(),
                    Wait(Until::StreamEnd),
                    more(),
                    Wait(Until::ConnectionError(&[STREAM_CLOSED, PROTOCOL_ERROR])),
                ],
            ),
        ],
    );
    let on = |stream| Send(headers(stream, flag::ALL, ask("GET")));
    section(
        cases,
        "http2/5.1.1",
        [
            ("an even stream", vec![on(2), PROTOCOL]),
            ("a stream below the last one", vec![on(5), on(3), PROTOCOL]),
            ("a stream twice", vec![on(5), on(5), STREAM_CLOSED_HERE]),
        ],
    );
    let too_many = (0..=allows.streams)
        .flat_map(|i| h2raw::get(2 * i + 1, "/"))
        .collect();
    section(
        cases,
        "http2/5.1.2",
        [(
            "more streams than may be",
            vec![
                set(setting::INITIAL_WINDOW_SIZE, 0),
                Send(too_many),
                Wait(Until::StreamError(&[PROTOCOL_ERROR, REFUSED_STREAM])),
            ],
        )],
    );
    let on_itself = [&[0, 0, 0, 1, 255], &ask("GET")[..]].concat();
    section(
        cases,
        "http2/5.3.1",
        [
            (
                "HEADERS that depend on themselves",
                vec![
                    Send(headers(1, flag::ALL | flag::PRIORITY, on_itself)),
                    MALFORMED,
                ],
            ),
            (
                "PRIORITY that depends on itself",
                vec![Send(priority(1, 1, 255)), MALFORMED],
            ),
        ],
    );
    let wrong_ping = || Send(frame(kind::PING, 0, 3, NOTHING));
    section(
        cases,
        "http2/5.4.1",
        [
            (
                "a connection is closed behind an error",
                vec![wrong_ping(), Wait(Until::End)],
            ),
            (
                "an error is said",
                vec![wrong_ping(), Wait(Until::GoAway(PROTOCOL_ERROR))],
            ),
        ],
    );
    section(
        cases,
        "http2/5.5",
        [
            (
                "a frame of an extension",
                vec![unknown(), Send(ping(NOTHING)), Wait(Until::Pong(NOTHING))],
            ),
            (
                "a frame of an extension within a block",
                vec![
                    Send(headers(1, flag::END_STREAM, ask("GET"))),
                    unknown(),
                    PROTOCOL,
                ],
            ),
        ],
    );
}
