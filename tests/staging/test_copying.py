"""What PostgreSQL cannot hold is taken out of a batch, and nothing else."""

from __future__ import annotations

import json

import polars as pl

from dwcli.staging.copying import holdable


def test_the_escape_of_nul_goes_and_an_escaped_backslash_before_u0000_stays() -> None:
    values = ["a\0\0b", r"a\u0000b", "\\\0\\", r"\\u0000\n", "plain", '"\\"']
    frame = pl.DataFrame({"j": [json.dumps({"k": value}) for value in values]})
    got, changed = holdable(frame, {"j": "jsonb"})

    assert [json.loads(text)["k"] for text in got["j"]] == [v.replace("\0", "") for v in values]
    assert changed == {"j: NUL removed": 2}


def test_text_loses_nul_alone() -> None:
    frame = pl.DataFrame({"t": ["a\0b", r"a\u0000b", None]})
    got, changed = holdable(frame, {"t": "text"})

    assert got["t"].to_list() == ["ab", r"a\u0000b", None]
    assert changed == {"t: NUL removed": 1}
