"""Secrets in every place that takes one, and every command over them: not one byte of a secret comes out.

What is searched: stdout and stderr, everything that dw writes into the project, every table of the warehouse,
what the sessions show in pg_stat_activity; as it is, in base64 and as it stands in a URL.
"""

from __future__ import annotations

import base64
import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from tests.faults import forker
from tests.faults.forker import Forker

#: place → a value that stands nowhere else; with everything that an address must escape
CANARIES = {
    name: f'cAnArY-{name}-9f3b@:/?#%&+="$'
    for name in (
        "PG_PASSWORD",
        "MYSQL_PASSWORD",
        "HTTP_TOKEN",
        "HTTP_HEADER",
        "S3_SECRET",
        "SSH_PASSWORD",
        "FTP_PASSWORD",
        "MONGO_PASSWORD",
        "AMQP_PASSWORD",
        "KAFKA_PASSWORD",
        "TAP_SECRET",
        "FILE_SECRET",
    )
}
#: source → its file, without its pipeline
SOURCES = {
    "pg": """
protocol: postgres
host: 127.0.0.1
port: {dead}
database: d
username: u
password: ${env:PG_PASSWORD}
""",
    "my": """
protocol: mysql
host: 127.0.0.1
port: {dead}
database: d
username: u
password: ${env:MYSQL_PASSWORD}
""",
    "from_file": """
protocol: postgres
host: 127.0.0.1
port: {dead}
database: d
username: u
password: ${file:secret.txt}
""",
    "bearer": """
protocol: http
base_url: {echo}
token: ${env:HTTP_TOKEN}
""",
    "header": """
protocol: http
base_url: {echo}
headers: {X-Api-Key: "${env:HTTP_HEADER}"}
""",
    "s3": """
protocol: s3
bucket: b
endpoint: {echo}
region: us-east-1
access_key_id: a
secret_access_key: ${env:S3_SECRET}
""",
    "ssh": """
protocol: ssh
host: 127.0.0.1
port: {dead}
username: u
password: ${env:SSH_PASSWORD}
""",
    "ftp": """
protocol: ftp
host: 127.0.0.1
port: {dead}
username: u
password: ${env:FTP_PASSWORD}
""",
    "mongo": """
protocol: mongodb
host: 127.0.0.1
port: {dead}
database: d
username: u
password: ${env:MONGO_PASSWORD}
""",
    "amqp": """
protocol: amqp
host: 127.0.0.1
port: {dead}
queue: q
username: u
password: ${env:AMQP_PASSWORD}
""",
    "kafka": """
protocol: kafka
bootstrap_servers: 127.0.0.1:{dead}
topic: t
security_protocol: SASL_PLAINTEXT
sasl_mechanism: PLAIN
sasl_username: u
sasl_password: ${env:KAFKA_PASSWORD}
""",
    "tap": """
protocol: singer
tap: {tap}
tap_config: {secret: "${env:TAP_SECRET}"}
""",
}
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("test-connection", "{name}"),
    ("test-connection", "{name}", "-vv"),
    ("preview", "p_{name}"),
    ("run", "{name}", "--json"),
    ("run", "{name}", "-vv", "--progress", "log"),
    ("verify", "{name}"),
    ("sources", "--json"),
    ("status", "--json"),
    ("audit", "--json", "--pipeline", "{name}"),
    ("replay", "p_{name}"),
    ("state", "show", "{name}"),
    ("clean", "--dry-run"),
    ("query", "select * from etl_audit_log", "--json"),
)


class _Echo(http.server.BaseHTTPRequestHandler):
    """A server that fails and says back everything that it was told, as careless ones do."""

    def do_GET(self) -> None:
        body = f"{self.path}\n{self.headers}".encode()
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def echo() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def process() -> Iterator[Forker]:
    with forker.forker() as running:
        yield running


TAP = """\
#!/bin/sh
# A tap that tells its configuration when it fails, as careless ones do.
while [ $# -gt 0 ]; do [ "$1" = --config ] && config=$2; shift; done
printf "bad configuration: " >&2
cat "$config" >&2
exit 3
"""


