//! One frame after the other, and the error codes: sections 6 and 7 of RFC 7540.

use super::*;

pub fn definitions(cases: &mut Vec<Case>) {
    const FRAME_SIZE: Step = Wait(Until::ConnectionError(&[FRAME_SIZE_ERROR]));
    const FLOW_CONTROL: Step = Wait(Until::ConnectionError(&[FLOW_CONTROL_ERROR]));
    let request = || with(b"");
    let test = |stream| Send(data(stream, flag::END_STREAM, "test"));
    let more = |stream, flags| Send(continuation(stream, flags, dummy()));
    let of_four = [ask("POST"), block([("content-length", "4")])].concat();
    section(
        cases,
        "http2/6.1",
        [
            ("DATA on stream 0", vec![test(0), PROTOCOL]),
            (
                "DATA on a half-closed stream",
                vec![whole(ask("POST")), test(1), STREAM_CLOSED_HERE],
            ),
            (
                "DATA with more padding than there is",
                vec![
                    Send(headers(1, flag::END_HEADERS, of_four)),
                    Send(data(1, flag::PADDED | flag::END_STREAM, b"\x06test")),
                    PROTOCOL,
                ],
            ),
        ],
    );
    let unfinished = |flags| Send(headers(1, flags, ask("GET")));
    let mut padded = ask("GET");
    padded.insert(0, padded.len() as u8 + 1);
    section(
        cases,
        "http2/6.2",
        [
            (
                "PRIORITY within a block",
                vec![
                    unfinished(0),
                    Send(priority(1, 0, 255)),
                    more(1, flag::END_HEADERS),
                    PROTOCOL,
                ],
            ),
            (
                "HEADERS of another stream within a block",
                vec![
                    unfinished(0),
                    Send(headers(3, flag::ALL, ask("GET"))),
                    more(1, flag::END_HEADERS),
                    PROTOCOL,
                ],
            ),
            (
                "HEADERS on stream 0",
                vec![Send(headers(0, flag::ALL, ask("GET"))), PROTOCOL],
            ),
            (
                "HEADERS with more padding than there is",
                vec![
                    Send(headers(1, flag::ALL | flag::PADDED, padded)),
                    MALFORMED,
                ],
            ),
        ],
    );
    section(
        cases,
        "http2/6.3",
        [
            (
                "PRIORITY on stream 0",
                vec![Send(priority(0, 0, 255)), PROTOCOL],
            ),
            (
                "PRIORITY of 4 bytes",
                vec![
                    request(),
                    Send(frame(kind::PRIORITY, 0, 1, [0x80, 0, 0, 1])),
                    Wait(Until::StreamError(&[FRAME_SIZE_ERROR])),
                ],
            ),
        ],
    );
    section(
        cases,
        "http2/6.4",
        [
            (
                "RST_STREAM on stream 0",
                vec![Send(rst_stream(0, CANCEL)), PROTOCOL],
            ),
            (
                "RST_STREAM on an idle stream",
                vec![Send(rst_stream(1, CANCEL)), PROTOCOL],
            ),
            (
                "RST_STREAM of 3 bytes",
                vec![
                    request(),
                    Send(frame(kind::RST_STREAM, 0, 1, [0; 3])),
                    Wait(Until::StreamError(&[FRAME_SIZE_ERROR])),
                ],
            ),
        ],
    );
    section(
        cases,
        "http2/6.5",
        [
            (
                "an acknowledgement with a payload",
                vec![Send(frame(kind::SETTINGS, flag::ACK, 0, [0])), FRAME_SIZE],
            ),
            (
                "SETTINGS on stream 1",
                vec![
                    Send(frame(kind::SETTINGS, 0, 1, [0, 3, 0, 0, 0, 100])),
                    PROTOCOL,
                ],
            ),
            (
                "SETTINGS of 9 bytes",
                vec![
                    Send(frame(kind::SETTINGS, 0, 0, [0, 3, 0, 0, 0, 100, 0, 2, 0])),
                    Wait(Until::StreamError(&[PROTOCOL_ERROR, FRAME_SIZE_ERROR])),
                ],
            ),
        ],
    );
    section(
        cases,
        "http2/6.5.2",
        [
            (
                "ENABLE_PUSH of 2",
                vec![set(setting::ENABLE_PUSH, 2), PROTOCOL],
            ),
            (
                "INITIAL_WINDOW_SIZE above its maximum",
                vec![set(setting::INITIAL_WINDOW_SIZE, 1 << 31), FLOW_CONTROL],
            ),
            (
                "MAX_FRAME_SIZE below its minimum",
                vec![set(setting::MAX_FRAME_SIZE, 16_383), PROTOCOL],
            ),
            (
                "MAX_FRAME_SIZE above its maximum",
                vec![set(setting::MAX_FRAME_SIZE, 1 << 24), PROTOCOL],
            ),
            (
                "an unknown setting",
                vec![set(255, 1), Send(ping(NOTHING)), Wait(Until::Pong(NOTHING))],
            ),
        ],
    );
    let window = |size| set(setting::INITIAL_WINDOW_SIZE, size);
    section(
        cases,
        "http2/6.5.3",
        [
            (
                "the last of two values holds",
                vec![
                    Send(settings(&[
                        (setting::INITIAL_WINDOW_SIZE, 100),
                        (setting::INITIAL_WINDOW_SIZE, 1),
                    ])),
                    Wait(Until::SettingsAck),
                    request(),
                    Wait(Until::Data(1)),
                ],
            ),
            (
                "SETTINGS are acknowledged",
                vec![set(setting::ENABLE_PUSH, 0), Wait(Until::SettingsAck)],
            ),
        ],
    );
    section(
        cases,
        "http2/6.7",
        [
            (
                "PING is answered with its payload",
                vec![Send(ping(b"canaries")), Wait(Until::Pong(b"canaries"))],
            ),
            (
                "an answer to a PING is not answered",
                vec![
                    Send(frame(kind::PING, flag::ACK, 0, b"unasked!")),
                    Send(ping(b"canaries")),
                    Wait(Until::Pong(b"canaries")),
                ],
            ),
            (
                "PING on stream 1",
                vec![Send(frame(kind::PING, 0, 1, NOTHING)), PROTOCOL],
            ),
            (
                "PING of 6 bytes",
                vec![Send(frame(kind::PING, 0, 0, [0; 6])), FRAME_SIZE],
            ),
        ],
    );
    section(
        cases,
        "http2/6.8",
        [(
            "GOAWAY on stream 1",
            vec![Send(frame(kind::GOAWAY, 0, 1, NOTHING)), PROTOCOL],
        )],
    );
    section(
        cases,
        "http2/6.9",
        [
            (
                "WINDOW_UPDATE by 0",
                vec![Send(window_update(0, 0)), PROTOCOL],
            ),
            (
                "WINDOW_UPDATE of a stream by 0",
                vec![
                    Send(headers(1, flag::END_HEADERS, ask("GET"))),
                    Send(window_update(1, 0)),
                    MALFORMED,
                ],
            ),
            (
                "WINDOW_UPDATE of 3 bytes",
                vec![
                    Send(frame(kind::WINDOW_UPDATE, 0, 0, [0, 0, 1])),
                    FRAME_SIZE,
                ],
            ),
        ],
    );
    const MOST: u32 = (1 << 31) - 1;
    section(
        cases,
        "http2/6.9.1",
        [
            (
                "no more is sent than the window takes",
                vec![
                    window(1),
                    Wait(Until::SettingsAck),
                    request(),
                    Wait(Until::Data(1)),
                ],
            ),
            (
                "a window above its maximum",
                vec![
                    Send(window_update(0, MOST)),
                    Send(window_update(0, MOST)),
                    Wait(Until::GoAway(FLOW_CONTROL_ERROR)),
                ],
            ),
            (
                "a stream's window above its maximum",
                vec![
                    Send(headers(1, flag::END_HEADERS, ask("GET"))),
                    Send(window_update(1, MOST)),
                    Send(window_update(1, MOST)),
                    Wait(Until::Reset(FLOW_CONTROL_ERROR)),
                ],
            ),
        ],
    );
    section(
        cases,
        "http2/6.9.2",
        [
            (
                "a window that grows by a setting",
                vec![
                    window(0),
                    Wait(Until::SettingsAck),
                    request(),
                    window(1),
                    Wait(Until::SettingsAck),
                    Wait(Until::Data(1)),
                ],
            ),
            (
                "a window that is negative",
                vec![
                    window(3),
                    Wait(Until::SettingsAck),
                    request(),
                    Wait(Until::AnyData),
                    window(2),
                    Wait(Until::SettingsAck),
                    Send(window_update(1, 2)),
                    Wait(Until::Data(1)),
                ],
            ),
            (
                "INITIAL_WINDOW_SIZE above its maximum",
                vec![window(1 << 31), FLOW_CONTROL],
            ),
        ],
    );
    section(
        cases,
        "http2/6.10",
        [
            (
                "CONTINUATION twice",
                vec![
                    unfinished(flag::END_STREAM),
                    more(1, 0),
                    more(1, flag::END_HEADERS),
                    ANSWERED,
                ],
            ),
            (
                "DATA within a block",
                vec![
                    Send(headers(1, 0, ask("POST"))),
                    more(1, 0),
                    test(1),
                    PROTOCOL,
                ],
            ),
            (
                "CONTINUATION on stream 0",
                vec![
                    unfinished(flag::END_STREAM),
                    more(0, flag::END_HEADERS),
                    PROTOCOL,
                ],
            ),
            (
                "CONTINUATION behind a block that is whole",
                vec![request(), more(1, flag::END_HEADERS), PROTOCOL],
            ),
            (
                "CONTINUATION behind one that ended the block",
                vec![
                    unfinished(flag::END_STREAM),
                    more(1, flag::END_HEADERS),
                    more(1, flag::END_HEADERS),
                    PROTOCOL,
                ],
            ),
            (
                "CONTINUATION behind DATA",
                vec![
                    Send(headers(1, 0, ask("POST"))),
                    test(1),
                    more(1, 0),
                    more(0, flag::END_HEADERS),
                    PROTOCOL,
                ],
            ),
        ],
    );
    section(
        cases,
        "http2/7",
        [
            (
                "GOAWAY with an unknown code",
                vec![Send(goaway(0, 255)), Wait(Until::End)],
            ),
            (
                "RST_STREAM with an unknown code",
                vec![
                    Send(post(1, "/")),
                    Send(rst_stream(1, 255)),
                    Send(ping(NOTHING)),
                    Wait(Until::Pong(NOTHING)),
                ],
            ),
        ],
    );
}
