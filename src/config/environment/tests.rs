use serde_json::json;

use super::{
    super::{Config, ConfigError, Level, Source, raw::Raw},
    *,
};

const MINIMAL: [(&str, &str); 4] = [
    ("CANARY_ROUTER_MAIN_TARGET", "http://main.example"),
    ("CANARY_ROUTER_CANARY_TARGET", "http://canary.example"),
    ("CANARY_ROUTER_ROUTER_SERVER__HOST", "127.0.0.1"),
    ("CANARY_ROUTER_ROUTER_SERVER__PORT", "1345"),
];

fn template() -> &'static Value {
    super::super::json::template()
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    let variables = variables.iter();
    Environment::new(variables.map(|(name, value)| (name.into(), value.into())))
}

/// What a file says with these over it.
fn over(file: Value, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let text = file.to_string();
    super::super::judged(Some(("c.json", &text)), &environment(variables))
}

fn alone(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    super::super::judged(None, &environment(variables))
}

/// A minimal file, and one variable over it.
fn with(name: &str, value: &str) -> Result<Config, ConfigError> {
    let file = json!({
        "main-target": "http://main.example",
        "canary-target": "http://canary.example",
        "router-server": {"host": "127.0.0.1", "port": 1345}
    });
    over(file, &[(name, value)])
}

#[track_caller]
fn said(result: Result<Config, ConfigError>) -> Vec<String> {
    let error = result.expect_err("it must be refused");
    error.to_string().lines().map(str::to_owned).collect()
}

/// What is read of this text for this key, before it is judged; `None` where it does not fit.
fn read_as(name: &str, text: &str) -> Option<Value> {
    let mut problems = Problems::default();
    let raw = super::super::json::read(None, &environment(&[(name, text)]), &mut problems);
    problems
        .into_result("", Default::default(), raw)
        .ok()
        .map(|raw| serde_json::to_value(raw).unwrap())
}

#[test]
fn every_key_is_set_by_the_variable_of_its_path() {
    let [unset, template] =
        [Raw::default(), Raw::template()].map(|raw| serde_json::to_value(raw).unwrap());
    let names = names(&template);
    assert!(names.len() > 90, "{}", names.len());
    for (name, path) in &names {
        let expected = path.trim_start_matches('/').to_uppercase();
        let expected = expected.replace('/', "__").replace('-', "_");
        assert_eq!(*name, format!("CANARY_ROUTER_{expected}"));
        // One of these fits every kind that there is.
        let texts = [
            "7s",
            "7",
            "7%",
            "true",
            "a, b",
            r#"[{"weight": 7, "for": "7s"}]"#,
        ];
        let taken = texts.iter().find_map(|text| read_as(name, text));
        let taken = taken.unwrap_or_else(|| panic!("{name} takes nothing"));
        let value = taken.pointer(path);
        assert!(
            value.is_some_and(|value| Some(value) != unset.pointer(path)),
            "{name}"
        );
        // And nothing else.
        for (other, path) in names.iter().filter(|(other, _)| other != name) {
            let value = taken.pointer(path);
            let is_as_before = [&unset, &template]
                .iter()
                .any(|raw| raw.pointer(path) == value)
                || value.is_some_and(|value| value.is_null() || *value == "");
            assert!(is_as_before, "{name} changed {other}");
        }
    }
}

#[test]
fn a_text_is_the_same_in_the_file_and_in_the_environment() {
    let template = template();
    let is_text = |path: &str| {
        template
            .pointer(path)
            .is_some_and(|value| !value.is_array())
    };
    for (name, path) in names(template)
        .into_iter()
        .filter(|(_, path)| is_text(path))
    {
        for text in [
            "7", "0.5", "250ms", "64KiB", "50%", "true", "5xx", "off", "seven", " 7 ",
        ] {
            let in_file = path.rsplit('/').fold(json!(text), |value, key| match key {
                "" => value,
                key => json!({ key: value }),
            });
            let mut problems = Problems::default();
            let file = in_file.to_string();
            let raw = super::super::json::read(Some(&file), &Environment::default(), &mut problems);
            let raw = problems.into_result("", Default::default(), raw).ok();
            let raw = raw.map(|raw| serde_json::to_value(raw).unwrap());
            assert_eq!(read_as(&name, text), raw, "{name}={text}");
        }
    }
}

