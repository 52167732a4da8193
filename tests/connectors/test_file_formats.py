"""One file of each format, with what is hard in it and what is broken."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import subprocess
import sys
import uuid
import zipfile
from decimal import Decimal
from pathlib import Path

import openpyxl
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from dwcli.connectors import create_connector
from dwcli.connectors._formats import FileFields, Frame, Options, read_file
from dwcli.connectors._formats.json_file import HALF_PAIR, array_cut, last_cut
from dwcli.errors import DriverMissing, ResourceMissing, SourceData


def read(path: Path, data: bytes, **options) -> list[Frame]:
    path.write_bytes(data)
    return list(read_file(path, path.name, Options(**options), {}))


def rows(frames: list[Frame]) -> list[tuple]:
    return [row[:-1] for frame in frames for row in frame.data.rows()]


def refusal(path: Path, data: bytes, **options) -> SourceData:
    with pytest.raises(SourceData) as caught:
        read(path, data, **options)
    return caught.value


# -- CSV -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a,b\n1,2\n3\n", "t.csv:3: 1 field where 2 are expected"),
        (b"a,b\r\n1,2\r\n3,4,5\r\n", "t.csv:3: 3 fields where 2 are expected"),
        (b'a,b\n1,"x\ny"\n3\n', "t.csv:4: 1 field where 2 are expected"),
        (b'a,b\n1,"x', "t.csv ends inside a quoted field"),
        (b"a,b\n1,\xff\n", "t.csv is not utf-8 text (byte 6, line 2: 0xff)"),
    ],
)
def test_a_broken_csv_is_refused_at_its_line(tmp_path, text, message):
    assert refusal(tmp_path / "t.csv", text).message == message


def test_a_ragged_row_late_in_a_large_file_has_its_line(tmp_path):
    text = b"a,b\n" + b"1,2\n" * 100_000 + b"9\n1,2\n"
    assert refusal(tmp_path / "t.csv", text, batch_bytes=1 << 18).message.startswith("t.csv:100002: 1 field")


def test_a_wrong_byte_late_in_a_large_file_has_its_place(tmp_path):
    text = ("a,b\n" + "é,2\n" * 100_000).encode() + b"\xe9,1\n"
    error = refusal(tmp_path / "t.csv", text, batch_bytes=1 << 18)
    assert error.message == "t.csv is not utf-8 text (byte 500,004, line 100,002: 0xe9)"
    assert "cp1252" in error.hint


def test_bytes_that_a_given_encoding_does_not_have_are_found(tmp_path):
    error = refusal(tmp_path / "t.csv", b"a\nx\n\x81\n", encoding="cp1252")
    assert error.message == "t.csv is not cp1252 text (byte 4, line 3: 0x81)"


def test_a_row_longer_than_a_block_is_read_once(tmp_path):
    text = b"a,b\n" + b"1,2\n" * 30_000 + b'3,"' + b"x" * 3_000_000 + b'"\n5,6\n'
    found = rows(read(tmp_path / "t.csv", text, batch_bytes=1 << 18))
    assert len(found) == 30_002
    assert (len(found[-2][1]), found[-1]) == (3_000_000, (5, "6"))


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        (b"a,b\n1,2\n", ["a", "b"]),
        (b"a,b", ["a", "b"]),
        (b"x,1\ny,2\n", ["column_1", "column_2"]),
        (b",a\n1,2\n", ["column_1", "a"]),
        (b"a,a,a_2,,_source_path\n1,2,3,4,5\n", ["a", "a_3", "a_2", "column_4", "_source_path_2"]),
        (b'"a\nb",c\n1,2\n', ["a\nb", "c"]),
        (b"\n\na,b\n1,2\n", ["a", "b"]),
    ],
)
def test_columns_get_names_that_are_there_and_unique(tmp_path, text, columns):
    (frame,) = read(tmp_path / "t.csv", text)
    assert frame.data.columns == [*columns, "_source_path"]


@pytest.mark.parametrize("text", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_records_gives_nothing(tmp_path, text):
    assert read(tmp_path / "t.csv", text) == []


def test_what_the_options_say_is_not_guessed(tmp_path):
    text = b"-- exported\n1;'x;y';NA\n"
    options = {"delimiter": ";", "quote": "'", "header": False, "skip_rows": 1, "null_values": ("NA",)}
    assert rows(read(tmp_path / "t.csv", text, **options)) == [(1, "x;y", None)]


def test_a_quoted_empty_field_is_null_only_when_told(tmp_path):
    text = b'a,b\n1,""\n2,3\n'
    assert rows(read(tmp_path / "t.csv", text)) == [(1, ""), (2, "3")]
    assert rows(read(tmp_path / "t.csv", text, null_values=("",))) == [(1, None), (2, 3)]


def test_an_empty_line_is_null_in_a_table_of_one_column(tmp_path):
    assert rows(read(tmp_path / "t.csv", b"a\n1\n\n2\n")) == [(1,), (None,), (2,)]


def test_zeros_bytes_and_stray_quotes_are_texts(tmp_path):
    assert rows(read(tmp_path / "t.csv", b'a,b\n1,\x00x\n2,5" pipe\n')) == [(1, "\x00x"), (2, '5" pipe')]


def test_a_column_stays_wide_from_file_to_file(tmp_path):
    seen: dict[str, str] = {}
    kinds = []
    for text in ("a\n1\n", "a\nx\n", "a\n3\n"):
        (tmp_path / "t.csv").write_text(text)
        (frame,) = read_file(tmp_path / "t.csv", "t.csv", Options(), seen)
        kinds.append(frame.data.schema["a"])
    assert kinds == [pl.Int64, pl.String, pl.String]


cells = st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=8))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=8))
def test_quoted_texts_come_back_as_they_were(tmp_path_factory, table):
    def field(value: str | None) -> str:
        return "" if value is None else '"' + value.replace('"', '""') + '"'

    text = "x,y\n" + "".join(f"{field(a)},{field(b)}\n" for a, b in table)
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    seen = {"x": "text", "y": "text"}
    path.write_text(text, "utf-8", newline="")
    found = rows(list(read_file(path, "t.csv", Options(delimiter=",", header=True), seen)))
    assert found == table


# -- JSON ----------------------------------------------------------------------------------------------


def test_json_numbers_are_exact_at_any_size(tmp_path):
    text = b'[{"i":12345678901234567890,"d":0.10,"e":1e400,"z":-0},{"i":1,"d":1e-5,"e":1,"z":1}]'
    (frame,) = read(tmp_path / "t.json", text)
    first = frame.data.row(0, named=True)
    assert [Decimal(str(first[name])) for name in "ide"] == [
        Decimal(12345678901234567890),
        Decimal("0.10"),
        Decimal("1e400"),
    ]
    assert frame.types == {"i": "numeric", "d": "numeric", "e": "numeric", "z": "bigint"}


def test_json_values_of_different_forms_are_text_or_json(tmp_path):
    text = b'[{"s":1.50,"n":[1, 2.50]},{"s":"x\\n\\u00e9","n":"a"},{"s":true,"n":{"k" : " v "}},{"s":null}]'
    (frame,) = read(tmp_path / "t.json", text)
    assert rows([frame]) == [
        ("1.50", "[1,2.50]"),
        ("x\né", '"a"'),
        ("true", '{"k":" v "}'),
        (None, None),
    ]
    assert frame.types == {"n": "jsonb"}


def test_json_strings_are_times_only_when_all_are_whole_times(tmp_path):
    text = b"""[{"t":"2024-01-01T00:00:00Z","d":"2024-02-29","n":"2024-01-01 00:00:00","i":"5"},
                {"t":"2024-01-01T00:00:00+02:00","d":"2024-03-01","n":null,"i":"6"}]"""
    (frame,) = read(tmp_path / "t.json", text)
    assert frame.types == {"t": "timestamptz", "d": "date"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.json", b'[{"a":1},\n{"a":2},\n{"a":}]', "t.json:3: not valid JSON"),
        ("t.json", b'[{"a":1},\n{"a":2}', "t.json is cut off"),
        ("t.json", b'[{"a":1},\n{"a":', "t.json is cut off"),
        ("t.json", b'[{"a":1}]\n x', "t.json:1: there is more behind the array that ends here"),
        ("t.json", b'[{"a":1}, 5]', "t.json: objects and other values are mixed, from line 1 on"),
        ("t.json", b'{"a":1}\n{"a":\n1', "t.json:2: not valid JSON"),
        ("t.json", b'[{"a":"\xff"}]', "t.json is not utf-8 text (byte 7, line 1: 0xff)"),
        ("t.ndjson", b'{"a":1}\n{"a":2', "t.ndjson:2: not valid JSON"),
        ("t.ndjson", b'{"a":1}\n{"a":x}\n{"a":3}\n', "t.ndjson:2: not valid JSON"),
        ("t.ndjson", b'{"a":1}\n{"a":"\xff"}\n', "t.ndjson is not utf-8 text (byte 14, line 2: 0xff)"),
        ("t.json", b'{"a":NaN}', "t.json:1: not valid JSON"),
    ],
)
def test_broken_json_is_refused_at_its_line(tmp_path, name, text, message):
    assert refusal(tmp_path / name, text).message == message


def test_json_ends_where_postgresql_would(tmp_path):
    def nested(depth: int) -> bytes:
        return b'{"a":' + b"[" * depth + b"]" * depth + b"}\n"

    assert len(rows(read(tmp_path / "t.ndjson", nested(7_000)))) == 1
    assert "nested deeper" in refusal(tmp_path / "t.ndjson", nested(100_000)).message


def test_half_a_surrogate_pair_stays_as_it_is_spelled(tmp_path):
    found = read(tmp_path / "t.json", b'[{"a":"x\\ud83d","b":"\\ud83d\\ude00"}]')
    assert rows(found) == [("x\\ud83d", "😀")]


@pytest.mark.parametrize(
    ("text", "halves"),
    [
        (b'{"a": "x\\ud83d"}\n{"a": "\\ude00 and \\uD800"}\n', 3),
        (b'{"a": {"\\ud800": 1}}\n', 1),
        (b'{"a": "\\ud83d\\ude00 \\\\ud800"}\n', 0),
    ],
)
def test_half_surrogate_pairs_are_counted(tmp_path, text, halves):
    expected = {HALF_PAIR: halves} if halves else {}
    frames = read(tmp_path / "t.ndjson", text)
    assert [dict(frame.changed) for frame in frames] == [expected]
    path = tmp_path / "t.ndjson"
    connector = create_connector({"protocol": "files", "path": str(path)})
    connector.connect()
    (item,) = list(connector.fetch_data(path.name).items)
    assert item.metadata.get("changed", {}) == expected


@pytest.mark.parametrize("text", [b"", b"[]", b" [ ] "])
def test_json_without_values_gives_nothing(tmp_path, text):
    assert read(tmp_path / "t.json", text) == []


def test_objects_one_after_the_other_are_rows_however_they_are_laid_out(tmp_path):
    text = b'{"a":\n 1}\n{"a":2}{"b":\n{"c":3}\n}'
    assert rows(read(tmp_path / "t.json", text)) == [(1, None), (2, None), (None, '{"c":3}')]


def test_elements_that_are_no_objects_are_values(tmp_path):
    assert rows(read(tmp_path / "t.json", b"[1, 2]")) == [(1,), (2,)]


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("ab"), json_values), min_size=1, max_size=5), st.booleans())
def test_an_array_is_cut_only_between_its_elements(elements, spaced):
    text = json.dumps(elements, indent=1 if spaced else None).encode()[1:]
    assert last_cut(text, in_array=True) == (len(text) - 1, True)
    for end in range(len(text) - 1):
        cut, ended = last_cut(text[:end], in_array=True)
        assert not ended
        if cut:
            assert (
                json.loads(b"[" + text[:cut] + b"]") == elements[: len(json.loads(b"[" + text[:cut] + b"]"))]
            )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("ab"), json_values), max_size=8), st.booleans())
def test_the_cut_that_is_found_by_how_elements_begin_is_the_last_one(elements, spaced):
    text = json.dumps(elements, indent=1 if spaced else None).encode()[1:] + b" , {"
    for end in range(len(text) + 1):
        assert array_cut(text[:end]) == last_cut(text[:end], in_array=True)


def test_a_large_array_is_read_in_pieces(tmp_path):
    elements = [
        {"id": number, "text": 'a "quoted" }, { \\ text', "in": {"x": [number]}} for number in range(20_000)
    ]
    frames = read(tmp_path / "t.json", json.dumps(elements, indent=2).encode(), batch_bytes=1 << 18)
    assert len(frames) > 5
    assert [row[0] for row in rows(frames)] == list(range(20_000))


# -- Parquet -------------------------------------------------------------------------------------------


def test_parquet_types_arrive_as_postgresql_has_them(tmp_path):
    moment = datetime.datetime(2024, 7, 1, 12)
    table = pa.table(
        {
            "decimal": pa.array([Decimal("1.50")], pa.decimal128(10, 2)),
            "wide": pa.array([Decimal("1.50")], pa.decimal256(50, 2)),
            "naive": pa.array([moment], pa.timestamp("us")),
            "nano": pa.array([1704067200123456789], pa.timestamp("ns", "UTC")),
            "unsigned": pa.array([2**64 - 1], pa.uint64()),
            "lasting": pa.array([-90_061_000_001], pa.duration("us")),
            "bytes": pa.array([b"\x00\xff"]),
            "time": pa.array([datetime.time(10, 30)], pa.time64("us")),
            "list": pa.array([[1, None]]),
            "struct": pa.array([{"a": Decimal("1.10"), "b": float("nan")}]),
            "map": pa.array([[]], pa.map_(pa.string(), pa.int64())),
            "coded": pa.array(["x"]).dictionary_encode(),
            "uuid": pa.array([uuid.UUID(int=5).bytes], pa.uuid()),
            "null": pa.nulls(1),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    (frame,) = read_file(tmp_path / "t.parquet", "t.parquet", Options(timezone="Europe/Berlin"), {})
    values = frame.data.row(0, named=True)
    assert values["naive"] == datetime.datetime(2024, 7, 1, 10, tzinfo=datetime.UTC)
    assert values["unsigned"] == 2**64 - 1
    assert values["lasting"] == "-25:01:01.000001" or values["lasting"] == "-25:-1:-1.000001"
    assert (values["list"], values["struct"], values["map"]) == ("[1,null]", '{"a":1.10,"b":"NaN"}', "{}")
    assert (values["coded"], values["uuid"]) == ("x", str(uuid.UUID(int=5)))
    assert frame.data.schema["nano"] == pl.Datetime("ns", "UTC")
    assert frame.data.schema["null"] == pl.Null
    assert frame.types == {
        "wide": "numeric(50,2)",
        "naive": "timestamptz",
        "nano": "timestamptz",
        "unsigned": "numeric(20,0)",
        "lasting": "interval",
        "list": "jsonb",
        "struct": "jsonb",
        "map": "jsonb",
        "uuid": "uuid",
    }


def test_parquet_is_read_in_bounded_batches(tmp_path):
    pl.DataFrame({"id": range(100_000), "t": ["x" * 20] * 100_000}).write_parquet(
        tmp_path / "t.parquet", use_pyarrow=True, pyarrow_options={"use_dictionary": False}
    )
    frames = list(read_file(tmp_path / "t.parquet", "t.parquet", Options(batch_bytes=1 << 20), {}))
    assert len(frames) > 5
    assert sum(frame.data.height for frame in frames) == 100_000


@pytest.mark.parametrize("keep", [4, 100, 0.5, 0.99])
def test_a_parquet_file_that_is_cut_off_is_refused(tmp_path, keep):
    buffer = io.BytesIO()
    pl.DataFrame({"id": range(1000)}).write_parquet(buffer)
    data = buffer.getvalue()
    error = refusal(tmp_path / "t.parquet", data[: int(keep * len(data)) if keep < 1 else keep])
    assert error.message == "t.parquet cannot be read as Parquet"


# -- Excel ---------------------------------------------------------------------------------------------


@pytest.fixture
def book(tmp_path) -> Path:
    workbook = openpyxl.Workbook()
    day = datetime.date(2024, 2, 29)
    for row in (
        ["id", "ratio", "day", "at", "ok", "mixed", "time"],
        [
            1,
            1.123456789012345e-07,
            day,
            datetime.datetime(2024, 1, 1, 10, 30),
            True,
            1.123456789012345,
            datetime.time(10, 30),
        ],
        [2**53, 0.5, day, datetime.datetime(2024, 1, 1), False, "007", None],
    ):
        workbook.active.append(row)
    workbook.create_sheet("Second").append(["other"])
    workbook.save(tmp_path / "t.xlsx")
    return tmp_path / "t.xlsx"


def test_cells_keep_every_digit_and_days_are_dates(book):
    (frame,) = read_file(book, "t.xlsx", Options(), {})
    assert frame.types == {
        "id": "bigint",
        "ratio": "numeric",
        "day": "date",
        "at": "timestamptz",
        "ok": "boolean",
    }
    assert frame.data["id"].to_list() == [1, 2**53]
    assert frame.data["ratio"].to_list() == [Decimal("1.123456789012345e-07"), Decimal("0.5")]
    assert frame.data["mixed"].to_list() == ["1.123456789012345", "007"]


def test_a_sheet_is_chosen_by_name_or_number(book):
    for sheet in ("Second", "2"):
        (frame,) = read_file(book, "t.xlsx", Options(sheet=sheet), {})
        assert frame.data.columns[0] == "other"
    with pytest.raises(ResourceMissing, match="no sheet 'Third'") as caught:
        list(read_file(book, "t.xlsx", Options(sheet="Third"), {}))
    assert "Second" in caught.value.hint


def test_a_broken_workbook_is_refused(tmp_path):
    assert refusal(tmp_path / "t.xlsx", b"PK\x03\x04 junk").message == "t.xlsx cannot be read as a workbook"


def test_without_its_driver_excel_says_what_to_install(book, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastexcel", None)
    with pytest.raises(DriverMissing) as caught:
        list(read_file(book, "t.xlsx", Options(), {}))
    assert caught.value.hint == "pip install 'dwcli[excel]'"


# -- packing -------------------------------------------------------------------------------------------


def test_each_member_of_a_zip_says_where_it_came_from(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("2024/a.csv", "id\n1\n")
        archive.writestr("../b.ndjson", '{"id": 2}\n')
        archive.writestr("c.csv.gz", gzip.compress(b"id\n3\n"))
    frames = list(read_file(tmp_path / "t.zip", "t.zip", Options(), {}))
    assert [frame.data.row(0) for frame in frames] == [
        (1, "t.zip!2024/a.csv"),
        (2, "t.zip!../b.ndjson"),
        (3, "t.zip!c.csv.gz"),
    ]


def test_parquet_in_an_archive_is_read(tmp_path):
    buffer = io.BytesIO()
    pl.DataFrame({"id": [1]}).write_parquet(buffer)
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a.parquet", buffer.getvalue())
    assert rows(list(read_file(tmp_path / "t.zip", "t.zip", Options(), {}))) == [(1,)]


def test_what_unpacks_to_far_more_than_it_weighs_is_stopped(tmp_path):
    bomb = gzip.compress(b"id\n" + b"1\n" * 40_000_000)
    error = refusal(tmp_path / "t.csv.gz", bomb)
    assert "unpacks to more than 200 times" in error.message
    assert "max_expansion: 2000" in error.hint


def test_an_archive_inside_an_archive_is_refused(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.csv", "id\n1\n")
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("inner.zip", inner.getvalue())
    with pytest.raises(SourceData, match="archive inside an archive"):
        list(read_file(tmp_path / "t.zip", "t.zip", Options(), {}))


@pytest.mark.parametrize("position", ["in the middle", "in the checksum"])
def test_a_damaged_gzip_is_refused_not_read_short(tmp_path, position):
    packed = bytearray(gzip.compress("".join(f"{n}\n" for n in range(100_000)).encode()))
    packed[-6 if position == "in the checksum" else len(packed) // 2] ^= 0x55
    assert "cut off or damaged" in refusal(tmp_path / "t.csv.gz", bytes(packed)).message


# -- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"encoding": "utf-99"}, {"timezone": "Mars/Olympus"}, {"delimiter": "ab"}])
def test_options_that_mean_nothing_are_refused(given):
    class Config(FileFields, BaseModel):
        pass

    with pytest.raises(ValidationError):
        Config(**given)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux")
def test_a_large_json_array_never_stands_in_memory(tmp_path):
    element = json.dumps({"id": 1234567, "name": "some text of a usual length", "tags": ["a", "b"]}) + ",\n"
    with (tmp_path / "t.json").open("w") as file:
        file.write("[")
        for _ in range(8):
            file.write(element * 100_000)
        file.write(element.rstrip(",\n") + "]")
    code = (
        "import pathlib; from dwcli.connectors._formats import Options, read_file\n"
        f"path = pathlib.Path({str(tmp_path / 't.json')!r})\n"
        "assert sum(f.data.height for f in read_file(path, 't.json', Options(), {})) == 800_001\n"
        "print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300_000  # KB
