"""The end of the wizard of `dw add-source`: the first rows, loaded at once."""

from __future__ import annotations

import pexpect

ENTER, DOWN = "\r", "\x1b[B"


def test_the_first_rows_are_loaded_at_the_end_of_the_wizard(terminal, shop, warehouse):
    child = terminal("add-source", "sqlite", "more", "--database-path", "shop.db", width=100)
    for question, keys in (
        ("Which tables?", "cust "),
        ("●", ENTER),
        ("primary key in the source", ENTER),
        ("reload everything each run", ENTER),
        ("replace (reload everything)", ENTER),
        ("only by hand", ENTER),
        ("First 1,000 rows only", DOWN + ENTER),
    ):
        child.expect_exact(question)
        child.send(keys)
    child.expect_exact("Same without questions")
    child.expect_exact("more.customers_2")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert warehouse.execute("select count(*) from customers_2").fetchone() == (2,)
