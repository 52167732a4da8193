"""An error as a person reads it."""

from __future__ import annotations

import pytest

from dwcli.errors import ConnectionFailed, ProjectMissing
from dwcli.render.errors import error_text, error_view, show_error

SECRET = "p@ss:w/rd"
FAILED = ConnectionFailed(
    f"[red]erp[/] rejected postgres://u:{SECRET}@erp/db",
    "login",
    f"password \x1b[31m{SECRET}\nsecond line",
    "dw edit invoices, or set INVOICES_PASSWORD",
)


def test_what_why_and_fix_stand_in_this_order(screen):
    assert screen(error_view(FAILED, [SECRET]), 80) == [
        "dw: [red]erp[/] rejected postgres://u:***@erp/db  [DW-CONN-LOGIN]",
        "  why: password \\x1b[31m***",
        "       second line",
        "  fix: dw edit invoices, or set INVOICES_PASSWORD",
    ]


def test_a_narrow_screen_folds_each_part_under_itself(screen):
    assert screen(error_view(FAILED, [SECRET]), 40) == [
        "dw: [red]erp[/] rejected",
        "    postgres://u:***@erp/db",
        "    [DW-CONN-LOGIN]",
        "  why: password \\x1b[31m***",
        "       second line",
        "  fix: dw edit invoices, or set",
        "       INVOICES_PASSWORD",
    ]


def test_a_log_gets_the_same_unfolded(capsys: pytest.CaptureFixture[str]):
    show_error(ProjectMissing("there is no dw project here or above /a/very/long/path" + "/folder" * 20))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].endswith("/folder  [DW-NO-PROJECT]")
    assert err.splitlines()[1:] == ["  fix: dw init, or dw -C PATH …"]


def test_secrets_are_taken_out_in_every_form():
    said = error_text(ConnectionFailed("x", why=f"{SECRET} p%40ss%3Aw%2Frd cEBzczp3L3Jk"), [SECRET])
    assert said.splitlines()[1] == "  why: *** *** ***"
