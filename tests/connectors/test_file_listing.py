"""Which files are read, what the next run may pass over, and what a folder offers."""

from __future__ import annotations

import datetime
import os
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest

from dwcli.connectors import create_connector
from dwcli.connectors._formats.items import MAX_SINGLE_FILES
from dwcli.contract import Cursor, IngestedItem
from dwcli.errors import ConfigError, QueryFailed, ResourceMissing, SourceData


def connected(path: Path | str, **config):
    connector = create_connector({"protocol": "files", "path": str(path), **config})
    connector.connect()
    return connector


def items(path: Path | str, query: str = "", cursor: Cursor | None = None, **config) -> list[IngestedItem]:
    return list(connected(path, **config).fetch_data(query, cursor).items)


def values(found: list[IngestedItem], column: str = "id") -> list:
    return [value for item in found if item.payload is not None for value in item.payload[column].to_list()]


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)


@pytest.fixture
def tree(tmp_path) -> Path:
    for name in (
        "a.csv",
        "2023/b.csv",
        "2024/c.csv",
        "2024/d.csv",
        "2024/e.json",
        "2024/notes.md",
        ".hidden.csv",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(
            '{"id": 5}' if name.endswith("json") else f"id\n{ord(Path(name).name[0])}\n"
        )
    return tmp_path


# -- what a query means --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "read"),
    [
        ("", ["2023/b.csv", "2024/c.csv", "2024/d.csv", "2024/e.json", "a.csv"]),
        (".", ["2023/b.csv", "2024/c.csv", "2024/d.csv", "2024/e.json", "a.csv"]),
        ("a.csv", ["a.csv"]),
        ("2024", ["2024/c.csv", "2024/d.csv", "2024/e.json"]),
        ("2024/*.csv", ["2024/c.csv", "2024/d.csv"]),
        ("**/*.csv", ["2023/b.csv", "2024/c.csv", "2024/d.csv", "a.csv"]),
        ("*/c.csv", ["2024/c.csv"]),
        ("2024/notes.md", ["2024/notes.md"]),
        (".hidden.csv", [".hidden.csv"]),
    ],
)
def test_a_query_is_a_path_or_glob_below_the_folder(tree, query, read):
    assert list(dict.fromkeys(values(items(tree, query), "_source_path"))) == read
    assert items(tree, query)[-1].position["files"].keys() == set(read)


def test_the_path_may_be_a_file_or_a_glob_itself(tree):
    assert values(items(tree / "a.csv"), "_source_path") == ["a.csv"]
    assert values(items(tree / "2024" / "*.csv"), "_source_path") == ["c.csv", "d.csv"]
    glob = str(tree / "202?" / "*.csv")
    assert values(items(glob, glob), "_source_path") == ["2023/b.csv", "2024/c.csv", "2024/d.csv"]


def test_an_absolute_query_below_the_folder_is_the_same_file(tree):
    assert values(items(tree, str(tree / "a.csv")), "_source_path") == ["a.csv"]


@pytest.mark.parametrize("query", ["../x.csv", "2024/../../x.csv", "/etc/passwd"])
def test_a_query_does_not_lead_out_of_the_folder(tree, query):
    with pytest.raises(QueryFailed):
        items(tree, query)


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    write(tmp_path, **{"a[1]": "id\n1\n", "a1": "id\n2\n"})
    assert values(items(tmp_path, "a[1].csv")) == [1]


def test_what_is_not_there_is_named_with_the_nearest(tree):
    with pytest.raises(ResourceMissing, match=r"2025/c.csv does not exist. Did you mean '2024'\?"):
        items(tree, "2025/c.csv")
    with pytest.raises(ResourceMissing, match=r"no file matches .*\*\.parquet"):
        items(tree, "*.parquet")
    with pytest.raises(ResourceMissing, match="does not exist"):
        connected(tree / "nowhere" / "*.csv")
    (tree / "empty").mkdir()
    with pytest.raises(ResourceMissing, match="no file that can be read"):
        items(tree, "empty")


def test_an_address_is_no_file(tmp_path):
    with pytest.raises(ConfigError):
        create_connector({"protocol": "files", "path": "https://example.org/a.csv"})


# -- increments ----------------------------------------------------------------------------------------


def test_only_the_item_that_completes_a_file_has_it_in_its_position(tmp_path):
    write(tmp_path, a="id,t\n" + "".join(f"{n},{'x' * 50}\n" for n in range(20_000)), b="id,t\n1,x\n")
    found = items(tmp_path, batch_bytes=1 << 18)
    assert len(found) > 3
    finished = [set(item.position["files"]) if item.position else set() for item in found]
    assert finished[0] == set()
    assert finished[-1] == {"a.csv", "b.csv"}
    assert all(earlier <= later for earlier, later in pairwise(finished) if later)


