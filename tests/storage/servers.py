"""An HTTP server of this machine that fails, stalls and cuts short as it is told."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Server(ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        faults: path -> what its next answers do: `503`, `stall` or `cut`; then it is served.
        asked: how often each path was asked for.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.faults: dict[str, list[str]] = {}
        self.asked: Counter[str] = Counter()
        self.most = self._now = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up: that is what tests are about."""

    def busy(self, change: int) -> None:
        """One more, or fewer, is being answered."""
        with self._lock:
            self._now += change
            self.most = max(self.most, self._now)


class _Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        faults = self.server.faults.get(self.path, [])
        fault = faults.pop(0) if faults else ""
        self.server.busy(1)
        try:
            if fault == "503":
                self.send_error(503)
            elif fault == "stall":
                self.send_response(200)
                self.end_headers()
                time.sleep(3)
            elif fault == "cut":
                content = Path(self.translate_path(self.path)).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
            else:
                time.sleep(0.02)
                super().do_GET()
        finally:
            self.server.busy(-1)

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve while the block runs."""
    server = Server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
