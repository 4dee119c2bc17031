"""A sidecar: says 200 for the canary, 204 for main. docs/how-to/sidecar.md explains it.

    python3 sidecar.py [ADDRESS:PORT]
"""

import hashlib
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PERCENT = 10  # of the users


def is_for_canary(headers):
    """The rule. This is what you write."""
    if headers.get("X-Plan") == "beta":
        return True
    cookies = "; ".join(headers.get_all("Cookie", [])).split("; ")
    if "beta=yes" in cookies:
        return True
    user = headers.get("X-User-Id", "")
    first = int.from_bytes(hashlib.sha256(user.encode("latin-1")).digest()[:4], "big")
    return user != "" and first % 100 < PERCENT


class Sidecar(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        # Questions are below /decide, so no client's path is this one.
        canary = self.path == "/health" or is_for_canary(self.headers)
        self.send_response_only(200 if canary else 204)
        if canary:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def __getattr__(self, name):
        if name.startswith("do_"):  # whatever the method is
            return self.answer
        raise AttributeError(name)


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # the default, 5, is too few for a router that begins


host, port = (sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8083").rsplit(":", 1)
Server((host, int(port)), Sidecar).serve_forever()
