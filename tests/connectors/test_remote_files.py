"""What every connector for files from afar does alike, on a server of each kind."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import openpyxl
import polars as pl
import pytest

from dwcli.connectors import create_connector
from dwcli.contract import Cursor, IngestedItem
from dwcli.errors import DwError, QueryFailed, ResourceMissing, SourceData
from dwcli.pipeline.project import run_project
from dwcli.pipeline.record import RunOptions
from dwcli.project import load_project, select
from tests.connectors import places
from tests.pipeline.runs import rows_of
from tests.waiting import until

KINDS = {
    "ftp": places.ftp_place,
    "ssh": places.ssh_place,
    "webdav": places.webdav_place,
    "s3": places.s3_place,
    "gcs": places.gcs_place,
    "azure": places.azure_place,
}
azurite_endpoint = places.azurite_endpoint


@pytest.fixture(params=KINDS)
def place(request, tmp_path):
    where = request.getfixturevalue("azurite_endpoint") if request.param == "azure" else tmp_path
    with KINDS[request.param](where) as found:
        yield found


@pytest.fixture
def source(place):
    """Opens a connector on the place."""
    with ExitStack() as stack:

        def connect(**more):
            connector = create_connector(place.config | more)
            connector.connect()
            stack.callback(connector.close)
            return connector

        yield connect


def items(connector, query: str = "", position=None) -> list[IngestedItem]:
    return list(connector.fetch_data(query, Cursor(position=position)).items)


def rows(found: list[IngestedItem]) -> pl.DataFrame:
    return pl.concat([i.payload for i in found if i.payload is not None], how="diagonal_relaxed")


def test_every_format_arrives_with_its_types_and_its_file(place, source, tmp_path):
    pl.DataFrame({"id": [3], "name": ["ünï ☂"]}).write_parquet(tmp_path / "p.parquet")
    book = openpyxl.Workbook()
    for line in (["id", "name"], [4, "x"]):
        book.active.append(line)
    book.save(tmp_path / "e.xlsx")
    place.write("a.csv", b"id,name\n1,\n")
    place.write("b.ndjson.gz", gzip.compress(b'{"id": 2, "name": "\xc3\xa4"}\n'))
    place.write("c.parquet", (tmp_path / "p.parquet").read_bytes())
    place.write("d.xlsx", (tmp_path / "e.xlsx").read_bytes())
    place.write("readme.md", b"no data")

    found = rows(items(source())).sort("id")
    assert found["id"].to_list() == [1, 2, 3, 4]
    assert found["name"].to_list() == [None, "ä", "ünï ☂", "x"]
    assert found["_source_path"].to_list() == ["a.csv", "b.ndjson.gz", "c.parquet", "d.xlsx"]


def test_options_of_the_format_hold_here_too(place, source):
    place.write("t.txt", "sep\nNäme;v\nx;-\n".encode("cp1252"))
    connector = source(delimiter=";", encoding="cp1252", null_values=["-"], skip_rows=1)
    assert rows(items(connector, "t.txt")).row(0, named=True) == {
        "Näme": "x",
        "v": None,
        "_source_path": "t.txt",
    }


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["a.csv", "x/b.csv", "x/y/ü 1.csv", "z/c.csv"]),
        ("*.csv", ["a.csv"]),
        ("x/*.csv", ["x/b.csv"]),
        ("**/*.csv", ["a.csv", "x/b.csv", "x/y/ü 1.csv", "z/c.csv"]),
        ("x/**", ["x/b.csv", "x/y/ü 1.csv"]),
        ("x", ["x/b.csv", "x/y/ü 1.csv"]),
        ("[xz]/?.csv", ["x/b.csv", "z/c.csv"]),
        ("*/y/*.csv", ["x/y/ü 1.csv"]),
        ("x/y/ü 1.csv", ["x/y/ü 1.csv"]),
        ("./x/b.csv", ["x/b.csv"]),
        ("w[1]/n[2].csv", ["w[1]/n[2].csv"]),
        ("w[[]1]/*.csv", ["w[1]/n[2].csv"]),
    ],
)
def test_paths_and_globs_mean_what_they_do_for_files_of_this_machine(place, source, query, expected):
    for name in ("a.csv", "x/b.csv", "x/y/ü 1.csv", "z/c.csv", ".hidden.csv", ".h/d.csv"):
        place.write(name, b"id\n1\n")
    if "[" in query:
        place.write("w[1]/n[2].csv", b"id\n1\n")
    assert rows(items(source(), query))["_source_path"].to_list() == expected


def test_a_base_path_is_where_all_paths_begin(place, source):
    place.write("deep/er/a.csv", b"id\n1\n")
    connector = source(remote_base_path="deep/er")
    assert rows(items(connector))["_source_path"].to_list() == ["a.csv"]
    with pytest.raises(QueryFailed):
        items(connector, "../a.csv")


def test_only_new_and_changed_files_are_fetched_again(place, source):
    for name in ("a", "b"):
        place.write(f"{name}.csv", b"id\n1\n")
    position = items(source(), "*.csv")[-1].position
    place.fetched.clear()
    assert items(source(), "*.csv", position) == []
    assert place.fetched == []

    place.write("a.csv", b"id\n7\n")
    place.write("c.csv", b"id\n9\n")
    again = items(source(), "*.csv", position)
    assert sorted(rows(again)["id"].to_list()) == [7, 9]
    assert [dict(item.replaces) for item in again if item.replaces] == [{"_source_path": "a.csv"}]
    assert not any(name.endswith("b.csv") for name in place.fetched)


def test_many_small_files_come_together_and_in_order(place, source):
    for number in range(40):
        place.write(f"{number:03}.csv", f"id\n{number}\n".encode())
    found = items(source(), "*.csv")
    assert len(found) == 1
    assert rows(found)["id"].to_list() == list(range(40))


def test_batches_stay_near_their_bound_and_nothing_is_left_on_this_machine(
    place, source, tmp_path, monkeypatch
):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    place.write(
        "t.csv", b"id,text\n" + b"".join(b"%d,some text of a usual length\n" % n for n in range(100_000))
    )
    sizes, total, left = [], 0, []
    for item in source(batch_bytes=256 * 1024).fetch_data("t.csv").items:
        sizes.append(item.payload.estimated_size())
        total += item.payload.height
        left += list(scratch.iterdir())
    assert total == 100_000
    assert max(sizes) < 1024 * 1024
    assert left == []  # a nameless file: whatever ends the process, it is gone


def test_an_empty_file_with_a_header_has_columns_and_no_rows(place, source):
    place.write("t.csv", b"id,name\n")
    assert [i.payload.columns for i in items(source(), "t.csv")] == [["id", "name", "_source_path"]]


def test_what_is_not_there_is_told_with_the_nearest_name(place, source):
    place.write("orders.csv", b"id\n1\n")
    with pytest.raises(ResourceMissing) as caught:
        items(source(), "order.csv")
    assert "orders.csv" in caught.value.message
    for query in ("*.tsv", "nowhere/x.csv", "no*where/x.csv"):
        with pytest.raises(ResourceMissing):
            items(source(), query)


def test_a_broken_file_is_an_error_that_names_it(place, source):
    place.write("t.csv.gz", gzip.compress(b"id\n" + os.urandom(4000).hex().encode() + b"\n")[:-20])
    with pytest.raises(SourceData) as caught:
        items(source())
    assert "t.csv.gz" in caught.value.message


def test_groups_and_files_are_offered_and_described_without_being_fetched_twice(place, source):
    for name in ("a", "b"):
        place.write(f"{name}.csv", b"id,name\n1,x\n2,y\n")
    connector = source()
    assert [(r.name, r.kind) for r in connector.discover()] == [
        ("*.csv", "files"),
        ("a.csv", "file"),
        ("b.csv", "file"),
    ]
    assert place.fetched == []
    described = connector.describe("*.csv")
    assert [(c.name, c.type) for c in described.columns][:2] == [("id", "bigint"), ("name", "text")]
    assert described.bytes_estimate == 32
    assert len(rows(items(connector, "*.csv"))) == 4
    assert len(place.fetched) == 2


def test_a_large_text_file_is_described_by_its_beginning(place, source):
    line = b"1,some text of a usual length\n"
    place.write("t.csv", b"id,text\n" + line * 400_000)
    resource = source().describe("t.csv")
    assert [c.name for c in resource.columns][:2] == ["id", "text"]
    assert resource.bytes_estimate == 8 + 400_000 * len(line)
    assert abs(resource.row_estimate - 400_000) < 40_000


def test_two_runs_into_a_warehouse_load_each_file_once(place, tmp_path, warehouse_url, warehouse):
    project = tmp_path / "shop"
    (project / "sources").mkdir(parents=True)
    (project / "dw.yaml").write_text("name: shop\n")
    config = "".join(f"{key}: {value!r}\n" for key, value in place.config.items())
    (project / "sources" / "in.yaml").write_text(
        f"{config}pipelines:\n  t:\n    query: '*.csv'\n    write: append\n"
    )

    def load() -> dict:
        found = load_project(project)
        (result,) = run_project(found, select(found, ["t"]), warehouse_url, RunOptions(), lambda event: None)
        assert result["status"] == "success", result
        return result

    place.write("a.csv", b"id,v\n1,1.50\n")
    place.write("b.csv", b"id,v\n2,\n")
    assert load()["rows_read"] == 2
    place.write("a.csv", b"id,v\n3,2.25\n4,x\n")
    assert load()["rows_read"] == 2
    assert load()["rows_read"] == 0
    assert rows_of(warehouse, "select id, v, _source_path from t order by id") == [
        (2, None, "b.csv"),
        (3, "2.25", "a.csv"),
        (4, "x", "a.csv"),
    ]


def listed_by(entries):
    """A server that lists these names in its root."""
    from dwcli.connectors._remote_files import Entry, Server

    return Server(
        "test://server",
        lambda folder: [Entry(name, size=1, stamp="1") for name in entries],
        lambda file: iter([b"x"]),
        lambda: None,
    )


@pytest.mark.parametrize("name", ["../etc/passwd.csv", "..", "/etc/x.csv", "a\0.csv"])
def test_a_name_that_leads_out_of_its_folder_is_refused(name):
    from dwcli.connectors._remote_files import list_remote

    with pytest.raises(SourceData):
        list_remote(listed_by(["a.csv", name]), "*.csv", "auto")


@pytest.mark.parametrize(
    ("path", "protocol"),
    [("https://h/a.csv", "url"), ("s3://b/a.csv", "s3"), ("sftp://h/a.csv", "ssh"), ("ftps://h/a", "ftps")],
)
def test_files_says_which_protocol_an_address_belongs_to(path, protocol):
    from dwcli.connectors import resolve_name

    with pytest.raises(DwError) as caught:
        create_connector({"protocol": "files", "path": path})
    named = caught.value.message.partition("use the protocol ")[2].split()[0]
    assert resolve_name(named) == protocol


@pytest.mark.parametrize("protocol", ["ftp", "ftps", "ssh", "webdav", "url", "s3", "gcs", "azure"])
def test_the_first_question_is_where_the_files_are(protocol):
    from dwcli.connectors import load

    fields = load(protocol).Config.model_fields
    asked = [n for n, f in fields.items() if not (f.json_schema_extra or {}).get("advanced")]
    assert asked[0] in ("host", "base_url", "url", "bucket", "container")
    assert fields[asked[0]].is_required()


def test_no_room_for_a_file_is_told_with_where_to_find_some(monkeypatch, tmp_path):
    from dwcli.connectors import _remote_files
    from dwcli.connectors._formats.items import Listed

    def full(number: int, chunk: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_remote_files, "_write", full)
    with pytest.raises(DwError, match="no room") as caught:
        _remote_files.fetch(listed_by([]), Listed("a.csv", 1, "1"))
    assert "TMPDIR" in caught.value.hint


def test_where_files_need_names_they_are_private_and_removed(monkeypatch, tmp_path):
    from dwcli.connectors import _remote_files
    from dwcli.connectors._formats.items import Listed

    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fetched = _remote_files.fetch(listed_by([]), Listed("../../a.csv", 1, "1"))
    assert [path.stat().st_mode & 0o777 for path in Path(tmp_path).iterdir()] == [0o600]
    assert fetched.path.read_bytes() == b"x"
    del fetched
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_a_run_whose_server_is_silent(tmp_path):
    import asyncssh

    class Silent(asyncssh.SFTPServer):
        def __init__(self, chan):
            super().__init__(chan, chroot=str(tmp_path / "files"))

        async def read(self, file_obj, offset, size):
            file_obj.close()
            (tmp_path / "asked").touch()
            await asyncio.sleep(60)

    with places.ssh_place(tmp_path, sftp_factory=Silent) as place:
        place.write("a.csv", b"id\n1\n")
        code = (
            "from dwcli.connectors import create_connector\n"
            f"c = create_connector({place.config!r}); c.connect()\n"
            "try:\n    list(c.fetch_data('*.csv').items)\nfinally:\n    c.close()\n"
        )
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, env=environment)
        until(lambda: (tmp_path / "asked").exists())
        started = time.monotonic()
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=20)
        assert b"KeyboardInterrupt" in said
        assert time.monotonic() - started < 5
