"""ClickHouse's own engine (chdb) behind the part of its HTTP interface that a driver uses.

The engine parses, runs and formats every statement; what is made here is HTTP: the login, the settings in
the URL, and the three ways in which a server tells of an error after it has sent a part of the answer.
"""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

END_OF_ARROW = b"\xff\xff\xff\xff\x00\x00\x00\x00"
TAG = "abcdefghijklmnop"


class Server(ThreadingHTTPServer):
    """One engine, one request at a time."""

    daemon_threads = True

    def __init__(self, session):
        super().__init__(("127.0.0.1", 0), Handler)
        self.session = session
        self.engine = threading.Lock()
        self.logins = {"reader": "right"}
        self.denied = set()
        #: bytes of a streamed answer after which the connection is cut
        self.cut_after = None
        #: how an error in the middle is told: as "text", or "tagged" as newer servers do
        self.errors = "text"
        self.statements = []
        self.ended_by_client = threading.Event()

    def handle_error(self, request, client_address):
        """A client that goes away is no error."""

    def run(self, sql):
        """Run a statement for the test; its answer as TSV."""
        with self.engine:
            return self.session.query(sql, "TSV").bytes().decode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format, *args):
        """Quiet."""

    def do_GET(self):
        self.answer(b"")

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def answer(self, body):
        parameters = {name: values[-1] for name, values in parse_qs(urlsplit(self.path).query).items()}
        user, _, password = base64.b64decode(self.headers["Authorization"].split()[1]).decode().partition(":")
        if self.server.logins.get(user) != password:
            text = f"Code: 516. DB::Exception: {user}: Authentication failed. (AUTHENTICATION_FAILED)"
            return self.refuse(text, 403)
        sql = (parameters.pop("query", "") + body.decode()).strip()
        sql, _, form = sql.rpartition("FORMAT ") if re.search(r"FORMAT \w+\Z", sql) else (sql, "", "TSV")
        database = parameters.pop("database", "default")
        streamed = "wait_end_of_query" not in parameters and form == "ArrowStream"
        with self.server.engine:
            self.server.statements.append(sql)
            settings = {n: v for n, v in parameters.items() if n not in TRANSPORT}
            try:
                self.server.session.query(f"USE `{database}`")
                if any(f"`{name}`" in sql for name in self.server.denied):
                    raise RuntimeError(f"Code: 497. DB::Exception: {user}: Not enough privileges.")
                for name, value in settings.items():
                    self.server.session.query(f"SET {name} = '{value}'")
                if streamed:
                    return self.stream(sql)
                data = self.server.session.query(sql, form).bytes()
            except RuntimeError as error:
                return self.refuse(str(error), 404)
            finally:
                for name in settings:
                    self.server.session.query(f"SET {name} = DEFAULT")
        self.head(200, {"Content-Length": str(len(data)), "X-ClickHouse-Format": form})
        self.wfile.write(data)

    def refuse(self, text, status):
        data = text.encode()
        code = re.search(r"Code: (\d+)", text)
        more = {"X-ClickHouse-Exception-Code": code[1]} if code else {}
        self.head(status, {"Content-Length": str(len(data)), **more})
        self.wfile.write(data)

    def stream(self, sql):
        sent, begun = 0, False
        result = self.server.session.send_query(sql, "ArrowStream")
        try:
            for chunk in result:
                data = messages(chunk.bytes(), first=not begun)
                if not begun:
                    self.stream_head()
                    begun = True
                if self.server.cut_after is not None and sent + len(data) > self.server.cut_after:
                    self.chunk(data[: self.server.cut_after - sent])
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.chunk(data)
                sent += len(data)
        except RuntimeError as error:
            if not begun:
                return self.refuse(str(error), 400)
            self.chunk(self.told(re.sub(r".*?(?=Code: )", "", str(error), count=1)))
            self.chunk(b"")
            return None
        except OSError:
            self.close_connection = True
            self.server.ended_by_client.set()
            return
        finally:
            result.close()
        if not begun:
            return self.whole(sql)
        self.chunk(END_OF_ARROW)
        self.chunk(b"")

    def whole(self, sql):
        """An answer without rows: its schema alone."""
        self.stream_head()
        self.chunk(self.server.session.query(sql, "ArrowStream").bytes())
        self.chunk(b"")

    def told(self, text):
        if self.server.errors == "text":
            return text.encode()
        message = f"{text}\n".encode()
        head = f"\r\n__exception__\r\n{TAG}\r\n".encode()
        return head + message + f"{len(message)} {TAG}\r\n__exception__\r\n".encode()

    def stream_head(self):
        self.head(200, {"Transfer-Encoding": "chunked", "X-ClickHouse-Exception-Tag": TAG})

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def head(self, status, headers):
        self.send_response(status)
        for name, value in {"X-ClickHouse-Timezone": "UTC", **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def messages(stream, first):
    """The messages of one of chdb's chunks, each of which is an Arrow stream of its own."""
    head = 0 if first else 8 + int.from_bytes(stream[4:8], "little")
    return stream[head:].removesuffix(END_OF_ARROW)


TRANSPORT = {
    "database", "query_id", "session_id", "wait_end_of_query", "buffer_size", "compress", "query", "role",
    "send_progress_in_http_headers", "http_headers_progress_interval_ms", "enable_http_compression",
    "client_protocol_version", "default_format", "http_send_timeout",
    "cancel_http_readonly_queries_on_client_close",
}  # fmt: skip


@contextlib.contextmanager
def serve(folder):
    """A server on a free port of this machine, its tables in `folder`."""
    from chdb.session import Session

    session = Session(str(folder))
    server = Server(session)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        session.close()
