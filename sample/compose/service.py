"""A version of a service: it says its name, and fails now and then.

    python service.py NAME PERCENT [ADDRESS:PORT]
"""

import random
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

name, percent = sys.argv[1], float(sys.argv[2])
host, port = (sys.argv[3] if len(sys.argv) > 3 else "0.0.0.0:8080").split(":")


class Service(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave together.
    wbufsize = -1

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fails = self.path != "/health" and random.uniform(0, 100) < percent
        body = (f"{name} fails\n" if fails else f"{name}\n").encode()
        self.send_response(500 if fails else 200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_):
        pass


ThreadingHTTPServer((host, int(port)), Service).serve_forever()
