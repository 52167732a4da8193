"""What leaves `dw`, byte by byte: every view on screens of several kinds, and into a pipe.

`python -m tests.cli.test_screens` writes the pages of the home screen and of `--help` anew; those of the
other views are in tests/render/test_screens.py.
"""

from __future__ import annotations

import json
import re
import secrets
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pexpect
import pytest

from dwcli.render.words import width as cells
from dwcli.warehouse import connect
from tests.cli.conftest import DW
from tests.cli.loaded import make_project
from tests.cli.typed import plain, typed

GOLDEN = Path(__file__).parents[1] / "render" / "golden"
WIDTHS = (40, 80, 160)
VIEWS = {
    "home": [],
    "help": ["--help"],
    "help of a command": ["run", "--help"],
    "help of a code": ["help", "DW-CONN-LOGIN"],
    "status": ["status"],
    "audit": ["audit"],
    "audit of a run": ["audit", "RUN"],
    "audit, drawn": ["audit", "--chart", "--pipeline", "orders"],
    "audit, all drawn": ["audit", "--chart"],
    "logs": ["logs", "RUN"],
    "plan": ["run", "orders", "missing", "--dry-run"],
    "run": ["run", "customers"],
    "run that fails": ["run", "missing"],
    "retry": ["retry", "--dry-run"],
    "sources": ["sources"],
    "protocols": ["sources", "--protocols"],
    "preview": ["preview", "orders", "-n", "5"],
    "query": ["query", "SELECT id, total, note FROM orders ORDER BY id LIMIT 5"],
    "doctor": ["doctor"],
    "verify": ["verify", "orders"],
    "trace": ["trace", "orders", "--key", "7"],
    "schedule": ["schedule", "show"],
    "state": ["state", "show", "orders"],
    "connections": ["test-connection"],
    "remove": ["remove", "orders", "--dry-run"],
    "clean": ["clean", "--dry-run"],
    "error": ["query", "SELECT 1 FROM größe_nowhere"],
    "usage": ["status", "--chekc"],
}
#: Their lines are drawn over: tests/render/test_progress.py looks at those.
MOVING = ("run", "run that fails")
COLOUR = re.compile(rb"\x1b\[[0-9;]*\b(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])\b[0-9;]*m")
EIGHT_BITS = re.compile(rb"[\x80-\xff]")


