//! What there is to say of each key: its kind and range, what no value means, and what it is for.
//!
//! Which keys there are and what their defaults are is not said here: `raw` has both.

/// What may stand in a key. Zero stands for the default, so it is always taken beside a range.
pub(super) enum Kind {
    /// Matches the pattern, where there is one (ECMA 262); beside it what that is to people.
    Text(&'static str, &'static str),
    /// A text that is shown to nobody.
    Secret,
    /// One of these.
    Word(&'static [&'static str]),
    /// One of these; what matches the pattern is taken too.
    Level(&'static [&'static str], &'static str),
    /// True or false.
    Flag,
    /// A TCP port.
    Port,
    /// A whole number, from the least to the most.
    Count(u64, u64),
    /// From the least to the most; empty is no bound.
    Duration(&'static str, &'static str),
    /// The same.
    Size(&'static str, &'static str),
    /// 0 to 100.
    Percent,
    /// From the least to the most.
    Number(f64, f64),
    /// Texts that match the pattern; beside it what they are to people.
    Texts(&'static str, &'static str),
    /// Some of these; the first must be among them.
    Words(&'static [&'static str]),
    /// Whole numbers, each from the least to the most.
    Counts(u64, u64),
    /// `rollout.steps`, whose keys have entries of their own.
    Steps,
}

/// A key.
pub(super) struct Key {
    pub path: &'static str,
    pub kind: Kind,
    /// What no value means, where that is not a value, or more than one.
    pub unset: &'static str,
    pub says: &'static str,
}

const fn key(path: &'static str, kind: Kind, unset: &'static str, says: &'static str) -> Key {
    Key {
        path,
        kind,
        unset,
        says,
    }
}

const URL: Kind = Kind::Text(
    r"^\s*([Hh][Tt][Tt][Pp][Ss]?://[^#]+)?$",
    "URL: `http://`, `https://`",
);
const HOST: Kind = Kind::Text(r"^[^@/?#]*$", "host name, with or without a port");
const FILE: Kind = Kind::Text("", "file");
const ANY: Kind = Kind::Text("", "text");
const NETWORKS: Kind = Kind::Texts(r"^[0-9A-Fa-f:.]+(/[0-9]+)?$", "networks and addresses");
const FAILURES: Kind = Kind::Word(&["5xx", "non-2xx"]);
const TIME: Kind = Kind::Duration("", "");

const MOST: u64 = u64::MAX;

/// What is said of the whole file.
pub(super) const FILE_SAYS: &str = "The configuration of canary-router. Durations: a number is seconds, a text has its \
    unit (\"250ms\", \"5s\", \"2m\", \"1h\"). Sizes: a number is bytes, or \"64KiB\". Percentages: 0 to 100 with at most two \
    decimals. Zero, empty and null mean the default, unless the key says something else. Nothing is required here, since \
    every key can be set from the environment.";

/// What is said of a section; those that `main` and `to-sidecar` share with another stand once.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    (
        "/circuit-breaker",
        "How much the canary may do wrong: limits over the life of the process, and a breaker",
    ),
    (
        "/circuit-breaker/main",
        "A breaker for main; while it is open, clients get `fallback.static`, or a `503` with `Retry-After`",
    ),
    (
        "/fallback",
        "What stands in for an answer of the canary that no client should see",
    ),
    (
        "/fallback/static",
        "What a client gets when nothing else can answer",
    ),
    (
        "/sidecar",
        "What the sidecar gets, and how long its word holds",
    ),
    (
        "/sidecar/cache",
        "Answers of the sidecar that are kept; \"off\" is none",
    ),
    (
        "/traffic",
        "The canary's share of eligible requests, and for whom that stays as it is",
    ),
    (
        "/traffic/sticky",
        "Who stays with main or canary; \"off\" is nobody",
    ),
    ("/override", "Who may choose by `X-Canary`"),
    (
        "/rollout",
        "How the canary's share rises by itself, under the eyes of a judge, once a rollout is started",
    ),
    (
        "/router-server",
        "Where requests are taken, and how long is waited for clients",
    ),
    (
        "/router-server/tls",
        "TLS to clients; \"off\" is plain text",
    ),
    (
        "/proxy-client",
        "How upstreams are spoken to, and how long is waited for them",
    ),
    ("/proxy-client/to-main-and-canary", "To main and canary"),
    ("/proxy-client/to-sidecar", "To the sidecar"),
    (
        "/proxy-client/to-main-and-canary/tls",
        "TLS to `https://` targets",
    ),
    (
        "/instrumentation",
        "Metrics, health, the dashboard and commands; without this section there are none",
    ),
    ("/reload", "When the configuration is read again"),
    ("/log", "What is logged, on stdout"),
    (
        "/tracing",
        "Spans of requests, for a collector; \"off\" is none",
    ),
    ("/state", "What survives a restart"),
];

