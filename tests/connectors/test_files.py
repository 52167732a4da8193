"""Files of every kind, as they really come: read from disk, and loaded into a real warehouse."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import zipfile
from decimal import Decimal
from pathlib import Path

import openpyxl
import polars as pl
import pyarrow as pa
import pytest

from dwcli.connectors import create_connector
from dwcli.contract import Cursor, IngestedItem
from dwcli.errors import DwError, ResourceMissing, SourceData
from dwcli.pipeline.project import run_project
from dwcli.pipeline.record import RunOptions
from dwcli.project import load_project, select
from tests.pipeline.runs import rows_of


def items(path: Path, query: str = "", cursor: Cursor | None = None, **config) -> list[IngestedItem]:
    connector = create_connector({"protocol": "files", "path": str(path), **config})
    connector.connect()
    try:
        return list(connector.fetch_data(query, cursor).items)
    finally:
        connector.close()


def frames(path: Path, query: str = "", **config) -> list[pl.DataFrame]:
    return [item.payload for item in items(path, query, **config) if item.payload is not None]


def column(path: Path, name: str, **config) -> list:
    return [value for frame in frames(path, **config) for value in frame[name].to_list()]


def types_of(path: Path, **config) -> dict[str, str]:
    from dwcli.staging.dw_schema import frame_types

    item = items(path, **config)[-1]
    return frame_types(item.payload, item.types)


@pytest.fixture
def csv(tmp_path):
    def write(text: str | bytes, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


# -- CSV: what a text means ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "-20", "9223372036854775807"], "bigint"),
        (["1", "9223372036854775808"], "numeric"),
        (["12.50", "1.5"], "numeric"),
        (["007", "1"], "text"),
        (["+5", "1"], "text"),
        (["1e5", "2E10"], "text"),
        (["true", "FALSE"], "boolean"),
        (["yes", "no"], "text"),
        (["2024-02-29", "0001-01-01"], "date"),
        (["2023-02-29"], "text"),
        (["2024-02-29 12:00:00+01", "2024-02-29T12:00:00Z"], "timestamptz"),
        (["1", "N/A"], "text"),
    ],
)
def test_the_values_of_a_column_decide_its_type(csv, values, expected):
    assert types_of(csv("v\n" + "\n".join(values) + "\n"))["v"] == expected


def test_empty_is_null_and_quoted_empty_is_an_empty_text(csv):
    assert column(csv('a,b\nx,\ny,""\n'), "b") == [None, ""]


def test_texts_are_kept_to_the_letter(csv):
    texts = [" spaces ", "a\nb", 'a"b', "ünï ☂ 👩‍👩‍👧", r"\N", "NULL", "\\.", "0x1F", "+49 30 1234"]
    quoted = "\n".join('"' + text.replace('"', '""') + '"' for text in texts)
    assert column(csv(f"v\n{quoted}\n"), "v") == texts


def test_decimals_keep_every_digit(csv):
    (frame,) = frames(csv("v\n50000.0000000000000001\n0.10\n"))
    assert [Decimal(str(value)) for value in frame["v"].to_list()] == [
        Decimal("50000.0000000000000001"),
        Decimal("0.10"),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(csv, delimiter):
    assert frames(csv(f"a{delimiter}b\n1{delimiter}x\n"))[0].columns == ["a", "b", "_source_path"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_are_found_or_given(csv, encoding):
    path = csv("name,n\nMüller,1\n".encode(encoding))
    given = {"encoding": "cp1252"} if encoding == "cp1252" else {}
    assert column(path, "name", **given) == ["Müller"]


def test_names_that_are_missing_or_double_are_told_apart(csv):
    assert len(set(frames(csv("id,id,,x\n1,2,3,4\n"))[0].columns)) == 5


def test_a_header_alone_is_an_empty_table_with_columns(csv):
    (frame,) = frames(csv("a,b\n"))
    assert frame.height == 0
    assert {"a", "b"} <= set(frame.columns)


# -- other formats, and packing -----------------------------------------------------------------------

ROWS = [{"id": 1, "name": "ä"}, {"id": 2, "name": None}]


def written(path: Path, kind: str) -> Path:
    frame = pl.DataFrame(ROWS)
    if kind == "csv":
        path.write_text(frame.write_csv())
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "ndjson":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        frame.write_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "json", "ndjson", "parquet"])
def test_every_format_brings_the_same_rows(tmp_path, kind):
    path = written(tmp_path / f"t.{kind}", kind)
    assert (column(path, "id"), column(path, "name")) == ([1, 2], ["ä", None])


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz", "zst", "zip"])
@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_packed_files_are_unpacked(tmp_path, kind, packing):
    plain = written(tmp_path / f"t.{kind}", kind)
    path = tmp_path / f"t.{kind}.{packing}"
    data = plain.read_bytes()
    if packing == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(plain, plain.name)
    elif packing == "zst":
        path.write_bytes(pa.Codec("zstd").compress(data, asbytes=True))
    else:
        path.write_bytes({"gz": gzip, "bz2": bz2, "xz": lzma}[packing].compress(data))
    plain.unlink()
    assert column(path, "id") == [1, 2]


def test_json_numbers_keep_every_digit_and_nested_values_become_json(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('[{"n": 12345678901234567890, "d": 0.1000, "o": {"a": [1.50]}}, {"n": 1, "d": 2}]')
    (item,) = items(path)
    assert [str(value) for value in item.payload["n"].to_list()] == ["12345678901234567890", "1"]
    assert item.types["o"] == "jsonb"
    assert json.loads(item.payload["o"][0]) == {"a": [1.5]}


def test_excel_brings_the_first_sheet(tmp_path):
    book = openpyxl.Workbook()
    for row in (["id", "name"], [1, "ä"], [2, None]):
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    assert column(tmp_path / "t.xlsx", "name") == ["ä", None]


# -- many files, and only what is new -----------------------------------------------------------------


def test_a_glob_reads_each_file_and_says_which(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.csv").write_text(f"id\n{number}\n")
    read = pl.concat(frames(tmp_path, "*.csv"))
    assert read.sort("id")["_source_path"].to_list() == ["0.csv", "1.csv", "2.csv"]


def test_thousands_of_files_are_read_with_few_open(tmp_path):
    for number in range(3000):
        (tmp_path / f"{number:05}.csv").write_text(f"id\n{number}\n")
    assert sum(frame.height for frame in frames(tmp_path, "*.csv")) == 3000


def test_only_new_and_changed_files_are_read_again(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("id\n1\n")
    position = items(tmp_path, "*.csv")[-1].position
    assert [i for i in items(tmp_path, "*.csv", Cursor(position=position)) if i.payload is not None] == []

    (tmp_path / "a.csv").write_text("id\n7\n8\n")
    (tmp_path / "c.csv").write_text("id\n9\n")
    again = [i for i in items(tmp_path, "*.csv", Cursor(position=position)) if i.payload is not None]
    assert sorted(value for item in again for value in item.payload["id"].to_list()) == [7, 8, 9]
    assert [dict(item.replaces) for item in again if item.replaces] == [{"_source_path": "a.csv"}]


# -- what cannot be read ------------------------------------------------------------------------------


def refused(path: Path, **config) -> DwError:
    with pytest.raises(DwError) as caught:
        frames(path, **config)
    return caught.value


def test_a_ragged_row_is_named_by_its_line(csv):
    error = refused(csv("a,b\n1,2\n3,4,5\n"))
    assert isinstance(error, SourceData)
    assert "t.csv" in error.message + error.why
    assert "3" in error.message + error.why


def test_the_wrong_encoding_is_named(csv):
    error = refused(csv("name\nMüller\n".encode("cp1252")), encoding="utf-8")
    assert isinstance(error, SourceData)
    assert "utf-8" in (error.message + error.why + error.hint).lower()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.json", b'[{"a": 1}, {"a": '),
        ("t.ndjson", b'{"a": 1}\n{"a": \n'),
        ("t.parquet", b"PAR1 this is no parquet PAR1"),
        ("t.csv.gz", gzip.compress(b"a\n" + b"1\n" * 10000, mtime=0)[:-20]),
        ("t.csv.zip", b"PK\x03\x04 no archive"),
    ],
    ids=["json", "ndjson", "parquet", "gzip", "zip"],
)
def test_a_broken_file_is_an_error_that_names_it(csv, name, content):
    error = refused(csv(content, name))
    assert isinstance(error, SourceData)
    assert name in error.message


def test_a_file_that_is_not_there_is_told_with_the_nearest_name(tmp_path):
    (tmp_path / "orders.csv").write_text("a\n1\n")
    with pytest.raises(ResourceMissing) as caught:
        frames(tmp_path, "order.csv")
    assert "orders.csv" in caught.value.message + caught.value.hint


def test_a_quote_that_is_never_closed_is_an_error(csv):
    assert isinstance(refused(csv('a,b\n1,"x\n2,y\n')), SourceData)


# -- into the warehouse -------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    (tmp_path / "dw.yaml").write_text("name: shop\n")
    (tmp_path / "sources").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "sources" / "in.yaml").write_text(
        "protocol: files\npath: data\n"  # from the project's folder, wherever dw is called
        "pipelines:\n  t:\n    query: '*.csv'\n    write: append\n"
    )
    return tmp_path


def load(project: Path, url: str) -> dict:
    found = load_project(project)
    (result,) = run_project(found, select(found, ["t"]), url, RunOptions(), lambda event: None)
    return result


def test_a_value_late_in_a_large_file_widens_the_column_and_loses_nothing(project, warehouse_url, warehouse):
    lines = [f"{number},{number}.50" for number in range(200_000)]
    (project / "data" / "t.csv").write_text("\n".join(["id,v", *lines, "N/A,x", ""]))
    assert load(project, warehouse_url)["status"] == "success"

    assert rows_of(warehouse, "select count(*), count(distinct id), max(length(id)) from t") == [
        (200_001, 200_001, 6)
    ]
    assert rows_of(warehouse, "select id, v from t where id in ('7', 'N/A') order by id") == [
        ("7", "7.50"),
        ("N/A", "x"),
    ]


def test_a_changed_file_takes_the_place_of_its_old_rows(project, warehouse_url, warehouse):
    for name in ("a", "b"):
        (project / "data" / f"{name}.csv").write_text(f"id\n{ord(name)}\n")
    load(project, warehouse_url)
    (project / "data" / "a.csv").write_text("id\n1\n2\n")
    load(project, warehouse_url)
    result = load(project, warehouse_url)

    assert rows_of(warehouse, "select id, _source_path from t order by id") == [
        (1, "a.csv"),
        (2, "a.csv"),
        (98, "b.csv"),
    ]
    assert result["rows_read"] == 0


def test_a_broken_file_leaves_the_table_as_it_was(project, warehouse_url, warehouse):
    (project / "data" / "a.csv").write_text("id,n\n1,1\n")
    load(project, warehouse_url)
    (project / "data" / "b.csv").write_text("id,n\n2,2\n3\n4,4,4\n")
    result = load(project, warehouse_url)

    assert result["status"] == "failure"
    assert "b.csv" in result["error"]["message"]
    assert rows_of(warehouse, "select id, n from t") == [(1, 1)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux")
def test_memory_does_not_follow_the_size_of_the_file(tmp_path):
    line = "1234567,some text of a usual length,12.50,2024-02-29\n"
    with (tmp_path / "t.csv").open("w") as file:
        file.write("a,b,c,d\n")
        for _ in range(20):
            file.write(line * 100_000)
    code = (
        "import pathlib; from dwcli.connectors import create_connector\n"
        f"c = create_connector({{'protocol': 'files', 'path': {str(tmp_path / 't.csv')!r}}}); c.connect()\n"
        "assert sum(i.payload.height for i in c.fetch_data('').items if i.payload is not None) == 2_000_000\n"
        "print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert int(done.stdout) < 400_000  # KB


def test_a_folder_that_is_gone_is_named_and_not_a_file_in_it(tmp_path: Path):
    source = create_connector({"protocol": "files", "path": str(tmp_path / "in" / ".." / "gone")})
    with pytest.raises(ResourceMissing) as caught:
        source.connect()
    assert caught.value.message == f"{tmp_path / 'gone'} does not exist"