@pytest.fixture(scope="module")
def loaded(warehouse_server, tmp_path_factory):
    """A project with runs of several kinds, and the id of one of them."""
    name = f"test_{secrets.token_hex(6)}"
    with connect(warehouse_server, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
    try:
        url = urlunsplit(urlsplit(warehouse_server)._replace(path=f"/{name}"))
        root = make_project(tmp_path_factory.mktemp("screens") / "shop", url)
        for pipeline in ("orders", "customers", "missing"):
            typed(["run", pipeline], root, piped=True)
        done = typed(["audit", "--pipeline", "orders", "--json"], root, piped=True)
        yield root, json.loads(done.out)[0]["run_id"]
    finally:
        with connect(warehouse_server, autocommit=True) as admin:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def see(loaded, request):
    """A view of that project."""
    root, run_id = loaded

    def seen(view, **how):
        words = [run_id if word == "RUN" else word for word in VIEWS[view]]
        done = typed(words, root, **how)
        assert b"unexpected error" not in done.out + done.err
        assert (done.out + done.err).strip(), "it says nothing"
        return done

    return seen


@pytest.mark.parametrize("view", VIEWS)
def test_without_colour_no_colour_leaves(see, view):
    done = see(view, environment={"NO_COLOR": "1"})
    assert COLOUR.findall(done.out) == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_dumb_terminal_is_never_steered(see, view):
    done = see(view, environment={"TERM": "dumb"}, columns=100)
    assert b"\x1b" not in done.out
    assert b"\r" not in done.out.replace(b"\r\n", b"")


@pytest.mark.parametrize("view", VIEWS)
def test_where_the_locale_is_c_only_ascii_leaves(see, view):
    done = see(view, environment={"LANG": "C", "LC_ALL": "", "LC_CTYPE": "C.UTF-8"})
    assert EIGHT_BITS.findall(done.out) == []
    assert b"\\u2026" not in done.out and b"\\u2192" not in done.out, "a mark of dw's own, shown as an escape"


@pytest.mark.parametrize("view", VIEWS)
def test_a_pipe_gets_neither_colours_nor_frames_nor_folded_lines(see, view):
    done = see(view, piped=True, columns=40)
    data = b"new \x1b[31mline"  # a value goes on as it is
    assert b"\x1b" not in done.out.replace(data, b"") + done.err
    assert not re.search(rb"[ ]\n", done.err)
    if "help" not in view and view != "logs":
        lines = done.out.decode().splitlines()
        if lines and not done.out.startswith(b"{"):
            assert len({line.count("\t") for line in lines}) == 1 or view in ("home", "audit of a run")


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("view", [view for view in VIEWS if view not in MOVING])
def test_no_line_is_wider_than_the_screen(see, view, columns):
    lines = plain(see(view, columns=columns).out)
    assert max(map(cells, lines)) <= columns


def test_a_utf8_screen_gets_every_character(see):
    assert "größe 日本語" in "\n".join(plain(see("query").out))


@pytest.mark.parametrize(("columns", "words"), [(50, ["audit"]), (160, ["audit"]), (120, ["--help"])])
def test_a_dumb_terminal_is_as_wide_as_it_is(loaded, environment, columns, words):
    root, _ = loaded
    child = pexpect.spawn(
        DW[0],
        [*DW[1:], *words],
        cwd=str(root),
        env=environment | {"TERM": "dumb"},
        dimensions=(40, columns),
        timeout=60,
        encoding="utf-8",
    )
    child.expect(pexpect.EOF)
    child.wait()
    widest = max(map(cells, child.before.splitlines()))
    assert widest <= columns
    assert widest > 80 if columns > 80 else True
    assert ("CHANGED" in child.before) == (columns == 160)


# -- the home screen and --help, on their pages --------------------------------------------------------


def make_home(root):
    (root / "sources").mkdir()
    (root / "dw.yaml").write_text("name: shop\n", "utf-8")
    (root / "sources" / "shop.yaml").write_text(
        "protocol: sqlite\npipelines:\n  orders: {query: a}\n  customers:\n    query: b\n  new: {query: c}\n",
        "utf-8",
    )
    (root / "sources" / "erp.yaml").write_text(
        "protocol: mysql\npipelines:\n  invoices:\n    query: a\n", "utf-8"
    )

    def ended(status, minutes, **more):
        return {
            "status": status,
            "finished_at": (datetime.now(UTC) - timedelta(minutes=minutes, seconds=9)).isoformat(),
            **more,
        }

    (root / ".dw").mkdir()
    (root / ".dw" / "last.json").write_text(
        json.dumps(
            {
                "shop.orders": ended("success", 4, rows_loaded=1204551),
                "shop.customers": ended("success", 540, rows_loaded=1),
                "erp.invoices": ended(
                    "failure",
                    125,
                    run_id="7d10bb11-9d7e-4b11-8a55-0123456789ab",
                    error="the value of row 17 does not fit numeric(12,2) in the column 'total' of invoices.",
                    error_code="DW-VALUE",
                ),
            }
        ),
        "utf-8",
    )


def pages(folder):
    """Every page: its name, and what stands on it."""
    empty, root = folder / "empty", folder / "shop"
    empty.mkdir()
    root.mkdir()
    make_home(root)
    for columns in WIDTHS:
        for name, words, where in (
            ("home", [], root),
            ("home-empty", [], empty),
            ("help", ["--help"], root),
            ("help-run", ["run", "--help"], root),
        ):
            lines = plain(typed(words, where, columns).out)
            yield f"{name}-{columns}.txt", "\n".join(lines).strip("\n") + "\n"


def test_home_and_help_are_those_on_their_pages(tmp_path):
    for name, shown in pages(tmp_path):
        assert shown == (GOLDEN / name).read_text("utf-8"), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for page_name, text in pages(Path(place)):
            (GOLDEN / page_name).write_text(text, "utf-8")