/// Every key once; those that `main` and `to-sidecar` share with another stand there.
pub(super) const KEYS: &[Key] = &[
    key(
        "/main-target",
        URL,
        "must be set",
        "Where the old version of the service is; a base path and a query in it are what requests are appended \
         to; a unix socket is written as nginx does: `http://unix:/run/app.sock:/base`",
    ),
    key(
        "/main-header-host",
        HOST,
        "host and port of the target; `localhost` for a unix socket",
        "The `Host` that main sees",
    ),
    key(
        "/canary-target",
        URL,
        "must be set",
        "Where the new version of the service is, written as `main-target`",
    ),
    key(
        "/canary-header-host",
        HOST,
        "host and port of the target; `localhost` for a unix socket",
        "The `Host` that the canary sees",
    ),
    key(
        "/sidecar-url",
        URL,
        "none",
        "Whom to ask which target a request is for, written as the targets are; without it `traffic.weight` decides",
    ),
    key(
        "/trim-prefix",
        Kind::Text(r"^\s*(/[^?#]*)?$", "path"),
        "none",
        "Taken off the path, at a segment border: `/foo` makes `/foo/bar` `/bar` and leaves `/foobar` alone",
    ),
    key(
        "/main-sidecar-status",
        Kind::Count(200, 599),
        "",
        "The status by which the sidecar says main",
    ),
    key(
        "/canary-sidecar-status",
        Kind::Count(200, 599),
        "",
        "The status by which the sidecar says canary",
    ),
    key(
        "/circuit-breaker/request-limit-canary",
        Kind::Count(0, MOST),
        "off",
        "Requests that the canary gets, over the life of the process, or of the state file",
    ),
    key(
        "/circuit-breaker/error-limit-canary",
        Kind::Count(0, u32::MAX as u64),
        "off",
        "Bad answers that the canary gives, over the life of the process, or of the state file",
    ),
    key(
        "/circuit-breaker/errors",
        Kind::Word(&["non-2xx", "5xx"]),
        "",
        "Which answers are bad for `error-limit-canary`; no answer always is",
    ),
    key(
        "/circuit-breaker/failure-rate-threshold",
        Kind::Percent,
        "off",
        "The breaker opens, and the target gets no requests, when this percentage of calls in the window failed",
    ),
    key(
        "/circuit-breaker/slow-call-rate-threshold",
        Kind::Percent,
        "off",
        "It opens too when this percentage of calls took longer than `slow-call-duration`; set both or neither",
    ),
    key(
        "/circuit-breaker/slow-call-duration",
        Kind::Duration("1ms", ""),
        "off",
        "From when on a call is slow",
    ),
    key(
        "/circuit-breaker/minimum-number-of-calls",
        Kind::Count(1, 1_000_000),
        "",
        "With fewer calls in the window it never opens",
    ),
    key(
        "/circuit-breaker/window",
        Kind::Duration("1s", "1h"),
        "",
        "How far back calls count",
    ),
    key(
        "/circuit-breaker/wait-open",
        Kind::Duration("1ms", ""),
        "",
        "How long it is open before calls are tried; doubles at each re-opening",
    ),
    key(
        "/circuit-breaker/max-wait-open",
        TIME,
        "or `wait-open`, if that is longer",
        "What the doubling ends at",
    ),
    key(
        "/circuit-breaker/permitted-half-open",
        Kind::Count(1, 10_000),
        "",
        "Calls that are tried: all succeed and it closes, one fails and it opens again",
    ),
    key(
        "/circuit-breaker/failure",
        FAILURES,
        "",
        "Which answers are failures for the breaker; no answer always is",
    ),
    key(
        "/fallback/replay",
        Kind::Word(&["off", "connect", "failures"]),
        "",
        "`\"connect\"`: a request that could not reach the canary goes to main; `\"failures\"`: also one that the canary \
         reset, did not answer in time or answered with one of `statuses`; `\"off\"`: it fails",
    ),
    key(
        "/fallback/methods",
        Kind::Texts(r"^[!#$%&'*+.^_`|~0-9A-Z-]+$", "methods, in upper case"),
        "",
        "Under `\"failures\"`, what is replayed without an `Idempotency-Key`; `[]` is nothing",
    ),
    key(
        "/fallback/statuses",
        Kind::Counts(400, 599),
        "",
        "Under `\"failures\"`, which answers are replayed; `[]` is none",
    ),
    key(
        "/fallback/max-body",
        Kind::Size("", ""),
        "",
        "A request with a longer body is not replayed; as much is held in memory per request; `0`: only requests \
         without a body are",
    ),
    key(
        "/fallback/budget",
        Kind::Percent,
        "",
        "Replays over the last 10 seconds stay under this percentage of canary requests, 3 are always allowed; `0`: \
         only these",
    ),
    key(
        "/fallback/static/status",
        Kind::Count(200, 599),
        "off; `503` with a body",
        "Its status; without it clients get an error of the router's own",
    ),
    key(
        "/fallback/static/content-type",
        Kind::Text(r"^\s*$|/", "media type"),
        "",
        "Its `Content-Type`",
    ),
    key(
        "/fallback/static/body",
        ANY,
        "empty",
        "Its body, 1MiB at most",
    ),
    key(
        "/fallback/static/file",
        FILE,
        "none",
        "Instead of `body`, the file that has it, read when the configuration is",
    ),
    key(
        "/sidecar/body",
        Kind::Word(&["full", "none"]),
        "",
        "`\"none\"`: the sidecar gets no body, and `X-Canary-Body: none`",
    ),
    key(
        "/sidecar/max-body",
        Kind::Size("", ""),
        "",
        "How much of a body the sidecar gets; as much is held in memory per request; `0` is nothing",
    ),
    key(
        "/sidecar/cache/key",
        Kind::Texts(
            r"^(method|path|query|client-ip|(header|cookie):[!#$%&'*+.^_`|~0-9A-Za-z-]+)$",
            "`\"header:NAME\"`, `\"cookie:NAME\"`, `\"method\"`, `\"path\"`, `\"query\"`, `\"client-ip\"`",
        ),
        "none (no cache)",
        "What requests must have in common to share an answer",
    ),
    key(
        "/sidecar/cache/ttl",
        Kind::Duration("1ms", "24h"),
        "must be set for a cache",
        "How long an answer holds; `Cache-Control: max-age` or `no-store` in it wins",
    ),
    key(
        "/sidecar/cache/max-entries",
        Kind::Count(1, 10_000_000),
        "",
        "Answers that are kept",
    ),
    key(
        "/traffic/weight",
        Kind::Percent,
        "`100` with `sidecar-url`",
        "The percentage of eligible requests (those for which the sidecar says canary; without a sidecar all) that goes \
         to the canary; `0` is none",
    ),
    key(
        "/traffic/sticky/by",
        Kind::Text(
            r"^\s*(client-ip|cookie|(cookie|header):[!#$%&'*+.^_`|~0-9A-Za-z-]+)?\s*$",
            "`\"cookie\"`, `\"cookie:NAME\"`, `\"header:NAME\"`, `\"client-ip\"`",
        ),
        "none (each request by itself)",
        "What a client is known by, so that it stays where it is; `\"cookie\"` is one that the router sets. A greater \
         weight moves clients only to the canary, a smaller one only away from it",
    ),
    key(
        "/traffic/sticky/cookie",
        Kind::Text(r"^\s*[!#$%&'*+.^_`|~0-9A-Za-z-]*\s*$", "name of a cookie"),
        "",
        "With `\"cookie\"`, its name",
    ),
    key(
        "/traffic/sticky/max-age",
        Kind::Duration("1s", ""),
        "30 days",
        "With `\"cookie\"`, how long clients keep it",
    ),
    key(
        "/traffic/sticky/secure",
        Kind::Flag,
        "",
        "With `\"cookie\"`, clients send it over TLS only",
    ),
    key(
        "/traffic/sticky/same-site",
        Kind::Word(&["lax", "strict", "none"]),
        "",
        "With `\"cookie\"`, its `SameSite`; `\"none\"` needs `secure`",
    ),
    key(
        "/override/trusted",
        NETWORKS,
        "everyone",
        "From whom `X-Canary` is believed; from others it is taken off; `[]` is nobody",
    ),
    key(
        "/rollout/steps",
        Kind::Steps,
        "none (no rollout)",
        "How the canary's weight rises once a rollout is started, in 1 to 100 steps such as `{\"weight\": 5, \"for\": \
         \"10m\"}`; needs `instrumentation`",
    ),
    key(
        "/rollout/steps/weight",
        Kind::Percent,
        "must be set",
        "The percentage that goes to the canary, above 0; it never falls from step to step",
    ),
    key(
        "/rollout/steps/for",
        Kind::Duration("1s", ""),
        "must be set",
        "How long the step lasts",
    ),
    key(
        "/rollout/on-inconclusive",
        Kind::Word(&["extend", "pause", "advance", "rollback"]),
        "",
        "What becomes of a step whose time is over with too little evidence",
    ),
    key(
        "/rollout/max-extension",
        TIME,
        "",
        "Under `\"extend\"`, how much longer a step may take; then it pauses",
    ),
    key(
        "/rollout/dry-run",
        Kind::Flag,
        "",
        "The judge says what it would do and does nothing",
    ),
    key(
        "/rollout/metrics",
        Kind::Words(&["errors", "latency"]),
        "",
        "What is judged; with `[\"errors\"]` latency is not",
    ),
    key(
        "/rollout/error-ratio",
        Kind::Number(1.0, 100.0),
        "",
        "How many times as often as main the canary may fail",
    ),
    key(
        "/rollout/false-rollback-probability",
        Kind::Number(0.000_001, 0.5),
        "",
        "How probable it may be that a canary which is no worse than allowed is ever rolled back",
    ),
    key(
        "/rollout/latency-margin",
        Kind::Number(0.0, 10.0),
        "",
        "How much slower than main the canary may be, as a share; this or `latency-slack`, the greater of the two; `0` \
         is none",
    ),
    key(
        "/rollout/latency-slack",
        Kind::Duration("", "60s"),
        "",
        "How much slower than main the canary may be, as a time; `0` is none",
    ),
    key(
        "/rollout/safe-ratio",
        Kind::Number(1.0, 100.0),
        "",
        "Evidence is enough when the canary is shown to fail less than so many times as often as main; more than 1",
    ),
    key(
        "/rollout/acceptable-failure-rate",
        Kind::Number(0.0, 0.5),
        "",
        "Or when it is shown to fail less often than this share of requests; `0` is off",
    ),
    key(
        "/rollout/failure",
        FAILURES,
        "",
        "Which answers are failures for the judge; no answer always is",
    ),
    key(
        "/router-server/host",
        ANY,
        "must be set",
        "The address on which requests are taken; `0.0.0.0` is all",
    ),
    key(
        "/router-server/port",
        Kind::Port,
        "must be set",
        "The port on which requests are taken",
    ),
    key(
        "/router-server/tls/certificate",
        FILE,
        "none (plain text)",
        "A PEM file: the router's certificate, then those that lead to its CA; set this and `private-key`, or neither",
    ),
    key(
        "/router-server/tls/private-key",
        FILE,
        "none (plain text)",
        "A PEM file: the key of the certificate, without a passphrase",
    ),
    key(
        "/router-server/tls/client-ca",
        FILE,
        "none (nobody is asked)",
        "A PEM file of CAs; clients must show a certificate of one of them",
    ),
    key(
        "/router-server/http2",
        Kind::Flag,
        "",
        "HTTP/2 for clients that want it: by ALPN over TLS, by prior knowledge without",
    ),
    key(
        "/router-server/trusted-proxies",
        NETWORKS,
        "nobody",
        "Whose `X-Forwarded-*` are believed, and the PROXY header",
    ),
    key(
        "/router-server/proxy-protocol",
        Kind::Flag,
        "",
        "Connections from `trusted-proxies` begin with a PROXY header, which says who the client is; from others they \
         are taken as they are",
    ),
    key(
        "/router-server/workers",
        Kind::Count(0, 1024),
        "one per available core",
        "Data-plane threads",
    ),
    key(
        "/router-server/max-connections",
        Kind::Count(0, 10_000_000),
        "as many as there are descriptors for",
        "Connections at a time, over all workers; beyond it they wait in the kernel",
    ),
    key(
        "/router-server/read-timeout",
        TIME,
        "",
        "For a request head to arrive; for a request body to make progress",
    ),
    key(
        "/router-server/write-timeout",
        TIME,
        "",
        "For the client to take some of the response",
    ),
    key(
        "/router-server/idle-timeout",
        TIME,
        "",
        "For the next request on a connection",
    ),
    key(
        "/router-server/shutdown-timeout",
        TIME,
        "",
        "How long a drain may take",
    ),
    key(
        "/router-server/max-header-bytes",
        Kind::Size("1KiB", "256KiB"),
        "",
        "The largest request head, request line included; beyond it `431`, or `414` if the request line is too long by \
         itself",
    ),
    key(
        "/proxy-client/to-main-and-canary/timeout",
        TIME,
        "",
        "The wait for the response head, connecting included; a request body that makes progress renews it; with \
         `rollout.steps` 2m at most",
    ),
    key(
        "/proxy-client/to-sidecar/timeout",
        TIME,
        "",
        "The wait for the sidecar's answer, connecting included",
    ),
    key(
        "/proxy-client/to-main-and-canary/connect-timeout",
        TIME,
        "or `timeout`, if that is shorter",
        "Name resolution, TCP and TLS",
    ),
    key(
        "/proxy-client/to-main-and-canary/max-idle-conns",
        Kind::Count(0, MOST),
        "",
        "Idle connections that are kept, over all workers",
    ),
    key(
        "/proxy-client/to-main-and-canary/idle-conn-timeout",
        TIME,
        "",
        "How long they are kept",
    ),
    key(
        "/proxy-client/to-main-and-canary/max-conn-age",
        Kind::Duration("1s", ""),
        "",
        "A connection that is older is not used again, so that a changed DNS entry is followed",
    ),
    key(
        "/proxy-client/to-main-and-canary/protocol",
        Kind::Word(&["http1", "h2", "auto"]),
        "",
        "`\"h2\"`: HTTP/2, to `http://` by prior knowledge; `\"auto\"`: what an `https://` target chooses by ALPN, HTTP/1 \
         to `http://`",
    ),
    key(
        "/proxy-client/to-main-and-canary/disable-compression",
        Kind::Flag,
        "",
        "Accepted for old files; bodies are never recompressed anyway",
    ),
    key(
        "/proxy-client/to-main-and-canary/tls/ca",
        FILE,
        "the system's",
        "A PEM file of CAs, by one of which an `https://` target's certificate must be signed",
    ),
    key(
        "/proxy-client/to-main-and-canary/tls/certificate",
        FILE,
        "none",
        "A PEM file: what targets are shown that ask for a certificate; set this and `private-key`, or neither",
    ),
    key(
        "/proxy-client/to-main-and-canary/tls/private-key",
        FILE,
        "none",
        "A PEM file: the key of the certificate, without a passphrase",
    ),
    key(
        "/proxy-client/to-main-and-canary/tls/server-name",
        Kind::Text("", "host name or address"),
        "the target's host; `localhost` for a unix socket",
        "The name that is asked for (SNI) and that the certificate must have",
    ),
    key(
        "/proxy-client/to-main-and-canary/tls/insecure-skip-verify",
        Kind::Flag,
        "",
        "Take any certificate; not beside `ca`",
    ),
    key(
        "/instrumentation/host",
        ANY,
        "",
        "The address of metrics, health and commands",
    ),
    key(
        "/instrumentation/port",
        Kind::Port,
        "",
        "The port of metrics, health and commands",
    ),
    key(
        "/instrumentation/token",
        Kind::Secret,
        "none",
        "What must be shown as `Authorization: Bearer …` to change anything: 16 or more visible ASCII characters \
         (`openssl rand -hex 32`); without one such calls are taken on a loopback address only; never shown",
    ),
    key(
        "/instrumentation/token-file",
        FILE,
        "none",
        "Instead of `token`, the file that has it, read when the configuration is",
    ),
    key(
        "/reload/watch",
        Kind::Flag,
        "",
        "Whether the configuration is read again by itself when the file, or one that it names, has changed; it always \
         is on `SIGHUP`, `POST /reload` and `canary-router reload`",
    ),
    key(
        "/log/level",
        Kind::Level(&["error", "warn", "info", "debug", "trace"], LEVELS),
        "",
        "The least severe level that is logged",
    ),
    key(
        "/log/format",
        Kind::Word(&["json", "text"]),
        "",
        "`\"text\"`: lines for people",
    ),
    key(
        "/log/access",
        Kind::Word(&["off", "json"]),
        "",
        "`\"json\"`: a line for each request",
    ),
    key(
        "/log/debug-request-body",
        Kind::Flag,
        "",
        "At `debug`, the first 4 KiB of request bodies too",
    ),
    key(
        "/log/debug-response-body",
        Kind::Flag,
        "",
        "At `debug`, the first 4 KiB of response bodies too",
    ),
    key(
        "/tracing/endpoint",
        URL,
        "none (off)",
        "The base URL of a collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`; `/v1/traces` is \
         appended, as to `OTEL_EXPORTER_OTLP_ENDPOINT`",
    ),
    key(
        "/tracing/sample",
        Kind::Percent,
        "",
        "The percentage of requests that are traced, of those without a `traceparent`; with one, its `sampled` flag \
         decides",
    ),
    key(
        "/tracing/service-name",
        ANY,
        "",
        "What the collector knows the router by",
    ),
    key(
        "/state/file",
        FILE,
        "none (in memory)",
        "Where limits, breakers and rollout are kept, so that they survive a restart and `kill -9`",
    ),
];

/// In any case, and the original's names too.
const LEVELS: &str = concat!(
    r"^\s*([Ee][Rr][Rr][Oo][Rr]|[Ff][Aa][Tt][Aa][Ll]|[Pp][Aa][Nn][Ii][Cc]|[Ww][Aa][Rr][Nn]([Ii][Nn][Gg])?|",
    r"[Ii][Nn][Ff][Oo]|[Dd][Ee][Bb][Uu][Gg]|[Tt][Rr][Aa][Cc][Ee])?\s*$"
);