#[test]
fn the_environment_wins_over_the_file() {
    let file = json!({
        "main-target": "http://main.example",
        "canary-target": "no URL",
        "circuit-breaker": {"error-limit-canary": 15, "request-limit-canary": 7},
        "proxy-client": {"to-sidecar": {"timeout": "2s"}},
        "router-server": {"host": "127.0.0.1", "port": 1345},
        "log": null
    });
    let config = over(
        file,
        &[
            ("CANARY_ROUTER_CANARY_TARGET", "http://canary.example"),
            ("CANARY_ROUTER_CIRCUIT_BREAKER__ERROR_LIMIT_CANARY", "5"),
            ("CANARY_ROUTER_PROXY_CLIENT__TO_SIDECAR__TIMEOUT", "500ms"),
            ("CANARY_ROUTER_LOG__LEVEL", "debug"),
            ("CANARY_ROUTER_LOG__FORMAT", ""),
            ("UNRELATED", "x"),
            ("canary_router_log__level", "x"),
        ],
    )
    .unwrap();
    assert_eq!(
        (config.limits.errors, config.limits.requests),
        (Some(5), Some(7))
    );
    assert_eq!(config.log.level, Level::Debug);
    for (path, value) in [
        ("/canary-target", json!("http://canary.example")),
        ("/proxy-client/to-sidecar/timeout", json!("500ms")),
    ] {
        assert_eq!(config.effective.pointer(path), Some(&value));
    }
    assert_eq!(
        config.variables,
        [
            "CANARY_ROUTER_CANARY_TARGET",
            "CANARY_ROUTER_CIRCUIT_BREAKER__ERROR_LIMIT_CANARY",
            "CANARY_ROUTER_LOG__LEVEL",
            "CANARY_ROUTER_PROXY_CLIENT__TO_SIDECAR__TIMEOUT"
        ]
    );
}

/// Else a test, or a program that has the router in it, would depend on where it runs.
#[test]
fn the_text_of_a_file_by_itself_is_judged_without_the_environment() {
    let config = Config::parse("c.json", "{}").unwrap_err();
    assert!(
        config
            .problems
            .iter()
            .all(|problem| problem.variable.is_none())
    );
}

#[test]
fn the_environment_alone_is_enough() {
    let config = alone(&MINIMAL).unwrap();
    assert_eq!(config.server.listen.port, 1345);
    assert!(config.instrumentation.is_none() && config.tracing.is_none());
    let mut more = MINIMAL.to_vec();
    more.push(("CANARY_ROUTER_INSTRUMENTATION__PORT", "8888"));
    more.push(("CANARY_ROUTER_TRACING__ENDPOINT", "http://127.0.0.1:4318"));
    let config = alone(&more).unwrap();
    assert!(config.instrumentation.is_some() && config.tracing.is_some());
    assert_eq!(
        said(alone(&MINIMAL[..3])),
        [
            "environment: CANARY_ROUTER_ROUTER_SERVER__PORT (/router-server/port): is missing: write the \
             TCP port to listen on, such as 1345"
        ]
    );
}