def test_a_file_that_changed_replaces_its_rows_once(tmp_path):
    write(tmp_path, a="id\n1\n", b="id\n2\n")
    position = items(tmp_path)[-1].position
    write(tmp_path, b="id\n" + "".join(f"{n}\n" for n in range(100_000)), c="id\n3\n")
    found = items(tmp_path, cursor=Cursor(position=position), batch_bytes=1 << 18)
    assert len(found) > 2
    assert dict(found[0].replaces) == {"_source_path": "b.csv"}
    assert not any(item.replaces for item in found[1:])
    assert len(values(found)) == 100_001
    assert found[-1].position["files"].keys() == {"a.csv", "b.csv", "c.csv"}


def test_rows_of_other_files_do_not_travel_with_a_replacement(tmp_path):
    write(tmp_path, b="id\n2\n")
    position = items(tmp_path)[-1].position
    write(tmp_path, a="id\n1\n", b="id\n22\n", c="id\n3\n")
    found = items(tmp_path, cursor=Cursor(position=position))
    assert [(dict(item.replaces), values([item])) for item in found] == [
        ({}, [1]),
        ({"_source_path": "b.csv"}, [22]),
        ({}, [3]),
    ]


def test_a_file_that_became_empty_replaces_its_rows_with_none(tmp_path):
    write(tmp_path, a="id\n1\n")
    position = items(tmp_path)[-1].position
    write(tmp_path, a="")
    (item,) = items(tmp_path, cursor=Cursor(position=position))
    assert item.payload is None
    assert dict(item.replaces) == {"_source_path": "a.csv"}
    assert item.position["files"]["a.csv"].startswith("0:")


def test_a_new_file_without_bytes_is_only_a_position(tmp_path):
    write(tmp_path, a="")
    (item,) = items(tmp_path)
    assert (item.payload, set(item.position["files"])) == (None, {"a.csv"})


def test_without_changes_there_is_nothing(tmp_path):
    write(tmp_path, a="id\n1\n")
    position = items(tmp_path)[-1].position
    assert items(tmp_path, cursor=Cursor(position=position)) == []


def test_a_file_that_grows_while_it_is_read_is_an_error(tmp_path):
    write(tmp_path, a="id\n" + "1\n" * 200_000)
    reading = iter(connected(tmp_path, batch_bytes=1 << 18).fetch_data("").items)
    next(reading)
    with (tmp_path / "a.csv").open("a") as file:
        file.write("2\n")
    with pytest.raises(SourceData, match=r"a\.csv changed while it was being read"):
        list(reading)


def test_a_file_that_is_gone_before_it_is_read_is_noted(tmp_path):
    write(tmp_path, a="id\n" + "1\n" * 200_000, b="id\n2\n", c="id\n3\n")
    reading = iter(connected(tmp_path, batch_bytes=1 << 18).fetch_data("").items)
    first = next(reading)
    (tmp_path / "b.csv").unlink()
    found = [first, *reading]
    assert values(found)[-1] == 3
    assert [item.metadata for item in found if item.metadata] == [{"vanished": ["b.csv"]}]
    assert found[-1].position["files"].keys() == {"a.csv", "c.csv"}


# -- small files travel together ------------------------------------------------------------------------


def test_small_files_share_an_item_without_a_value_changing(tmp_path):
    write(
        tmp_path,
        a="id,v,w\n1,0.5,\n",
        b="id,v,w\n2,0.125,x\n",
        c=f"id,v\n3,{'9' * 36}.5\n",
        d="v,id\nx,4\n",
    )
    found = items(tmp_path)
    read = [row for item in found for row in item.payload.select("id", "v").rows()]
    assert [(i, str(v)) for i, v in read if i != 2][-1] == (4, "x")
    numbers = {i: Decimal(str(v)) for i, v in read if i < 4}
    assert numbers == {1: Decimal("0.5"), 2: Decimal("0.125"), 3: Decimal("9" * 36 + ".5")}
    assert len(found) < 4


def test_columns_that_one_file_lacks_are_null(tmp_path):
    write(tmp_path, a="id,x\n1,5\n", b="id\n2\n")
    (item,) = items(tmp_path)
    assert item.payload.select("id", "x").rows() == [(1, 5), (2, None)]


# -- the cursor column -----------------------------------------------------------------------------------

