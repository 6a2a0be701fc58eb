"""A worker without a model, for the tests of supervision: python fake_worker.py MODE STARTS_FILE

It speaks the words of supervise.py and answers /health; POST /die kills it before it answers, POST /half in the
middle of a stream, POST /slow answers after a while, anything else answers with what it saw. Each start is a line
in STARTS_FILE. Modes other than `normal` fail in one way each.
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(200, {"status": "ok"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.path == "/half":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nhello\r\n")
            time.sleep(0.1)  # the first chunk is on its way
            os.kill(os.getpid(), signal.SIGKILL)
        if self.path == "/slow":
            time.sleep(0.3)
        seen = {"pid": os.getpid(), "path": self.path, "body": body.decode(), "headers": dict(self.headers)}
        self.answer(200, seen)

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def main(mode, starts):
    with open(starts, "a") as file:
        print(os.getpid(), file=file)
    print("a line for the log", file=sys.stderr, flush=True)
    if mode == "exit":
        sys.exit(3)
    if mode == "error":
        print(json.dumps({"error": "no such model"}), flush=True)
        sys.exit(1)
    if mode == "babble":
        print("hello", flush=True)
    if mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode in ("silent", "babble"):
        time.sleep(600)
    if mode == "late":
        time.sleep(0.4)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    key = json.loads(sys.stdin.readline())["api_key"]
    assert len(key) == 32
    print(json.dumps({"address": f"http://127.0.0.1:{server.server_port}"}), flush=True)
    sys.stdin.read()  # ends with the parent
    if mode == "deaf":
        time.sleep(600)


main(*sys.argv[1:])
