"""A run's page kept up to date while it trains, for browsers on this machine alone.

The server answers two paths, the page and what has become of the run, and reads nothing that a request names. It is
bound to 127.0.0.1, and a request whose Host is another is refused: so a page of a stranger whose name is made to point
here (DNS rebinding) gets nothing.
"""

from __future__ import annotations

import errno
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from anchorite.errors import AnchoriteError, InputError
from anchorite.report.page import script_json
from anchorite.report.run_files import RunFiles
from anchorite.report.run_report import run_page
from anchorite.report.run_status import read_status, stamp

ADDRESS, DEFAULT_PORT = "127.0.0.1", 8765
_NAMES = (ADDRESS, "localhost")
_TIMEOUT_S = 10.0
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_NO_FRAMES = "frame-ancestors 'none'"  # which a page cannot say in its own policy
_OTHER_POLICY = f"default-src 'none'; {_NO_FRAMES}"


class RunServer(ThreadingHTTPServer):
    """Serves the live page of a run on 127.0.0.1; `address` is where. Raises InputError when the port is taken.

    port: 0 for any that is free.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, run_folder: Path, port: int = DEFAULT_PORT) -> None:
        self.run_folder = run_folder
        self._page: tuple[str, bytes] | None = None
        self._making = threading.Lock()
        run_page(run_folder)  # what cannot be shown is told before anything is served
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise InputError(_port_message(port, error)) from error

    @property
    def address(self) -> str:
        """The URL of the page."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def page(self) -> bytes:
        """The page as it is now; made anew only when something has changed, however many ask."""
        with self._making:
            now = stamp(self.run_folder)
            if self._page is None or self._page[0] != now:
                self._page = now, run_page(self.run_folder, live_stamp=now).encode("utf-8")
            return self._page[1]

    def state(self) -> bytes:
        """What has become of the run, as JSON: state, words, title, and a stamp that changes with the page."""
        now = stamp(self.run_folder)
        status = read_status(RunFiles(self.run_folder))
        planned = f"/{status.num_epochs}" if status.num_epochs else ""
        title = f"{status.epochs}{planned} {status.state} - {self.run_folder.resolve().name}"
        return script_json({"state": status.state, "words": status.words, "title": title, "stamp": now}).encode("ascii")

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away in the middle is no error; anything else is told as usual."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    """One request: GET or HEAD of / or /data.json, by the right Host."""

    server: RunServer
    server_version, sys_version = "anchorite", ""
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        """Answer with the content."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer with the headers."""
        self._answer()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: requests come every two seconds."""
        return

    def _answer(self) -> None:
        if not self._is_meant_for_us():
            self._refuse(HTTPStatus.FORBIDDEN, f"open {self.server.address}")
            return
        try:
            if self.path == "/":
                self._send(HTTPStatus.OK, "text/html", self.server.page(), _NO_FRAMES)
            elif self.path == "/data.json":
                self._send(HTTPStatus.OK, "application/json", self.server.state())
            else:
                self._refuse(HTTPStatus.NOT_FOUND, "there is only /")
        except AnchoriteError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _is_meant_for_us(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        return len(hosts) == 1 and hosts[0].lower() in {f"{name}:{self.server.server_port}" for name in _NAMES}

    def _refuse(self, status: HTTPStatus, words: str) -> None:
        self._send(status, "text/plain", (words + "\n").encode("utf-8", "replace"))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses by itself, such as another method; without its page of HTML."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.close_connection = True
        self._refuse(status, status.phrase)

    def _send(self, status: HTTPStatus, kind: str, content: bytes, policy: str = _OTHER_POLICY) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", policy)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _port_message(port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"--port {port}: another program listens there; name another port, or 0 for any that is free"
    if error.errno == errno.EACCES:
        return f"--port {port}: ports below 1024 are the system's; name another, or 0 for any that is free"
    return f"--port {port}: cannot be used: {error.strerror or error}; name another, or 0 for any that is free"