#[test]
fn a_list_is_separated_by_commas_or_json() {
    let key = "CANARY_ROUTER_OVERRIDE__TRUSTED";
    for text in [
        "10.0.0.0/8,127.0.0.1",
        " 10.0.0.0/8 , 127.0.0.1 ",
        r#" ["10.0.0.0/8", "127.0.0.1"] "#,
    ] {
        let trusted = with(key, text).unwrap().trusted_overrides.unwrap();
        let trusted: Vec<String> = trusted.iter().map(ToString::to_string).collect();
        assert_eq!(trusted, ["10.0.0.0/8", "127.0.0.1/32"], "{text}");
    }
    assert_eq!(with(key, "[]").unwrap().trusted_overrides, Some(vec![]));
    assert_eq!(with(key, " ").unwrap().trusted_overrides, None);
    let statuses = |text| {
        with("CANARY_ROUTER_FALLBACK__STATUSES", text)
            .unwrap()
            .fallback
            .statuses
    };
    assert_eq!(statuses("502, 503"), [502, 503]);
    assert_eq!(statuses(r#"[502, "503"]"#), [502, 503]);
    assert_eq!(statuses("503"), [503]);
    for (text, place, hint) in [
        ("10.0.0.0/8,", "/1", "neither a network nor an address"),
        (
            "10.0.0.0/8 127.0.0.1",
            "/0",
            "neither a network nor an address",
        ),
        ("[1]", "", "a list of strings"),
        ("[", "", "not valid JSON"),
    ] {
        let said = said(with(key, text));
        let begin = format!("environment: {key} (/override/trusted{place}): ");
        assert!(
            said[0].starts_with(&begin) && said[0].contains(hint),
            "{said:#?}"
        );
        assert_eq!(said.len(), 1, "{said:#?}");
    }
}

#[test]
fn a_list_of_objects_is_json_and_judged_as_in_the_file() {
    let key = "CANARY_ROUTER_ROLLOUT__STEPS";
    let with = |text| {
        let mut variables = MINIMAL.to_vec();
        variables.extend([
            ("CANARY_ROUTER_INSTRUMENTATION__HOST", "127.0.0.1"),
            (key, text),
        ]);
        alone(&variables)
    };
    let steps = r#"[{"weight": 5, "for": "10m"}, {"weight": 50, "for": null, "for": "1h"}]"#;
    let said_twice = said(with(steps));
    assert_eq!(
        said_twice,
        [format!(
            "environment: {key} (/rollout/steps/1/for): is written twice: keep one of them"
        )]
    );
    let config = with(r#"[{"weight": 5, "for": "10m"}, {"weight": "50%", "for": 60}]"#).unwrap();
    assert_eq!(config.rollout.unwrap().settings.steps.len(), 2);
    for (text, place, hint) in [
        ("5,50", "", "not valid JSON"),
        ("5", "", "a list of steps"),
        (r#"{"weight": 5, "for": "10m"}"#, "", "a list of steps"),
        (
            r#"[{"weight": 5, "fro": "10m"}]"#,
            "/0/fro",
            "the keys here are weight, for",
        ),
        (
            r#"[{"weight": 500, "for": "10m"}]"#,
            "/0/weight",
            "a percentage from 0 to 100",
        ),
    ] {
        let said = said(with(text));
        let begin = format!("environment: {key} (/rollout/steps{place}): ");
        assert!(
            said[0].starts_with(&begin) && said[0].contains(hint),
            "{text}: {said:#?}"
        );
    }
}

#[test]
fn a_value_that_cannot_work_is_refused_with_its_variable() {
    for (name, value, path, hint) in [
        (
            "ROUTER_SERVER__PORT",
            "http",
            "/router-server/port",
            "a TCP port",
        ),
        (
            "ROUTER_SERVER__READ_TIMEOUT",
            "soon",
            "/router-server/read-timeout",
            "a duration",
        ),
        (
            "ROUTER_SERVER__HTTP2",
            "yes",
            "/router-server/http2",
            "true or false",
        ),
        (
            "CIRCUIT_BREAKER__MAIN__WINDOW",
            "1s",
            "/circuit-breaker/main/window",
            "has no effect",
        ),
        ("LOG__LEVEL", "loud", "/log/level", "use error, warn"),
        ("MAIN_TARGET", "main.example", "/main-target", "http://"),
    ] {
        let name = format!("CANARY_ROUTER_{name}");
        let said = said(with(&name, value));
        let begin = format!("environment: {name} ({path}): ");
        assert!(said.len() == 1 && said[0].starts_with(&begin), "{said:#?}");
        assert!(said[0].contains(hint), "{said:#?}");
    }
    let name = OsString::from("CANARY_ROUTER_TRIM_PREFIX");
    let value = std::os::unix::ffi::OsStringExt::from_vec(vec![b'/', 0xff]);
    let result = super::super::judged(None, &Environment::new([(name, value)]));
    let said = said(result).join("\n");
    assert!(
        said.contains("CANARY_ROUTER_TRIM_PREFIX (/trim-prefix): is not UTF-8"),
        "{said}"
    );
}

#[test]
fn what_the_file_says_is_still_the_files() {
    let file = json!({
        "main-target": "http://main.example",
        "canary-target": "http://canary.example",
        "router-server": {"host": "127.0.0.1", "prot": 1345},
        "override": {"trusted": ["nobody"]},
        "tracing": 5
    });
    let said = said(over(
        file,
        &[
            ("CANARY_ROUTER_ROUTER_SERVER__PORT", "0"),
            ("CANARY_ROUTER_OVERRIDE__TRUSTED", "127.0.0.1"),
            ("CANARY_ROUTER_TRACING__SAMPLE", "5"),
        ],
    ));
    let begins = [
        "c.json: /router-server/prot: unknown key",
        "c.json: /tracing: ",
        "environment: CANARY_ROUTER_ROUTER_SERVER__PORT (/router-server/port): is missing",
    ];
    assert_eq!(said.len(), begins.len(), "{said:#?}");
    for (said, begin) in said.iter().zip(begins) {
        assert!(said.starts_with(begin), "{said}");
    }
}

#[test]
fn a_misspelt_variable_names_the_nearest_known_one() {
    for (misspelt, known) in [
        (
            "CIRCUIT_BREAKER__ERROR_LIMIT_CANERY",
            "CIRCUIT_BREAKER__ERROR_LIMIT_CANARY",
        ),
        (
            "CIRCUIT_BREAKER_ERROR_LIMIT_CANARY",
            "CIRCUIT_BREAKER__ERROR_LIMIT_CANARY",
        ),
        ("ROUTER_SERVER_PORT", "ROUTER_SERVER__PORT"),
        ("MAIN_TAGET", "MAIN_TARGET"),
        ("main_target", "MAIN_TARGET"),
        ("TOKEN", "INSTRUMENTATION__TOKEN"),
        ("TOKEN_FIL", "INSTRUMENTATION__TOKEN_FILE"),
    ] {
        let misspelt = format!("CANARY_ROUTER_{misspelt}");
        for value in ["s3cret", "1345", ""] {
            let said = said(with(&misspelt, value));
            let expected = format!(
                "environment: {misspelt}: unknown variable; did you mean CANARY_ROUTER_{known}?"
            );
            assert_eq!(said, [expected]);
        }
    }
    let said_of = |name: &str| said(with(name, "s3cret")).join("\n");
    assert!(said_of("CANARY_ROUTER_").contains("the path of a key in upper case"));
    assert!(said_of("CANARY_ROUTER_STATE__REDIS").contains("not in this version"));
    assert!(said_of("CANARY_ROUTER_A\nB").contains(r"CANARY_ROUTER_A\nB: unknown"));
    assert_eq!(
        said_of("CANARY_ROUTER_CIRCUIT_BREAKER"),
        "environment: CANARY_ROUTER_CIRCUIT_BREAKER (/circuit-breaker): is a section: set its keys one by \
         one, such as CANARY_ROUTER_CIRCUIT_BREAKER__REQUEST_LIMIT_CANARY"
    );
}

#[test]
fn what_others_put_there_is_passed_over() {
    for (name, value) in [
        ("CANARY_ROUTER_URL", "http://127.0.0.1:8888"),
        ("CANARY_ROUTER_TOKEN_FILE", "/run/secrets/token"),
        // Of the Service canary-router.
        ("CANARY_ROUTER_SERVICE_HOST", "10.0.0.11"),
        ("CANARY_ROUTER_SERVICE_PORT", "1345"),
        ("CANARY_ROUTER_SERVICE_PORT_HTTP", "1345"),
        ("CANARY_ROUTER_PORT", "tcp://10.0.0.11:1345"),
        ("CANARY_ROUTER_PORT_1345_TCP", "tcp://10.0.0.11:1345"),
        ("CANARY_ROUTER_PORT_1345_TCP_PROTO", "tcp"),
        ("CANARY_ROUTER_PORT_1345_TCP_PORT", "1345"),
        ("CANARY_ROUTER_PORT_1345_TCP_ADDR", "10.0.0.11"),
        // Of canary-router-metrics, in a cluster of IPv6.
        ("CANARY_ROUTER_METRICS_SERVICE_HOST", "fd00::11"),
        ("CANARY_ROUTER_METRICS_SERVICE_PORT_WEB_UI", "80"),
        ("CANARY_ROUTER_METRICS_PORT", "udp://[fd00::11]:53"),
        ("CANARY_ROUTER_METRICS_PORT_53_UDP", "udp://[fd00::11]:53"),
        ("CANARY_ROUTER_METRICS_PORT_53_UDP_PROTO", "udp"),
        ("CANARY_ROUTER_METRICS_PORT_53_UDP_ADDR", "fd00::11"),
        ("CANARY_ROUTER_METRICS_PORT_5_SCTP_PROTO", "sctp"),
        ("CANARY_ROUTER_METRICS_PORT_5_SCTP_PORT", "5"),
    ] {
        let config = with(name, value).unwrap_or_else(|error| panic!("{error}"));
        assert!(config.variables.is_empty());
    }
    // What only looks like it, and the key that it could be mistaken for.
    for (name, value) in [
        ("CANARY_ROUTER_PORT", "1345"),
        ("CANARY_ROUTER_SERVICE_HOST", "localhost"),
        ("CANARY_ROUTER_SERVICE_PORT", "http"),
        ("CANARY_ROUTER_SERVICE_PORTS", "1345"),
        ("CANARY_ROUTER_ROUTER_SERVR__PORT", "1345"),
        ("CANARY_ROUTER_PORT_1345_TCP", "1345"),
        ("CANARY_ROUTER_PORT_1345_TCP_PORT", "http"),
        ("CANARY_ROUTER_PORT_HTTP_TCP_PORT", "1345"),
        ("CANARY_ROUTER_1345_TCP_PORT", "1345"),
        ("CANARY_ROUTER_PORT_1345_ICMP_ADDR", "10.0.0.11"),
    ] {
        assert!(
            said(with(name, value))[0].contains("unknown variable"),
            "{name}"
        );
    }
    let config = with("CANARY_ROUTER_ROUTER_SERVER__PORT", "8080").unwrap();
    assert_eq!(config.server.listen.port, 8080);
    let said = said(with(
        "CANARY_ROUTER_ROUTER_SERVER__PORT",
        "tcp://10.0.0.11:1345",
    ));
    assert!(
        said[0].contains("(/router-server/port): expected a TCP port"),
        "{said:#?}"
    );
}

#[test]
fn a_section_that_may_be_off_can_be_switched_off() {
    let mut file = super::super::tests::minimal();
    file["tracing"] = json!({"endpoint": "http://127.0.0.1:4318", "sample": 5});
    file["traffic"] = json!({"weight": 5, "sticky": {"by": "client-ip"}});
    let off = [
        ("CANARY_ROUTER_TRACING", "off"),
        ("CANARY_ROUTER_TRAFFIC__STICKY", " off "),
    ];
    let config = over(file.clone(), &off).unwrap();
    assert!(config.tracing.is_none() && config.traffic.sticky.is_none());
    assert_eq!(config.effective.pointer("/traffic/weight"), Some(&json!(5)));
    assert_eq!(
        config.variables,
        ["CANARY_ROUTER_TRACING", "CANARY_ROUTER_TRAFFIC__STICKY"]
    );
    // And on again.
    file["tracing"] = json!("off");
    let config = over(
        file.clone(),
        &[("CANARY_ROUTER_TRACING__ENDPOINT", "http://127.0.0.1:4318")],
    );
    assert!(config.unwrap().tracing.is_some());

    let both = [
        ("CANARY_ROUTER_TRACING", "off"),
        ("CANARY_ROUTER_TRACING__SAMPLE", "5"),
    ];
    assert_eq!(
        said(over(file.clone(), &both)),
        [
            "environment: CANARY_ROUTER_TRACING__SAMPLE (/tracing/sample): stands beside CANARY_ROUTER_TRACING: \
          keep one of them"
        ]
    );
    for (name, value) in [
        ("CANARY_ROUTER_TRACING", "on"),
        ("CANARY_ROUTER_FALLBACK", "off"),
    ] {
        let said = said(over(file.clone(), &[(name, value)]));
        assert!(
            said[0].contains("is a section: set its keys one by one, such as"),
            "{said:#?}"
        );
    }
}

#[test]
fn a_token_from_the_environment_is_shown_nowhere() {
    let key = "CANARY_ROUTER_INSTRUMENTATION__TOKEN";
    let config = with(key, "s3cret-s3cret-s3cret").unwrap();
    let token = config.instrumentation.as_ref().unwrap().token.as_ref();
    assert_eq!(token.unwrap().as_str(), "s3cret-s3cret-s3cret");
    let shown = format!("{config:?}{}", config.effective);
    assert!(!shown.contains("s3cret"), "{shown}");
    let error = with(key, "s3cret").unwrap_err();
    let shown = format!("{error:?}{error}");
    assert!(shown.contains(key) && !shown.contains("s3cret"), "{shown}");
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let absent = Source::new(Some("/nowhere/config.json".as_ref()));
    assert_eq!(absent.to_string(), "/nowhere/config.json");
    let variables = MINIMAL.map(|(name, value)| (name.into(), value.into()));
    let error = absent.load_with(variables.clone()).unwrap_err();
    assert!(error.to_string().contains("cannot be read"), "{error}");
    assert_eq!(
        Source::Environment
            .load_with(variables)
            .unwrap()
            .server
            .listen
            .port,
        1345
    );
}
