"""An HTTP API: pages with the address of the next one, a bearer token, and a parameter for what is new."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from tests.conformance.case import Case, Place, Row
from tests.conformance.cases._json import TYPES, json_text

TOKEN = "right-token"
PAGE_ROWS = 1000


class Api(ThreadingHTTPServer):
    """Resources by name."""

    daemon_threads = True
    resources: dict[str, list[Row]]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no error."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        given = {name: values[-1] for name, values in parse_qs(address.query).items()}
        rows = self.server.resources.get(unquote(address.path.lstrip("/")))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, b'{"error": "who are you?"}')
        if rows is None:
            return self.answer(404, b'{"error": "no such resource"}')
        if since := given.get("since"):
            rows = [row for row in rows if row["at"] >= datetime.fromisoformat(since)]
        first = int(given.get("start", 0))
        body = b'{"data": [' + b",".join(map(json_text, rows[first : first + PAGE_ROWS])) + b"]"
        if first + PAGE_ROWS < len(rows):
            query = urlencode({**given, "start": first + PAGE_ROWS})
            body += f', "next": "http://{self.headers["Host"]}{address.path}?{query}"'.encode()
        return self.answer(200, body + b"}")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    with Api(("127.0.0.1", 0), Handler) as server:
        server.resources = {}
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

        def put(name: str, rows: Sequence[Row]) -> str:
            server.resources.setdefault(name, []).extend(rows)
            return f"/{quote(name)}?since={{cursor}}"

        config = {"base_url": f"http://127.0.0.1:{server.server_port}", "token": TOKEN, "retries": 1}
        try:
            yield Place(config, put)
        finally:
            server.shutdown()


def port_of(config: dict[str, object]) -> int:
    return urlsplit(str(config["base_url"])).port or 80


CASE = Case(
    place,
    types=TYPES,
    wrong_password={"token": "secret-word"},
    missing="/no_such_thing",
    address=lambda config: ("127.0.0.1", port_of(config)),
    through=lambda config, port: {**config, "base_url": f"http://127.0.0.1:{port}"},
)
