//! What has to be accepted.

use super::*;

pub fn generic(cases: &mut Vec<Case>) {
    let preface = || {
        Send(
            [
                PREFACE,
                &settings(&[(setting::INITIAL_WINDOW_SIZE, 65_535)]),
            ]
            .concat(),
        )
    };
    let no_window = || set(setting::INITIAL_WINDOW_SIZE, 0);
    let test = |flags| Send(data(1, flags, "test"));
    let request = || with(b"");
    section(
        cases,
        "generic/1",
        [("a preface", vec![preface(), Wait(Until::Settings)])],
    );
    section(
        cases,
        "generic/2",
        [
            (
                "PRIORITY on an idle stream",
                vec![
                    Send(priority(1, 0, 255)),
                    Send(ping(NOTHING)),
                    Wait(Until::Pong(NOTHING)),
                ],
            ),
            (
                "WINDOW_UPDATE on a half-closed stream",
                vec![
                    no_window(),
                    request(),
                    Send(window_update(1, 1)),
                    Wait(Until::AnyData),
                ],
            ),
            (
                "PRIORITY on a half-closed stream",
                vec![
                    no_window(),
                    request(),
                    Send(priority(1, 0, 255)),
                    Send(window_update(1, 1)),
                    Wait(Until::AnyData),
                ],
            ),
            (
                "RST_STREAM on a half-closed stream",
                vec![
                    request(),
                    Send(rst_stream(1, CANCEL)),
                    Send(ping(NOTHING)),
                    Wait(Until::PongOrEnd(NOTHING)),
                ],
            ),
            (
                "PRIORITY on a closed stream",
                vec![
                    request(),
                    Wait(Until::StreamEnd),
                    Send(priority(1, 0, 255)),
                    Send(ping(NOTHING)),
                    Wait(Until::Pong(NOTHING)),
                ],
            ),
        ],
    );
    section(
        cases,
        "generic/3.1",
        [
            (
                "DATA",
                vec![Send(post(1, "/")), test(flag::END_STREAM), ANSWERED],
            ),
            (
                "DATA twice",
                vec![
                    Send(post(1, "/")),
                    test(0),
                    test(flag::END_STREAM),
                    ANSWERED,
                ],
            ),
            (
                "padded DATA",
                vec![
                    Send(post(1, "/")),
                    Send(data(1, flag::END_STREAM | flag::PADDED, b"\x06testpadded")),
                    ANSWERED,
                ],
            ),
        ],
    );
    let padded = [&[8], &ask("GET")[..], &[0; 8]].concat();
    let with_priority = [&[0, 0, 0, 0, 255], &ask("GET")[..]].concat();
    section(
        cases,
        "generic/3.2",
        [
            ("HEADERS", vec![request(), ANSWERED]),
            (
                "padded HEADERS",
                vec![Send(headers(1, flag::ALL | flag::PADDED, padded)), ANSWERED],
            ),
            (
                "HEADERS with a priority",
                vec![
                    Send(headers(1, flag::ALL | flag::PRIORITY, with_priority)),
                    ANSWERED,
                ],
            ),
        ],
    );
    let after = |priority: Vec<u8>| vec![Send(priority), request(), ANSWERED];
    section(
        cases,
        "generic/3.3",
        [
            ("PRIORITY with weight 1", after(priority(1, 0, 0))),
            ("PRIORITY with weight 256", after(priority(1, 0, 255))),
            ("PRIORITY with a dependency", after(priority(3, 1, 0))),
            (
                "PRIORITY with an exclusive dependency",
                after(priority(1, 1 << 31, 0)),
            ),
            ("PRIORITY for a stream to come", after(priority(3, 0, 255))),
        ],
    );
    section(
        cases,
        "generic/3.4",
        [(
            "RST_STREAM",
            vec![
                Send(headers(1, flag::END_HEADERS, ask("GET"))),
                Send(rst_stream(1, CANCEL)),
                Send(ping(NOTHING)),
                Wait(Until::PongOrEnd(NOTHING)),
            ],
        )],
    );
    section(
        cases,
        "generic/3.5",
        [(
            "SETTINGS",
            vec![
                Send(settings(&[
                    (setting::HEADER_TABLE_SIZE, 4096),
                    (setting::ENABLE_PUSH, 1),
                    (setting::MAX_CONCURRENT_STREAMS, 100),
                    (setting::INITIAL_WINDOW_SIZE, 65_535),
                    (setting::MAX_FRAME_SIZE, 16_384),
                    (setting::MAX_HEADER_LIST_SIZE, 100),
                ])),
                Wait(Until::SettingsAck),
            ],
        )],
    );
    section(
        cases,
        "generic/3.7",
        [(
            "PING",
            vec![Send(ping(b"canaries")), Wait(Until::Pong(b"canaries"))],
        )],
    );
    section(
        cases,
        "generic/3.8",
        [("GOAWAY", vec![Send(goaway(0, NO_ERROR)), Wait(Until::End)])],
    );
    section(
        cases,
        "generic/3.9",
        [
            (
                "WINDOW_UPDATE of the connection",
                vec![
                    Send(window_update(0, 1)),
                    Send(ping(NOTHING)),
                    Wait(Until::Pong(NOTHING)),
                ],
            ),
            (
                "WINDOW_UPDATE of a stream",
                vec![request(), Send(window_update(1, 1)), ANSWERED],
            ),
        ],
    );
    let (first, second) = (ask("GET")[..5].to_vec(), ask("GET")[5..].to_vec());
    section(
        cases,
        "generic/3.10",
        [
            (
                "CONTINUATION",
                vec![
                    Send(headers(1, flag::END_STREAM, &first)),
                    Send(continuation(1, flag::END_HEADERS, &second)),
                    ANSWERED,
                ],
            ),
            (
                "CONTINUATION twice",
                vec![
                    Send(headers(1, flag::END_STREAM, &first)),
                    Send(continuation(1, 0, &second[..5])),
                    Send(continuation(1, flag::END_HEADERS, &second[5..])),
                    ANSWERED,
                ],
            ),
        ],
    );
    let announced = [ask("POST"), block([("trailer", "x-test")])].concat();
    section(
        cases,
        "generic/4",
        [
            ("GET", vec![request(), ANSWERED]),
            ("HEAD", vec![whole(ask("HEAD")), ANSWERED]),
            (
                "POST",
                vec![Send(post(1, "/")), test(flag::END_STREAM), ANSWERED],
            ),
            (
                "POST with trailers",
                vec![
                    Send(headers(1, flag::END_HEADERS, announced)),
                    test(0),
                    Send(headers(1, flag::ALL, block([("x-test", "ok")]))),
                    ANSWERED,
                ],
            ),
        ],
    );
    // `user-agent: h2spec` and `x-test: h2spec`, in plain and Huffman-coded.
    let plain = |first: u8, name: &str| {
        let mut field = block([(name, "h2spec")]);
        field[0] = first;
        with(&field)
    };
    let coded = |first: u8, name: &[u8]| {
        let value = b"\x84\x9c\x48\xac\xa4";
        with(&[&[first][..], name, value].concat())
    };
    let (agent, test) = (
        b"\x87\xb5\x05\xb1\x61\xcc\x5a\x93",
        b"\x85\xf2\xb2\x4a\x84\xff",
    );
    let (user_agent, x_test) = ("user-agent", "x-test");
    let indexed_name = |first: u8| with(&[&[first], &b"\x06h2spec"[..]].concat());
    section(
        cases,
        "generic/5",
        [
            ("an indexed field", vec![with(&indexed(58)), ANSWERED]),
            (
                "a literal for the table, known name",
                vec![indexed_name(0x40 | 58), ANSWERED],
            ),
            (
                "a literal for the table, known name, coded",
                vec![coded(0x40, agent), ANSWERED],
            ),
            (
                "a literal for the table, new name",
                vec![plain(0x40, x_test), ANSWERED],
            ),
            (
                "a literal for the table, new name, coded",
                vec![coded(0x40, test), ANSWERED],
            ),
            (
                "a literal not for the table, known name",
                vec![plain(0, user_agent), ANSWERED],
            ),
            (
                "a literal not for the table, known name, coded",
                vec![coded(0, agent), ANSWERED],
            ),
            (
                "a literal not for the table, new name",
                vec![plain(0, x_test), ANSWERED],
            ),
            (
                "a literal not for the table, new name, coded",
                vec![coded(0, test), ANSWERED],
            ),
            (
                "a literal for no table ever, known name",
                vec![plain(0x10, user_agent), ANSWERED],
            ),
            (
                "a literal for no table ever, known name, coded",
                vec![coded(0x10, agent), ANSWERED],
            ),
            (
                "a literal for no table ever, new name",
                vec![plain(0x10, x_test), ANSWERED],
            ),
            (
                "a literal for no table ever, new name, coded",
                vec![coded(0x10, test), ANSWERED],
            ),
            (
                "a change of the table",
                vec![whole([table_size(0), ask("GET")].concat()), ANSWERED],
            ),
            (
                "two changes of the table",
                vec![
                    whole([table_size(0), table_size(4096), ask("GET")].concat()),
                    ANSWERED,
                ],
            ),
        ],
    );
}
