"""A server that does what servers do wrong, and what tests of remote files have in common."""

import gzip
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from arlow_vl.data import remote
from arlow_vl.data.remote_fetch import Patience

SHORT = Patience(stall_seconds=10.0, retry_seconds=0.6, first_pause=0.01)
STALLED = Patience(stall_seconds=0.3, retry_seconds=0.2, first_pause=0.01)


class Server(ThreadingHTTPServer):
    """Serves `files` by path. `answers` of a path are used up first: a status, "stall", "cut", bytes, seconds, "slow",
    a tenth of the bytes every 0.25 s, "encoded", packed in transit, "stored encoded", as if they were, or "/...", a
    redirection.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.answers, self.asked, self.always = {}, {}, [], {}
        self.released = threading.Event()

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def count(self, name):
        return self.asked.count(f"/{name}")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        waiting = self.server.answers.get(path, [])
        answer = waiting.pop(0) if waiting else self.server.always.get(path, self.server.files.get(path, 404))
        if isinstance(answer, float):
            time.sleep(answer)
            answer = self.server.files[path]
        if str(answer).startswith("/"):
            self.send_response(302)
            self.send_header("Location", answer)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if isinstance(answer, int):
            self.send_error(answer)
            return
        content = answer if isinstance(answer, bytes) else self.server.files[path]
        content = gzip.compress(content) if answer == "encoded" else content
        self.send_response(200)
        if str(answer).endswith("encoded"):
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if answer == "stall":
            self.wfile.write(content[: len(content) // 2])
            self.server.released.wait(20)
        piece = -(-len(content) // 10)
        for start in range(0, len(content), piece) if answer == "slow" else ():
            self.wfile.write(content[start : start + piece])
            self.wfile.flush()
            time.sleep(0.25)
        self.wfile.write({"cut": content[: len(content) // 2], "slow": b""}.get(answer, content))

    def log_message(self, *_):
        pass


def fetched(address, cache, patience=SHORT):
    with remote.hold(address, cache=cache, patience=patience) as held:
        return held.path.read_bytes()


def left_over(cache):
    return [path.name for path in cache.folder.rglob("*.partial")]
