"""A run's page kept up to date while it trains, for browsers on this machine alone.

The server answers two paths, the page and the run's state, and reads no file that a request names. It is bound to
127.0.0.1 and refuses a request whose Host is another, so that a foreign web page whose name is made to resolve to
127.0.0.1 (DNS rebinding) gets nothing.
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
from anchorite.report.run_data import RunFiles, read_status, stamp
from anchorite.report.run_page import run_page

ADDRESS, DEFAULT_PORT = "127.0.0.1", 8765
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_NO_FRAMES = "frame-ancestors 'none'"  # which a page cannot say in its own policy
_REASONS = {
    errno.EADDRINUSE: "another program listens there",
    errno.EACCES: "ports below 1024 need the system's permission",
}


class RunServer(ThreadingHTTPServer):
    """Serves the live page of a run on 127.0.0.1; `address` is where. Raises InputError when the port is taken.

    port: 0 for any that is free.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, run_folder: Path, port: int = DEFAULT_PORT) -> None:
        self.run_folder = run_folder
        self._page: tuple[str, bytes] = "", b""
        self._page_lock = threading.Lock()
        run_page(run_folder)  # raises what is wrong with the run before anything is served
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            reason = _REASONS.get(error.errno or 0, f"cannot be used: {error.strerror or error}")
            raise InputError(f"--port {port}: {reason}; name another port, or 0 for any that is free") from error

    @property
    def address(self) -> str:
        """The URL of the page."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def page(self) -> bytes:
        """The page as it is now; rendered only when something has changed, for all requests together."""
        with self._page_lock:
            now = stamp(self.run_folder)
            if self._page[0] != now:
                self._page = now, run_page(self.run_folder, live_stamp=now).encode("utf-8")
            return self._page[1]

    def state(self) -> bytes:
        """The state of the run as JSON: state, words, title, and a stamp that changes with the page."""
        now = stamp(self.run_folder)
        status = read_status(RunFiles(self.run_folder))
        planned = f"/{status.num_epochs}" if status.num_epochs else ""
        title = f"{status.epochs}{planned} {status.state} - {self.run_folder.resolve().name}"
        return script_json({"state": status.state, "words": status.words, "title": title, "stamp": now}).encode("ascii")

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a browser that closed its connection early; print anything else, as usual."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    """One request: GET or HEAD of / or /data.json, by the right Host."""

    server: RunServer
    server_version, sys_version = "anchorite", ""
    protocol_version = "HTTP/1.1"
    timeout = 10.0

    def do_GET(self) -> None:
        """Answer with the content, or for HEAD with the headers alone."""
        hosts = [host.lower() for host in self.headers.get_all("Host") or []]
        port = self.server.server_port
        try:
            if hosts not in ([f"{ADDRESS}:{port}"], [f"localhost:{port}"]):
                self._send(HTTPStatus.FORBIDDEN, f"open {self.server.address}")
            elif self.path == "/":
                self._send(HTTPStatus.OK, self.server.page(), "text/html", _NO_FRAMES)
            elif self.path == "/data.json":
                self._send(HTTPStatus.OK, self.server.state(), "application/json")
            else:
                self._send(HTTPStatus.NOT_FOUND, "there is only /")
        except AnchoriteError as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing: requests come every two seconds."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses by itself, such as another method; without its page of HTML."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.close_connection = True
        self._send(status, status.phrase)

    def _send(
        self,
        status: HTTPStatus,
        content: bytes | str,
        kind: str = "text/plain",
        policy: str = f"default-src 'none'; {_NO_FRAMES}",
    ) -> None:
        """Send a content, or words as a line of plain text, with every header that keeps it to this page."""
        body = content if isinstance(content, bytes) else f"{content}\n".encode("utf-8", "replace")
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        headers |= {"Content-Security-Policy": policy, **_HEADERS}
        headers |= {"Connection": "close"} if self.close_connection else {}
        headers |= {"Allow": "GET, HEAD"} if status == HTTPStatus.METHOD_NOT_ALLOWED else {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
