"""The documents that `--json` prints are as docs/reference/json.md describes them, field by field."""

from __future__ import annotations

import json

import pytest

from dwcli.cli import _json
from dwcli.cli._json import DOCUMENTS, Field, problems
from tests.cli.loaded import make_project


def described(command: str, number: int = 0) -> Field:
    return [document for document in DOCUMENTS if document.command == command][number].field


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, warehouse_server):
    """A project that has runs of every kind; read by all tests of this file."""
    from urllib.parse import urlsplit, urlunsplit

    from dwcli.warehouse import connect

    with connect(warehouse_server, autocommit=True) as admin:
        admin.execute("create database json_reference")
    url = urlunsplit(urlsplit(warehouse_server)._replace(path="/json_reference"))
    yield make_project(tmp_path_factory.mktemp("json") / "shop", url)
    with connect(warehouse_server, autocommit=True) as admin:
        admin.execute("drop database json_reference with (force)")


def test_every_document_is_as_it_is_described(dw, loaded):
    def check(command: str, *words: str, number: int = 0, code: int = 0):
        done = dw(*words, "--json", cwd=loaded)
        assert done.returncode == code, done.stderr
        printed = json.loads(done.stdout)
        assert problems(printed, described(command, number)) == [], words
        return printed

    check("run --dry-run", "run", "orders", "--dry-run")
    check("run", "run", "orders")
    check("run", "run", "missing", code=1)
    check("run", "run", "--all", number=1, code=1)
    check("run --dry-run", "run", "--all", "--dry-run", number=1, code=1)
    check("status", "status")
    runs = check("audit", "audit")
    check("audit RUN", "audit", runs[0]["run_id"])
    check("sources", "sources")
    check("sources --protocols", "sources", "--protocols")
    check("verify", "verify", "orders")
    check("verify", "verify", number=1, code=1)
    check("state show", "state", "show")
    check("state set, state reset", "state", "set", "orders", "2026-01-01")
    check("state set, state reset", "state", "reset", "orders", "--yes")
    check("clean", "clean", "--older", "1s", "--dry-run")
    check("Any command", "run", "nobody", code=2)
    refused = check("Any command", "status", "-C", str(loaded / "sources"), "--watch", code=2)
    assert refused["error"]["why"] == ""
    unasked = check("Any command", "run", "--no-input", code=2)
    assert "shop.orders" in unasked["error"]["why"]


def test_a_run_that_still_runs_has_no_end(dw, loaded):
    assert dw("run", "customers", cwd=loaded, DW_TEST_CRASH_AT="copied").returncode != 0
    runs = json.loads(dw("audit", "--json", "--last", "1", cwd=loaded).stdout)
    assert (runs[0]["status"], runs[0]["finished_at"]) == ("running", None)
    assert problems(runs, described("audit")) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"code": "X", "message": "m", "why": ""}, ["$.hint is missing"]),
        ({"code": "X", "message": "m", "why": "", "hint": "", "more": 1}, ["$.more is not described"]),
        ({"code": None, "message": "m", "why": "", "hint": ""}, ["$.code is None, not text"]),
        ([], ["$ is [], not object"]),
    ],
)
def test_a_field_too_many_too_few_or_of_another_kind_is_found(value, said):
    assert problems(value, Field("object", "", _json.ERROR)) == said


def test_true_is_no_number_and_a_moment_has_a_zone():
    assert problems(True, Field("integer", "")) == ["$ is True, not integer"]
    assert problems(1, Field("boolean", "")) == ["$ is 1, not boolean"]
    assert problems("2026-01-01T10:00:00", Field("moment", "")) != []
    assert problems([1, "x"], Field("list", "", of="integer")) == ["$[1] is 'x', not integer"]
    assert problems({"a": "x"}, Field("object", "", of="integer")) == ["$.a is 'x', not integer"]


def test_every_field_is_described_and_stands_on_the_page():
    page = _json.markdown()
    for fields in (_json.RUN, _json.PLAN, _json.STATUS, _json.AUDIT, _json.VERIFY, _json.CLEAN):
        assert all(
            field.says and f"| `{name}` | {field.kind} | {field.says}" in page
            for name, field in fields.items()
        )
