"""What a collector makes of an export request: `otlp_check.py` reads one in JSON on stdin, as OTLP over HTTP has it,
by the official Protobuf definitions and without leniency, and writes what it understood. Fails where it would refuse."""

import base64
import json
import sys

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

IDS = {"traceId": 16, "spanId": 8, "parentSpanId": 8}


def with_ids_as_protobuf_has_them(value):
    """OTLP writes ids in hexadecimal, where Protobuf's own JSON has base64."""
    if isinstance(value, list):
        return [with_ids_as_protobuf_has_them(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: id_of(key, item) if key in IDS else with_ids_as_protobuf_has_them(item) for key, item in value.items()}


def id_of(key, text):
    raw = bytes.fromhex(text)
    assert len(raw) == IDS[key] and any(raw), f"{key}: {text}"
    return base64.b64encode(raw).decode()


def attributes(pairs):
    found = {}
    for pair in pairs:
        assert pair.key not in found, pair.key
        kind = pair.value.WhichOneof("value")
        found[pair.key] = [kind, str(getattr(pair.value, kind))]
    return found


def span(of):
    return {
        "trace": of.trace_id.hex(),
        "id": of.span_id.hex(),
        "parent": of.parent_span_id.hex(),
        "state": of.trace_state,
        "flags": of.flags,
        "name": of.name,
        "kind": type(of).SpanKind.Name(of.kind),
        "started": str(of.start_time_unix_nano),
        "ended": str(of.end_time_unix_nano),
        "attributes": attributes(of.attributes),
        "status": [of.status.code, of.status.message],
    }


request = json.loads(sys.stdin.buffer.read().decode("utf-8", "strict"))
message = json_format.ParseDict(
    with_ids_as_protobuf_has_them(request), ExportTraceServiceRequest(), ignore_unknown_fields=False
)
assert message.IsInitialized()
(of_resource,) = message.resource_spans
(of_scope,) = of_resource.scope_spans
json.dump(
    {
        "resource": attributes(of_resource.resource.attributes),
        "scope": [of_scope.scope.name, of_scope.scope.version],
        "spans": [span(of) for of in of_scope.spans],
    },
    sys.stdout,
)
