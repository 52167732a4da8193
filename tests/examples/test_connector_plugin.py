"""The example of a third-party connector: installed as a package of its own, a source like every other."""

from __future__ import annotations

import json
import mailbox
import os
import subprocess
import sys
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.pipeline.runs import rows_of

PLUGIN = Path(__file__).parents[2] / "examples" / "connector_plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that the plugin was installed into."""
    target = tmp_path_factory.mktemp("site")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"),
            *("--no-index", "--no-build-isolation", "--root-user-action=ignore", "--target", target, PLUGIN),
        ],
        check=True,
    )
    return target


@pytest.fixture
def dw(installed, tmp_path):
    """Runs `dw` where the plugin can be found."""

    def run(*words):
        return subprocess.run(
            [Path(sys.executable).parent / "dw", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed), "HOME": str(tmp_path), "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def archive(tmp_path):
    """A mailbox, and what adds a message to it."""

    def add(number: int) -> None:
        message = EmailMessage()
        message["Message-ID"] = f"<{number}@example.org>"
        message["Date"] = f"Thu, 29 Feb 2024 12:00:{number:02} +0100"
        message["From"] = "Größe <reader@example.org>"
        message["Subject"] = f"no {number} ☃"
        message.set_content("text\nFrom here on\n")
        box = mailbox.mbox(tmp_path / "archive.mbox")
        box.add(message)
        box.close()

    return add


def test_it_is_listed_with_what_it_says_of_itself_and_is_not_imported_for_that(dw):
    found = {row["protocol"]: row for row in json.loads(dw("sources", "--protocols", "--json").stdout)}
    assert found["mbox"]["title"] == "Mailbox (mbox)" and found["mbox"]["aliases"] == ["mail"]
    assert found["mbox"]["missing"] == [] and found["mbox"]["typing"] == "declared"
    assert "postgres" in found


def test_its_config_makes_the_flags(dw):
    done = dw("add-source", "mail", "--help")
    assert done.returncode == 0 and "--path" in done.stdout and "path of the mbox file" in done.stdout


def test_a_mailbox_is_added_run_and_run_again(dw, archive, tmp_path, warehouse_url, warehouse):
    (tmp_path / "dw.yaml").write_text(f"name: post\nwarehouse: {warehouse_url}\n", "utf-8")
    for number in (1, 2):
        archive(number)
    added = dw(
        *("add-source", "mbox", "post", "--path", "archive.mbox", "--pipeline", "messages=messages"),
        *("--cursor", "sent_at", "--write", "append", "--no-input"),
    )
    assert added.returncode == 0, added.stderr
    assert json.loads(dw("run", "post").stdout)["rows_loaded"] == 2
    archive(3)
    assert json.loads(dw("run", "post").stdout)["status"] == "success"
    assert rows_of(
        warehouse, "select message_id, sent_at at time zone 'UTC', subject from messages order by 1"
    ) == [
        (f"<{number}@example.org>", datetime(2024, 2, 29, 11, 0, number), f"no {number} ☃")
        for number in (1, 2, 3)
    ]


def test_what_is_wrong_is_told_like_everywhere(dw, tmp_path, warehouse_url):
    (tmp_path / "dw.yaml").write_text(f"name: post\nwarehouse: {warehouse_url}\n", "utf-8")
    done = dw(
        "add-source", "mbox", "post", "--path", "nowhere.mbox", "--pipeline", "m=messages", "--no-input"
    )
    assert done.returncode != 0 and "nowhere.mbox" in done.stderr and "Traceback" not in done.stderr
