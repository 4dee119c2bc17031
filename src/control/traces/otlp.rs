//! Spans as OTLP has them, in JSON (OpenTelemetry Protocol 1.0, *JSON Protobuf Encoding*): ids in hexadecimal, 64-bit
//! numbers as strings, enums as numbers, names in camel case, and what is a default left out.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use crate::{
    VERSION,
    state::{
        Spans,
        spans::{Attribute, Span, SpanKind},
    },
    uuid,
};

/// The W3C flag `sampled`: what is not is not exported.
const SAMPLED: u32 = 1;
/// Whether the parent is another process's is said by the next one (`SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`).
const KNOWS_PARENT: u32 = 0x100;
/// `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`.
const PARENT_IS_REMOTE: u32 = 0x200;
/// `STATUS_CODE_ERROR`.
const ERROR: u8 = 2;

/// Who the spans are of.
pub struct Resource {
    service: String,
    instance: String,
}

impl Resource {
    /// This process, under this name; what it is known by besides is made up.
    pub fn new(service: &str) -> Resource {
        Resource {
            service: service.to_owned(),
            instance: random_uuid(),
        }
    }
}

fn random_uuid() -> String {
    String::from_utf8_lossy(&uuid::fresh(fastrand::u128(..))).into_owned()
}

/// An `ExportTraceServiceRequest`.
pub fn encode(resource: &Resource, batch: &[Spans]) -> Vec<u8> {
    let text = |text| Value::Text(text);
    let request = Request {
        resource_spans: [ResourceSpans {
            resource: Attributes {
                attributes: [
                    ("service.name", text(&resource.service)),
                    ("service.version", text(VERSION)),
                    ("service.instance.id", text(&resource.instance)),
                ]
                .map(|(key, value)| KeyValue { key, value })
                .into(),
            },
            scope_spans: [ScopeSpans {
                scope: Scope {
                    name: env!("CARGO_PKG_NAME"),
                    version: VERSION,
                },
                spans: batch.iter().flat_map(of_request).collect(),
            }],
        }],
    };
    serde_json::to_vec(&request).expect("texts and numbers can be written to memory")
}

fn of_request(request: &Spans) -> impl Iterator<Item = JsonSpan<'_>> {
    let trace_id = format!("{:032x}", request.trace);
    let spans = request.spans.iter().enumerate();
    spans.map(move |(i, span)| json_span(&trace_id, span, (i == 0).then_some(request)))
}

/// `first` is the request of its first span.
fn json_span<'a>(trace_id: &str, span: &'a Span, first: Option<&'a Spans>) -> JsonSpan<'a> {
    let attributes = span.attributes.iter().map(|(key, value)| KeyValue {
        key,
        value: match value {
            Attribute::Text(text) => Value::Text(text),
            Attribute::Number(number) => Value::Number(number.to_string()),
            Attribute::Real(number) => Value::Real(Double(*number)),
        },
    });
    JsonSpan {
        trace_id: trace_id.to_owned(),
        span_id: id(span.id),
        trace_state: first.and_then(|request| request.trace_state.as_deref()),
        parent_span_id: span.parent.map(id),
        flags: match first.is_some() && span.parent.is_some() {
            true => SAMPLED | KNOWS_PARENT | PARENT_IS_REMOTE,
            false => SAMPLED | KNOWS_PARENT,
        },
        name: &span.name,
        kind: match span.kind {
            SpanKind::Internal => 1,
            SpanKind::Server => 2,
            SpanKind::Client => 3,
        },
        start_time_unix_nano: nanoseconds(span.started),
        // The clock may have been set in between.
        end_time_unix_nano: nanoseconds(span.ended.max(span.started)),
        attributes: attributes.collect(),
        status: span.error.as_deref().map(|message| Status {
            message,
            code: ERROR,
        }),
    }
}

fn id(id: u64) -> String {
    format!("{id:016x}")
}

fn nanoseconds(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().to_string()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    resource_spans: [ResourceSpans<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    resource: Attributes<'a>,
    scope_spans: [ScopeSpans<'a>; 1],
}

#[derive(Serialize)]
struct Attributes<'a> {
    attributes: Vec<KeyValue<'a>>,
}

#[derive(Serialize)]
struct ScopeSpans<'a> {
    scope: Scope,
    spans: Vec<JsonSpan<'a>>,
}

#[derive(Serialize)]
struct Scope {
    name: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonSpan<'a> {
    trace_id: String,
    span_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_state: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    flags: u32,
    name: &'a str,
    kind: u8,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    attributes: Vec<KeyValue<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
}

#[derive(Serialize)]
struct KeyValue<'a> {
    key: &'a str,
    value: Value<'a>,
}

/// `AnyValue`: an object whose one key says what it is.
#[derive(Serialize)]
enum Value<'a> {
    #[serde(rename = "stringValue")]
    Text(&'a str),
    #[serde(rename = "intValue")]
    Number(String),
    #[serde(rename = "doubleValue")]
    Real(Double),
}

struct Double(f64);

impl Serialize for Double {
    /// What is no number to JSON is a string to Protobuf.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            number if number.is_finite() => serializer.serialize_f64(number),
            number if number.is_nan() => serializer.serialize_str("NaN"),
            number if number > 0.0 => serializer.serialize_str("Infinity"),
            _ => serializer.serialize_str("-Infinity"),
        }
    }
}

