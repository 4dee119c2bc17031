"""A sidecar: enterprise customers keep the old version, for everybody else the canary's weight decides.

    python sidecar.py [ADDRESS:PORT]
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

host, port = (sys.argv[1] if len(sys.argv) > 1 else "0.0.0.0:8080").split(":")


class Sidecar(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def decide(self):
        # The rule. This is what you write. 200 is canary, 204 is main.
        canary = self.headers.get("X-Plan") != "enterprise"
        self.send_response(200 if canary else 204)
        if canary:
            self.send_header("Content-Length", "0")
        self.end_headers()

    # It is asked with the method of the request. With sidecar.body "none" there is no body to read.
    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = decide

    def log_message(self, *_):
        pass


ThreadingHTTPServer((host, int(port)), Sidecar).serve_forever()