def make_project(root: Path, url: str, echo: str) -> None:
    (root / "sources").mkdir(parents=True)
    (root / "dw.yaml").write_text(f"name: shop\nwarehouse: {url}\n", "utf-8")
    lines = [f"{name}='{value}'\n" for name, value in CANARIES.items() if name != "FILE_SECRET"]
    (root / ".env").write_text("".join(lines), "utf-8")
    (root / "secret.txt").write_text(CANARIES["FILE_SECRET"], "utf-8")
    tap = root / "tap.sh"
    tap.write_text(TAP, "utf-8")
    for path in (root / ".env", root / "secret.txt"):
        path.chmod(0o600)
    tap.chmod(0o755)
    for name, text in SOURCES.items():
        for old, new in (("{dead}", "1"), ("{echo}", echo), ("{tap}", str(tap))):
            text = text.replace(old, new)
        (root / "sources" / f"{name}.yaml").write_text(
            f"{text}pipelines:\n  p_{name}: {{query: things}}\n", "utf-8"
        )


def leaks(text: bytes) -> list[str]:
    """The canaries that stand in a text, in any of the ways in which one may be written."""
    found = []
    for name, value in CANARIES.items():
        ways = {value, quote(value), quote(value, safe=""), value.replace('"', '\\"'), repr(value)[1:-1]}
        ways |= {base64.b64encode(value.encode()).decode().rstrip("="), f"cAnArY-{name}"}
        if any(way.encode() in text for way in ways):
            found.append(name)
    return found


def test_no_secret_comes_out(process: Forker, warehouse_url: str, tmp_path: Path, echo: str) -> None:
    root = tmp_path / "shop"
    make_project(root, warehouse_url, echo)
    told, wrong = 0, []
    for words in COMMANDS:
        begun = {}
        for name in SOURCES:  # all at once, since most of them wait for a server that is not there
            line = [word.replace("{name}", name) for word in words]
            output = tmp_path / f"{name}.txt"
            begun[forker.start(process, root, line, "", output)] = output
        for pid, done in forker.ended(process, begun).items():
            told += 1
            line_of = f"dw {' '.join(words)} for {begun[pid].stem}"
            assert "DW-CONFIG" not in done.output, done.output
            assert "Traceback" not in done.output or "-vv" in words, done.output
            wrong += [f"{line_of}: {leak}" for leak in leaks(done.output.encode())]
    assert told == len(SOURCES) * len(COMMANDS) >= 150

    kept = {root / ".env", root / "secret.txt"}
    for path in root.rglob("*"):
        if path.is_file() and path not in kept:
            wrong += [f"{path.relative_to(root)}: {leak}" for leak in leaks(path.read_bytes())]
    with psycopg.connect(warehouse_url, autocommit=True) as session:
        tables = session.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
        assert ("etl_audit_log",) in tables
        for (table,) in tables:
            rows = session.execute(f'select t::text from "{table}" as t').fetchall()
            wrong += [f"table {table}: {leak}" for leak in leaks(str(rows).encode())]
        shown = session.execute("select query, application_name from pg_stat_activity").fetchall()
        wrong += [f"pg_stat_activity: {leak}" for leak in leaks(str(shown).encode())]
    assert wrong == []


def test_a_password_is_on_no_command_line(warehouse_url: str, tmp_path: Path, echo: str) -> None:
    """While a run waits for its source, its own process and its children show no secret."""
    root = tmp_path / "shop"
    make_project(root, warehouse_url, echo)
    (root / "tap.sh").write_text('#!/bin/sh\necho "$@" > started\nexec sleep 60\n', "utf-8")
    running = subprocess.Popen(
        [*forker.DW, "run", "tap", "--progress", "none"],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (root / "started").exists() and not list(root.rglob("started")):
            assert running.poll() is None
            threading.Event().wait(0.02)
        shown = b"".join(_cmdline(path) for path in Path("/proc").glob("[0-9]*/cmdline"))
        assert leaks(shown) == []
    finally:
        running.terminate()
        running.wait()


def _cmdline(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
