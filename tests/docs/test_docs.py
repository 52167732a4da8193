"""The documentation is run: what it tells to type works, in the order in which it tells it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dwcli import connectors
from dwcli.staging import ensure_audit_table
from dwcli.warehouse import embedded, make_engine
from tests.services import POSTGRES_URL, required

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^<!-- run(?:: (?P<needs>\w+))? -->\n```console\n(?P<text>.*?)^```$", re.M | re.S)
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if BLOCK.search(page.read_text("utf-8"))]
LINK = re.compile(r"\]\((?!https?:)(?P<target>[^)#]+)(?:#[^)]*)?\)")


def script(page):
    """The commands of a page's marked blocks, as one shell script."""
    lines = [
        line.removeprefix("$ ")
        for block in BLOCK.finditer(page.read_text("utf-8"))
        for line in block["text"].splitlines()
        if line.startswith("$ ")
    ]
    return "set -euo pipefail\n" + "\n".join(lines) + "\n"


@pytest.fixture
def place(tmp_path):
    """A folder to type in, with the examples; whatever servers are started in it are stopped."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    yield tmp_path
    for home in tmp_path.rglob(".dw/postgres"):
        embedded.remove(home)


def source_variables():
    parts = urlsplit(required("PostgreSQL", POSTGRES_URL))
    return {
        "PG_HOST": parts.hostname,
        "PG_PORT": str(parts.port or 5432),
        "PG_DATABASE": parts.path.strip("/"),
        "PG_USERNAME": parts.username,
        "PG_PASSWORD": parts.password or "",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_tells_to_type_works(page, place, request):
    environment = {
        **os.environ,
        "HOME": str(place),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    if any(block["needs"] == "warehouse" for block in BLOCK.finditer(page.read_text("utf-8"))):
        environment |= {"DW_URL": request.getfixturevalue("warehouse_url"), **source_variables()}
    done = subprocess.run(
        ["bash", "-c", script(page)],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_audit_queries_of_the_guide_are_sql_that_runs(warehouse, warehouse_url):
    engine = make_engine(warehouse_url)
    ensure_audit_table(engine)
    engine.dispose()
    warehouse.execute("CREATE TABLE dw_test (_run_id text)")
    [queries] = re.findall(r"```sql\n(.*?)```", (DOCS / "guides" / "pipeline.md").read_text("utf-8"), re.S)
    for query in queries.split(";\n"):
        warehouse.execute(query.encode())


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_somewhere(page):
    targets = [page.parent / match["target"] for match in LINK.finditer(page.read_text("utf-8"))]
    assert [target for target in targets if not target.exists()] == []


def test_every_source_has_a_page():
    pages = {page.stem for page in (DOCS / "connectors").glob("*.md")} - {"index"}
    assert pages == set(connectors.names()), "python docs/_generate.py begins the missing ones"


def test_every_command_that_the_docs_name_exists():
    from dwcli.cli.app import COMMANDS, is_there

    commands = {command.name for command in COMMANDS if is_there(command)}
    named = {
        match[1]
        for page in [ROOT / "README.md", *DOCS.rglob("*.md")]
        for match in re.finditer(r"(?:^ {4}|`|^\$ )dw ([a-z][a-z-]+)", page.read_text("utf-8"), re.M)
    }
    assert named - commands == set()
