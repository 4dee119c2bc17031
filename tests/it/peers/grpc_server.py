"""A gRPC service without generated code: messages are bytes. Prints the port that it listens on."""

import json
import sys
import threading
from concurrent import futures

import grpc

noted = {"waiting": 0, "cancelled": 0}
lock = threading.Lock()


def note(what):
    with lock:
        noted[what] += 1


def metadata_of(context):
    return [
        [key, value.hex() if isinstance(value, bytes) else value]
        for key, value in context.invocation_metadata()
    ]


def echo(request, context):
    return request


def join(requests, context):
    return b",".join(requests)


def count(request, context):
    for i in range(int(request)):
        yield b"%d" % i


def talk(requests, context):
    for request in requests:
        yield b"re: " + request


def metadata(request, context):
    context.send_initial_metadata((("x-initial", "1"), ("x-initial-bin", bytes(range(256)))))
    context.set_trailing_metadata((("x-trailing", "2"), ("x-trailing-bin", b"\x00\xff")))
    return json.dumps(metadata_of(context)).encode()


def fail(request, context):
    code, message = request.decode().split(":", 1)
    context.set_trailing_metadata((("x-why", "because"),))
    code = next(each for each in grpc.StatusCode if each.value[0] == int(code))
    context.abort(code, message)


def fail_late(request, context):
    yield b"one"
    yield b"two"
    fail(request, context)


def never(request, context):
    """Answers when the client has given up, and not before."""
    over = threading.Event()
    context.add_callback(over.set)
    note("waiting")
    if over.wait(60):
        note("cancelled")
    return b""


def endless(request, context):
    over = threading.Event()
    context.add_callback(lambda: (note("cancelled"), over.set()))
    i = 0
    while not over.wait(0.005):
        yield b"%d" % i
        i += 1


def large(request, context):
    return b"x" * int(request)


def deadline(request, context):
    return b"%f" % context.time_remaining()


def what_is_noted(request, context):
    with lock:
        return json.dumps(noted).encode()


def handlers():
    unary = grpc.unary_unary_rpc_method_handler
    return {
        "Echo": unary(echo),
        "Join": grpc.stream_unary_rpc_method_handler(join),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
        "Metadata": unary(metadata),
        "Fail": unary(fail),
        "FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
        "Never": unary(never),
        "Endless": grpc.unary_stream_rpc_method_handler(endless),
        "Large": unary(large),
        "Deadline": unary(deadline),
        "Noted": unary(what_is_noted),
    }


def main():
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=256),
        compression=grpc.Compression.Gzip if "gzip" in sys.argv[1:] else None,
        options=[("grpc.max_receive_message_length", 16 << 20), ("grpc.so_reuseport", 0)],
    )
    service = grpc.method_handlers_generic_handler("test.Peer", handlers())
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    # Until whoever started us closes our input.
    sys.stdin.read()
    server.stop(None)


main()