TABLE = "id,at,day,v\n1,2024-01-01 00:00:00,2024-01-01,0.5\n2,2024-01-02 00:00:00,2024-01-02,1.5\n3,,,\n"


@pytest.mark.parametrize(
    ("cursor", "ids"),
    [
        (Cursor("id", "2", type="bigint"), [2, 3]),
        (Cursor("id", None, "2", type="bigint"), [1]),
        (Cursor("id", "2", "3", type="bigint"), [2]),
        (Cursor("at", "2024-01-02 00:00:00+00", type="timestamptz"), [2, 3]),
        (Cursor("at", "2024-01-02 01:00:00+01", type="timestamptz"), [2, 3]),
        (Cursor("at", None, "2024-01-02 00:00:00+00", type="timestamptz"), [1, 3]),
        (Cursor("day", "2024-01-02", type="date"), [2, 3]),
        (Cursor("day", "2024-01-01 12:00:00+00", type="timestamptz"), [2, 3]),
        (Cursor("v", "1.50", type="numeric"), [2, 3]),
        (Cursor("id", "1.5", type="numeric"), [2, 3]),
        (Cursor("id", "2", type="text"), [2, 3]),
        (Cursor("id"), [1, 2, 3]),
    ],
)
def test_rows_from_the_cursor_on_and_without_one_are_read(tmp_path, cursor, ids):
    write(tmp_path, a=TABLE)
    assert values(items(tmp_path, cursor=cursor)) == ids


def test_a_cursor_that_cannot_be_compared_is_an_error(tmp_path):
    write(tmp_path, a=TABLE)
    with pytest.raises(SourceData, match="cannot be compared"):
        items(tmp_path, cursor=Cursor("id", "2024-01-01", type="date"))
    with pytest.raises(SourceData, match="has no column 'updated_at'"):
        items(tmp_path, cursor=Cursor("updated_at", "2024-01-01", type="date"))


# -- what a folder offers --------------------------------------------------------------------------------


def test_a_folder_offers_files_that_look_alike_and_each_alone(tree):
    assert [(found.name, found.kind) for found in connected(tree).discover()] == [
        ("**/*.csv", "files"),
        ("2024/*.csv", "files"),
        ("2023/b.csv", "file"),
        ("2024/c.csv", "file"),
        ("2024/d.csv", "file"),
        ("a.csv", "file"),
        ("2024/e.json", "file"),
    ]


def test_what_is_offered_can_be_read(tree):
    connector = connected(tree)
    for resource in connector.discover():
        assert values(list(connector.fetch_data(resource.name).items))


def test_a_glob_is_offered_below_its_folder_wherever_the_project_is(tree):
    for path, name in ((tree / "2024" / "*.csv", "*.csv"), (tree / "a.csv", "a.csv")):
        connector = connected(path)
        [found] = connector.discover()
        assert found.name == name
        assert values(list(connector.fetch_data(name).items)) == values(list(connector.fetch_data("").items))


def test_of_many_files_only_the_group_is_offered(tmp_path):
    for number in range(MAX_SINGLE_FILES + 1):
        write(tmp_path, **{f"{number:04}": "id\n1\n"})
    assert [found.name for found in connected(tmp_path).discover()] == ["*.csv"]


def test_a_description_has_columns_estimates_and_cursors(tmp_path):
    lines = [f"{n},2024-01-01 00:00:{n % 60:02}Z,{n}.5\n" for n in range(50_000)]
    write(tmp_path, a="id,updated_at,v\n" + "".join(lines), b="id,updated_at,v\n")
    resource = connected(tmp_path).describe("*.csv")
    assert [(column.name, column.type) for column in resource.columns] == [
        ("id", "bigint"),
        ("updated_at", "timestamptz"),
        ("v", "numeric"),
        ("_source_path", "text"),
    ]
    assert abs((resource.row_estimate or 0) - 50_000) < 5_000
    assert resource.bytes_estimate == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert [candidate.column for candidate in resource.cursors] == ["updated_at"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted on Linux")
def test_a_read_that_is_given_up_leaves_no_file_open(tmp_path):
    write(tmp_path, a="id\n" + "1\n" * 200_000)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    reading = iter(connected(tmp_path, batch_bytes=1 << 18).fetch_data("").items)
    next(reading)
    reading.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_local_times_are_read_in_the_zone_of_the_source(tmp_path):
    write(tmp_path, a="at\n2024-07-01 12:00:00\n")
    (item,) = items(tmp_path, timezone="Europe/Berlin")
    assert item.payload["at"].to_list() == [datetime.datetime(2024, 7, 1, 10, tzinfo=datetime.UTC)]
