"""A gRPC client: `grpc_client.py SCENARIO ROUTER SERVICE [CA]` does one thing through the router, and fails
if it does not come out as it would without a router. SERVICE is asked directly what it has seen."""

import json
import sys
import threading
import time

import grpc

SCENARIO, ROUTER, SERVICE = sys.argv[1:4]
CA = sys.argv[4] if len(sys.argv) > 4 else None
OPTIONS = [("grpc.max_receive_message_length", 16 << 20), ("grpc.enable_http_proxy", 0)]
# Far more than anything takes: only a hang gets there.
PATIENCE = 15


def channel(compression=None):
    if CA is None:
        return grpc.insecure_channel(ROUTER, OPTIONS, compression)
    with open(CA, "rb") as ca:
        credentials = grpc.ssl_channel_credentials(ca.read())
    options = OPTIONS + [("grpc.ssl_target_name_override", "localhost")]
    return grpc.secure_channel(ROUTER, credentials, options, compression)


def unary(channel, name):
    return channel.unary_unary(f"/test.Peer/{name}")


def fails(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("it did not fail")


def equal(got, expected):
    assert got == expected, f"{str(got)[:500]} instead of {str(expected)[:500]}"


def noted():
    with grpc.insecure_channel(SERVICE, OPTIONS) as direct:
        return json.loads(unary(direct, "Noted")(b"", timeout=PATIENCE))


def cancellations():
    return noted()["cancelled"]


def asked_so_far():
    return noted()["waiting"]


def eventually(condition):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < PATIENCE, "it did not happen"
        time.sleep(0.01)


def one_request_one_response(channel):
    echo = unary(channel, "Echo")
    for message in (b"hello", b"", b"\x00\xff" * 1000):
        equal(echo(message, timeout=PATIENCE), message)


def many_requests_one_response(channel):
    join = channel.stream_unary("/test.Peer/Join")
    equal(join(iter([b"a", b"", b"c"]), timeout=PATIENCE), b"a,,c")
    equal(join(iter([]), timeout=PATIENCE), b"")


def one_request_many_responses(channel):
    count = channel.unary_stream("/test.Peer/Count")
    equal(list(count(b"1000", timeout=PATIENCE)), [b"%d" % i for i in range(1000)])
    equal(list(count(b"0", timeout=PATIENCE)), [])


def ping_pong(channel):
    """Each message is sent when the one before it was answered."""
    turn = threading.Semaphore(1)

    def requests():
        for i in range(100):
            turn.acquire()
            yield b"%d" % i

    answers = []
    for answer in channel.stream_stream("/test.Peer/Talk")(requests(), timeout=PATIENCE):
        answers.append(answer)
        turn.release()
    equal(answers, [b"re: %d" % i for i in range(100)])


def metadata(channel):
    every_byte = bytes(range(256))
    sent = (
        ("x-text", "a, b"),
        ("x-twice", "1"),
        ("x-twice", "2"),
        ("x-empty", ""),
        ("x-binary-bin", every_byte),
        ("x-empty-bin", b""),
    )
    answer, call = unary(channel, "Metadata").with_call(b"", metadata=sent, timeout=PATIENCE)
    seen = [tuple(pair) for pair in json.loads(answer)]
    for key, value in sent:
        value = value.hex() if isinstance(value, bytes) else value
        assert (key, value) in seen, f"{key} is missing: {seen}"
    initial = dict(call.initial_metadata())
    equal((initial["x-initial"], initial["x-initial-bin"]), ("1", every_byte))
    trailing = dict(call.trailing_metadata())
    equal((trailing["x-trailing"], trailing["x-trailing-bin"]), ("2", b"\x00\xff"))


def statuses(channel):
    message = "w\u00f6rum? \u4e0d\u77e5\u9053 100 %\n"
    for code in grpc.StatusCode:
        number = code.value[0]
        if number == 0:
            continue
        request = f"{number}:{message}".encode()
        error = fails(lambda: unary(channel, "Fail")(request, timeout=PATIENCE))
        equal((error.code(), error.details()), (code, message))
        equal(dict(error.trailing_metadata())["x-why"], "because")
        # And behind some content.
        call = channel.unary_stream("/test.Peer/FailLate")(request, timeout=PATIENCE)
        equal([next(call), next(call)], [b"one", b"two"])
        error = fails(lambda: next(call))
        equal((error.code(), error.details()), (code, message))
    error = fails(lambda: unary(channel, "NoSuchMethod")(b"", timeout=PATIENCE))
    equal(error.code(), grpc.StatusCode.UNIMPLEMENTED)


def deadline(channel):
    left = float(unary(channel, "Deadline")(b"", timeout=PATIENCE))
    assert PATIENCE - 5 < left <= PATIENCE, left
    before = cancellations()
    error = fails(lambda: unary(channel, "Never")(b"", timeout=0.3))
    equal(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
    eventually(lambda: cancellations() == before + 1)


def cancellation(channel):
    before = cancellations()
    asked = asked_so_far()
    call = unary(channel, "Never").future(b"", timeout=PATIENCE)
    eventually(lambda: asked_so_far() == asked + 1)
    call.cancel()
    eventually(lambda: cancellations() == before + 1)
    # In the middle of a stream.
    call = channel.unary_stream("/test.Peer/Endless")(b"", timeout=PATIENCE)
    equal([next(call) for _ in range(5)], [b"%d" % i for i in range(5)])
    call.cancel()
    eventually(lambda: cancellations() == before + 2)
    equal(unary(channel, "Echo")(b"still here", timeout=PATIENCE), b"still here")


def large_messages(channel):
    size = 4 << 20
    request = bytes(i * i % 251 for i in range(65_536)) * (size // 65_536)
    equal(unary(channel, "Echo")(request, timeout=PATIENCE) == request, True)
    equal(len(unary(channel, "Large")(b"%d" % (10 << 20), timeout=PATIENCE)), 10 << 20)


def compression(_channel):
    with channel(grpc.Compression.Gzip) as compressed:
        echo = unary(compressed, "Echo")
        request = b"abc" * 100_000
        equal(echo(request, timeout=PATIENCE) == request, True)
        metadata(compressed)


def concurrency(channel):
    """A hundred conversations at once, on one connection, message by message."""
    talk = channel.stream_stream("/test.Peer/Talk")
    turns = threading.Barrier(100)
    wrong = []

    def converse(number):
        turn = threading.Semaphore(1)

        def requests():
            for i in range(10):
                turn.acquire()
                if i == 1:
                    # All of them have begun.
                    turns.wait(PATIENCE)
                yield b"%d.%d" % (number, i)

        answers = []
        for answer in talk(requests(), timeout=PATIENCE):
            answers.append(answer)
            turn.release()
        if answers != [b"re: %d.%d" % (number, i) for i in range(10)]:
            wrong.append((number, answers))

    threads = [threading.Thread(target=converse, args=(i,)) for i in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    equal(wrong, [])
    assert not any(thread.is_alive() for thread in threads), "some hang"


with channel() as through:
    {
        scenario.__name__: scenario
        for scenario in (
            one_request_one_response,
            many_requests_one_response,
            one_request_many_responses,
            ping_pong,
            metadata,
            statuses,
            deadline,
            cancellation,
            large_messages,
            compression,
            concurrency,
        )
    }[SCENARIO](through)
print("fine")