#[derive(Serialize)]
struct Status<'a> {
    message: &'a str,
    code: u8,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value as Json, json};

    use super::*;

    fn encoded(batch: &[Spans]) -> Json {
        let resource = Resource {
            service: "edge".into(),
            instance: "1".into(),
        };
        serde_json::from_slice(&encode(&resource, batch)).unwrap()
    }

    fn span(id: u64, parent: Option<u64>) -> Span {
        Span {
            id,
            parent,
            name: "GET".into(),
            kind: SpanKind::Server,
            started: UNIX_EPOCH + Duration::new(1_700_000_000, 1),
            ended: UNIX_EPOCH + Duration::new(1_700_000_001, 2),
            attributes: Vec::new(),
            error: None,
        }
    }

    fn spans_of(encoded: &Json) -> &Vec<Json> {
        let spans = encoded.pointer("/resourceSpans/0/scopeSpans/0/spans");
        spans.unwrap().as_array().unwrap()
    }

    #[test]
    fn a_request_is_written_as_otlp_has_it() {
        let call = Span {
            name: "sidecar".into(),
            kind: SpanKind::Client,
            attributes: vec![
                ("http.request.method", Attribute::Text("GET".into())),
                ("http.response.status_code", Attribute::Number(-1 << 62)),
                ("weight", Attribute::Real(0.25)),
            ],
            error: Some("it did not answer".into()),
            ..span(0xfeed, Some(0xbeef))
        };
        let request = Spans {
            trace: 0x1234,
            trace_state: Some("a=1,b=2".into()),
            spans: vec![span(0xbeef, Some(u64::MAX)), call],
        };
        assert_eq!(
            encoded(&[request]),
            json!({"resourceSpans": [{
                "resource": {"attributes": [
                    {"key": "service.name", "value": {"stringValue": "edge"}},
                    {"key": "service.version", "value": {"stringValue": VERSION}},
                    {"key": "service.instance.id", "value": {"stringValue": "1"}}
                ]},
                "scopeSpans": [{
                    "scope": {"name": "canary-router", "version": VERSION},
                    "spans": [
                        {
                            "traceId": "00000000000000000000000000001234",
                            "spanId": "000000000000beef",
                            "traceState": "a=1,b=2",
                            "parentSpanId": "ffffffffffffffff",
                            "flags": 0x301,
                            "name": "GET",
                            "kind": 2,
                            "startTimeUnixNano": "1700000000000000001",
                            "endTimeUnixNano": "1700000001000000002",
                            "attributes": []
                        },
                        {
                            "traceId": "00000000000000000000000000001234",
                            "spanId": "000000000000feed",
                            "parentSpanId": "000000000000beef",
                            "flags": 0x101,
                            "name": "sidecar",
                            "kind": 3,
                            "startTimeUnixNano": "1700000000000000001",
                            "endTimeUnixNano": "1700000001000000002",
                            "attributes": [
                                {"key": "http.request.method", "value": {"stringValue": "GET"}},
                                {"key": "http.response.status_code", "value": {"intValue": "-4611686018427387904"}},
                                {"key": "weight", "value": {"doubleValue": 0.25}}
                            ],
                            "status": {"message": "it did not answer", "code": 2}
                        }
                    ]
                }]
            }]})
        );
    }

    #[test]
    fn a_trace_that_begins_here_has_no_parent() {
        let request = Spans {
            trace: u128::MAX,
            trace_state: None,
            spans: vec![span(1, None)],
        };
        let encoded = encoded(&[request]);
        let span = &spans_of(&encoded)[0];
        assert_eq!(span["traceId"], "f".repeat(32));
        assert_eq!(span["flags"], 0x101);
        for absent in ["parentSpanId", "traceState", "status"] {
            assert_eq!(span.get(absent), None, "{absent}");
        }
    }

    #[test]
    fn clocks_that_were_set_and_numbers_that_are_none_are_written_too() {
        let before = UNIX_EPOCH - Duration::from_secs(1);
        let backwards = Span {
            started: UNIX_EPOCH + Duration::from_secs(2),
            ended: UNIX_EPOCH + Duration::from_secs(1),
            attributes: [f64::NAN, f64::INFINITY, f64::NEG_INFINITY]
                .map(|number| ("n", Attribute::Real(number)))
                .into(),
            ..span(1, None)
        };
        let early = Span {
            started: before,
            ended: before,
            ..span(2, Some(1))
        };
        let request = Spans {
            trace: 1,
            trace_state: None,
            spans: vec![backwards, early],
        };
        let encoded = encoded(&[request]);
        let spans = spans_of(&encoded);
        assert_eq!(spans[0]["endTimeUnixNano"], "2000000000");
        let numbers = spans[0]["attributes"].as_array().unwrap().iter();
        let numbers: Vec<_> = numbers.map(|a| &a["value"]["doubleValue"]).collect();
        assert_eq!(numbers, ["NaN", "Infinity", "-Infinity"]);
        assert_eq!(spans[1]["startTimeUnixNano"], "0");
    }

    #[test]
    fn requests_of_a_batch_keep_their_traces_apart() {
        let request = |trace: u128, count: u64| Spans {
            trace,
            trace_state: None,
            spans: (1..=count).map(|id| span(id, None)).collect(),
        };
        let encoded = encoded(&[request(1, 2), request(2, 1)]);
        let traces: Vec<_> = spans_of(&encoded)
            .iter()
            .map(|span| &span["traceId"])
            .collect();
        let [one, two] = [1, 2].map(|trace| format!("{trace:032x}"));
        assert_eq!(traces, [&one, &one, &two]);
    }

    #[test]
    fn each_process_is_known_by_a_uuid_of_its_own() {
        let uuids = [random_uuid(), random_uuid()];
        assert_ne!(uuids[0], uuids[1]);
        for uuid in uuids {
            let shape: Vec<usize> = uuid.split('-').map(str::len).collect();
            assert_eq!(shape, [8, 4, 4, 4, 12], "{uuid}");
            assert_eq!(uuid.as_bytes()[14], b'4', "{uuid}");
            assert!(b"89ab".contains(&uuid.as_bytes()[19]), "{uuid}");
        }
    }
}
