"""The documentation is run: what it tells to type works, in the order in which it tells it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dwcli import connectors
from dwcli.staging import ensure_audit_table
from dwcli.warehouse import embedded, make_engine
from tests.services import POSTGRES_URL, required

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: A block of shell, as a fence or indented by four, and the mark in front of it.
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|exit code): (?P<said>.+?) -->\n\n?)?"
    r"(?:^```console\n(?P<fenced>.*?)^```$|(?<=\n\n)(?P<indented>(?: {4}[^\n]+\n)+))",
    re.M | re.S,
)
#: A command of an indented block, before what is said about it.
COMMAND = re.compile(r"dw(?: (?! ).+?)?(?=  |$| · )")
PAGES = {
    page.stem: page for page in [ROOT / "README.md", DOCS / "quickstart.md", *(DOCS / "guides").glob("*.md")]
}
#: What a person answers where a command asks, and what is left out where a page speaks of several things.
INSTEAD = {
    "dw init shop": "dw init shop --yes && cd shop",
    "dw add-source": "dw add-source sqlite shop --database-path ../shop.db --tables '*' --every 1h --yes",
    "dw schedule on": "dw schedule on --yes",
    "dw schedule off": "dw schedule off --yes",
    "dw run --dry-run": "dw run orders --dry-run",
    "dw replay": "dw replay orders",
}
NOT_RUN = {"dw watch": "a dashboard: tests/cli/test_watch.py drives it"}
BEGINNING = """
set -euo pipefail
told() { echo "+ $*" >&2; }
failed() { dw audit --failed --last 1 --json | sed -n 's/.*"run_id": "\\(.*\\)".*/\\1/p'; }
"""
LINK = re.compile(r"\]\((?!https?:)(?P<target>[^)#]+)(?:#[^)]*)?\)")


def blocks(page):
    """(its commands, the exit code that each is to have) of every block of shell that is run."""
    for block in BLOCK.finditer(page.read_text("utf-8")):
        if block["mark"] == "not run":
            continue
        if block["fenced"]:
            commands = [line[2:] for line in block["fenced"].splitlines() if line.startswith("$ ")]
        else:
            lines = (line.strip() for line in block["indented"].splitlines())
            commands = [part for line in lines if line.startswith("dw ") for part in COMMAND.findall(line)]
        wanted = [INSTEAD.get(command, command) for command in commands if command not in NOT_RUN]
        if any(re.match(r"(?:[A-Z_]+=\S* )?dw\b", command) for command in wanted):
            yield wanted, int(block["said"]) if block["mark"] else 0


def script(page):
    """What a page tells to type, as one shell script that ends at the first surprise."""
    lines = [BEGINNING]
    for commands, code in blocks(page):
        for command in commands:
            lines.append(f"told {shlex.quote(command)}")
            command = re.sub(r"\bRUN\b", '"$(failed)"', command)
            lines.append(f"{{ {command}; }} || [ $? -eq {code} ]" if code else command)
            lines += ["[ $? -eq 0 ]"] if not code else []
    return "\n".join(lines) + "\n"


@pytest.fixture
def place(tmp_path):
    """A folder to type in, with the examples; whatever servers are started in it are stopped."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name in ("systemctl", "crontab"):  # a schedule is written to nobody's real one
        (stubs / name).write_text('#!/bin/sh\n[ "$1" = -l ] || exec cat > /dev/null\n', "utf-8")
        (stubs / name).chmod(0o755)
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


def make_shop(place, warehouse_url):
    """The project that the guides speak of: a source `shop` with `orders` and `customers`, loaded once.

    For the guide about failures there is a pipeline `missing` too, whose table is not there.
    """
    from tests.cli.loaded import make_project
    from tests.cli.typed import typed

    root = make_project(place / "loaded", warehouse_url)
    shutil.copytree(place / "examples", root / "examples")
    assert typed(["run", "shop"], root, piped=True).code == 0
    (root / "dw.yaml").write_text("name: shop\n", "utf-8")  # from here on DW_URL says where the warehouse is
    (root / ".gitignore").write_text(".env\n.dw/\n", "utf-8")
    return root


#: Pages that begin with nothing, and make a project.
FROM_NOTHING = ("quickstart", "README")


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if list(blocks(page))])
def test_what_a_page_tells_to_type_works(name, place, request):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DW_")}
    environment |= {
        "HOME": str(place),
        "PATH": f"{place / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    folder = place
    if name in FROM_NOTHING:
        with closing(sqlite3.connect(place / "shop.db")) as session, session:
            session.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY NOT NULL, total NUMERIC)")
            session.execute("INSERT INTO orders VALUES (7, 19.5)")
    else:
        url = request.getfixturevalue("warehouse_url")
        folder = make_shop(place, url)
        environment |= {"DW_URL": url}
        if name == "when-a-run-fails":
            subprocess.run(
                [sys.executable, "-m", "dwcli", "run", "missing"],
                cwd=folder,
                env=environment | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                check=False,
            )
        else:
            (folder / "sources" / "broken.yaml").unlink()
        if name == "pipeline":
            environment |= source_variables()
    done = subprocess.run(
        ["bash", "-c", script(PAGES[name])],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]


def test_every_block_that_is_not_run_says_why():
    marks = [
        block["said"]
        for page in PAGES.values()
        for block in BLOCK.finditer(page.read_text("utf-8"))
        if block["mark"] == "not run"
    ]
    assert marks and all(len(said.split()) > 1 for said in marks)


def test_every_flag_in_the_text_is_one_of_its_command():
    from dwcli.cli._tab import flags_for

    wrong = []
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for line in re.findall(r"`dw ([^`]+)`", page.read_text("utf-8")):
            words = line.split()
            known = {*flags_for(words[0], words), "-C", "--help", "-h"}
            wrong += [
                (page.name, line, flag)
                for flag in words
                if flag[:2] == "--" and flag.split("=")[0] not in known
            ]
    assert wrong == []


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
