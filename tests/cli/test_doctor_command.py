"""`dw doctor`: what is not well is found, with what mends it; what is well is left alone."""

from __future__ import annotations

import json
import re
import socket
import stat
import subprocess
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pexpect
import pytest

from dwcli.cli import _doctor_project as checks_here
from dwcli.cli import _doctor_warehouse as checks_there
from dwcli.pipeline.lock import take_lock
from dwcli.render.words import width
from tests.audit_log import rewrite
from tests.cli.test_look_commands import ESCAPES, insert_run


@pytest.fixture
def well(dw, shop: Path, warehouse_url: str) -> Path:
    """A project with nothing wrong: secrets in .env, everything loaded just now."""
    password = urlsplit(warehouse_url).password or ""
    hidden = warehouse_url.replace(f":{password}@", ":${env:WAREHOUSE_PASSWORD}@")
    (shop / "dw.yaml").write_text(f"name: shop\nwarehouse: {hidden}\n", "utf-8")
    (shop / ".env").write_text(f"WAREHOUSE_PASSWORD={password}\n", "utf-8")
    (shop / ".env").chmod(0o600)
    (shop / ".gitignore").write_text(".env\n.dw/\n", "utf-8")
    (shop / "sources" / "broken.yaml").unlink()
    done = dw("run", "--all", cwd=shop)
    assert done.returncode == 0, done.stderr
    return shop


def found(dw, folder: Path, *words: str, **more: str) -> tuple[int, list[dict[str, str]]]:
    done = dw("doctor", "--json", *words, cwd=folder, **more)
    told = json.loads(done.stdout)
    assert told["ok"] == (done.returncode == 0), done.stderr
    return done.returncode, told["checks"]


def about(checks: list[dict[str, str]], part: str) -> dict[str, str]:
    matching = [check for check in checks if part in check["detail"]]
    assert len(matching) == 1, checks
    return matching[0]


# -- a project that is well ------------------------------------------------------------------------------


def test_a_project_that_is_well_passes_in_every_layer(dw, well):
    code, checks = found(dw, well)
    assert code == 0
    # The test's server has the sizes that this machine has room for; a machine with cron could have a timer.
    told = [check["detail"] for check in checks if check["state"] != "ok"]
    assert [
        detail
        for detail in told
        if not detail.startswith(("shared_buffers", "max_wal_size")) and "no timer" not in detail
    ] == []
    assert {c["layer"] for c in checks} == {
        "dw", "project", "secrets", "drivers", "disk", "warehouse", "clock", "lake", "runs", "schedule",
        "sources",
    }  # fmt: skip
    assert about(checks, "files valid")["detail"] == "shop: 1 source, 2 pipelines, files valid"
    assert about(checks, "can read")["detail"].startswith("shop: can read 2 tables")


def test_it_changes_nothing_without_fix(dw, well, warehouse):
    def everything() -> list[object]:
        files = [
            (str(path), path.stat().st_mode, path.stat().st_mtime_ns)
            for path in sorted(well.rglob("*"))
            if path.is_file()
        ]
        return [files, warehouse.execute("select * from etl_audit_log order by id").fetchall()]

    before = everything()
    dw("doctor", cwd=well)
    assert everything() == before


def test_piped_it_is_tab_separated_and_people_get_a_sum(dw, well):
    done = dw("doctor", "--no-sources", cwd=well)
    lines = done.stdout.splitlines()
    assert lines[0] == "LAYER\tSTATE\tDETAIL\tFIX\tMENDED"
    assert all(line.count("\t") == 4 for line in lines)
    assert re.search(r"^\d+ ok", done.stderr)
    assert "sources\tok\tcomplete, not connected to: shop" in done.stdout


# -- files and secrets -----------------------------------------------------------------------------------


def test_permissions_and_gitignore_are_found_and_mended(dw, well):
    (well / ".env").chmod(0o644)
    (well / ".dw").chmod(0o755)
    (well / ".gitignore").write_text("*.pyc\n", "utf-8")
    subprocess.run(["git", "init", "-q", "."], cwd=well, check=True)
    code, checks = found(dw, well, "--no-sources")
    assert code == 1
    assert (about(checks, ".env may be read")["state"], about(checks, ".env may be read")["fix"]) == (
        "fail",
        "chmod 600 .env",
    )
    assert about(checks, ".dw is open")["state"] == "fail"
    assert about(checks, "does not pass over .env and .dw/")["state"] == "fail"

    code, checks = found(dw, well, "--no-sources", "--fix")
    assert code == 0
    assert about(checks, ".env may be read")["mended"] == "chmod 600 .env"
    assert stat.S_IMODE((well / ".env").stat().st_mode) == 0o600
    assert not stat.S_IMODE((well / ".dw").stat().st_mode) & 0o067
    assert (well / ".gitignore").read_text("utf-8") == "*.pyc\n.env\n.dw/\n"
    assert found(dw, well, "--no-sources")[0] == 0


def test_secrets_that_git_has_are_a_failure_that_a_person_must_mend(dw, well):
    subprocess.run(["git", "init", "-q", "."], cwd=well, check=True)
    subprocess.run(["git", "add", "-f", ".env"], cwd=well, check=True)
    code, checks = found(dw, well, "--no-sources", "--fix")
    assert code == 1
    assert about(checks, "in git")["fix"].startswith("git rm -r --cached .env")


def test_secrets_in_plain_text_are_named_and_not_repeated(dw, well):
    (well / "sources" / "pg.yaml").write_text(
        "protocol: postgres\nhost: h\ndatabase: d\nusername: u\npassword: hunter2hunter\n", "utf-8"
    )
    done = dw("doctor", "--json", "--no-sources", cwd=well)
    check = about(json.loads(done.stdout)["checks"], "plain text")
    assert check["state"] == "fail"
    assert check["detail"] == "sources/pg.yaml holds a secret in plain text: password"
    assert check["fix"] == "write password: ${env:PG_PASSWORD} there, and PG_PASSWORD=… in .env"
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("protocol", "values", "keys"),
    [
        ("postgres", {"password": "x"}, ["password"]),
        ("postgres", {"password": 1234}, ["password"]),
        ("postgres", {"password": "${env:P}"}, []),
        ("postgres", {"password": ""}, []),
        ("http", {"headers": {"Authorization": "Bearer x", "Accept": "y"}}, ["headers.Authorization"]),
        ("http", {"headers": {"Authorization": "Bearer ${env:T}"}}, []),
        ("http", {"base_url": "https://u:pw@host/"}, ["base_url"]),
        ("http", {"base_url": "https://u:${env:P}@host/"}, []),
        ("http", {"base_url": "https://${env:LOGIN}@host/"}, []),
        ("mongodb", {"uri": "mongodb://host/db"}, []),
        ("mongodb", {"uri": "mongodb://u:p@host/db"}, ["uri"]),
        ("nosuch", {"password": "x"}, []),
    ],
)
def test_what_counts_as_a_secret(protocol, values, keys):
    from dwcli.project import Source

    assert checks_here.secret_keys(Source("s", protocol, Path("s.yaml"), values)) == keys


# -- configuration ---------------------------------------------------------------------------------------


def test_every_invalid_file_is_told_and_the_others_are_checked(dw, well):
    (well / "sources" / "one.yaml").write_text("database_path: x\n", "utf-8")
    (well / "sources" / "two.yaml").write_text("protocol: sqlite\npipelines: {a: {cursr: x}}\n", "utf-8")
    code, checks = found(dw, well)
    assert code == 1
    assert about(checks, "one.yaml:1:1: 'protocol' is missing")["state"] == "fail"
    assert about(checks, "Did you mean 'cursor'?")["detail"].startswith("sources/two.yaml:2:")
    assert about(checks, "shop: can read")["state"] == "ok"


def test_a_dw_yaml_that_is_wrong_is_told_with_its_place(dw, well):
    (well / "dw.yaml").write_text("name: shop\nwarehose: embedded\n", "utf-8")
    code, checks = found(dw, well)
    assert code == 1
    assert about(checks, "dw.yaml:2:1")["state"] == "fail"


def test_a_secret_without_a_value_and_an_unknown_protocol(dw, well):
    (well / "sources" / "a.yaml").write_text(
        "protocol: postgres\nhost: h\ndatabase: d\nusername: u\npassword: ${env:NOWHERE}\n", "utf-8"
    )
    (well / "sources" / "b.yaml").write_text("protocol: postgress\n", "utf-8")
    code, checks = found(dw, well, "--no-sources")
    assert code == 1
    assert "NOWHERE=…" in about(checks, "a: ${env:NOWHERE} is not set")["fix"]
    assert about(checks, "there is no connector 'postgress'")["state"] == "fail"


def test_a_driver_that_is_missing_comes_with_its_pip_command(well, monkeypatch):
    from dwcli import connectors
    from dwcli.project import load_project

    (well / "sources" / "m.yaml").write_text("protocol: mariadb\n", "utf-8")
    monkeypatch.setattr(connectors, "missing_packages", lambda p: ["pymysql"] if p == "mysql" else [])
    (finding,) = checks_here.drivers(load_project(well))
    assert (finding.state, finding.fix) == ("fail", "pip install 'dwcli[mysql]'")


# -- without this or that --------------------------------------------------------------------------------


def test_without_a_project_it_says_what_can_be_checked(dw, tmp_path):
    code, checks = found(dw, tmp_path)
    assert code == 0
    assert about(checks, "there is no dw project")["state"] == "warn"
    assert about(checks, "PostgreSQL")["state"] == "ok"


def test_without_a_project_the_warehouse_of_the_environment_is_checked(dw, tmp_path, warehouse_url):
    code, checks = found(dw, tmp_path, DW_URL=warehouse_url)
    assert code == 0
    assert about(checks, "answers in")["state"] == "ok"


def test_a_project_that_was_asked_for_and_is_not_there_fails(dw, tmp_path):
    assert found(dw, tmp_path, "-C", str(tmp_path))[0] == 1
    assert found(dw, tmp_path, DW_PROJECT=str(tmp_path))[0] == 1


def test_a_warehouse_that_is_away_is_one_failure_and_the_rest_is_checked(dw, well):
    (well / "dw.yaml").write_text("name: shop\nwarehouse: postgresql://u@127.0.0.1:1/x\n", "utf-8")
    code, checks = found(dw, well)
    assert code == 1
    assert [c["layer"] for c in checks if c["state"] == "fail"] == ["warehouse"]
    assert about(checks, "does not answer")["fix"]
    assert about(checks, "no pipeline is late")["state"] == "ok"  # by the local record
    assert about(checks, "shop: can read")["state"] == "ok"


def test_servers_that_never_answer_cost_a_few_seconds_together(dw, well):
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        (well / "dw.yaml").write_text(f"name: shop\nwarehouse: postgresql://u@127.0.0.1:{port}/x\n", "utf-8")
        for name in ("a", "b", "c"):
            (well / "sources" / f"{name}.yaml").write_text(
                f"protocol: postgres\nhost: 127.0.0.1\nport: {port}\ndatabase: d\nusername: u\n"
                "password: ${env:WAREHOUSE_PASSWORD}\n",
                "utf-8",
            )
        begun = time.monotonic()
        code, checks = found(dw, well)
        assert time.monotonic() - begun < 25
    assert code == 1
    slow = [check["detail"] for check in checks if check["detail"].startswith(("a: no", "b: no", "c: no"))]
    assert len(slow) == 3
    assert about(checks, "no answer within 5 s from")["layer"] == "warehouse"
    assert about(checks, "shop: can read")["state"] == "ok"


def test_ctrl_c_ends_the_waiting_at_once(terminal, well):
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        (well / "sources" / "a.yaml").write_text(
            f"protocol: postgres\nhost: 127.0.0.1\nport: {silent.getsockname()[1]}\ndatabase: d\n"
            "username: u\npassword: ${env:WAREHOUSE_PASSWORD}\n",
            "utf-8",
        )
        child = terminal("doctor", "--no-color")
        child.expect("no pipeline is late")
        time.sleep(1)  # it waits for the source now
        begun = time.monotonic()
        child.sendintr()
        child.expect(pexpect.EOF)
        child.wait()
    assert child.exitstatus == 130
    assert time.monotonic() - begun < 4
    assert "Traceback" not in child.before


def test_an_own_warehouse_that_is_down_is_a_warning_and_nothing_is_started(dw, project):
    code, checks = found(dw, project)
    assert code == 0
    assert about(checks, "it does not run")["fix"] == "dw up"
    assert not (project / ".dw" / "postgres").exists()


def test_fix_starts_an_own_warehouse(dw):
    from tests.conftest import project_folder

    with project_folder() as root:
        (root / "dw.yaml").write_text("name: shop\nwarehouse: embedded\n", "utf-8")
        code, checks = found(dw, root, "--fix")
        assert code == 0
        assert about(checks, "it does not run")["mended"].startswith("PostgreSQL")
        assert about(checks, "answers in")["state"] == "ok"
        assert about(checks, "settings fit loading")["state"] == "ok"


# -- the warehouse ---------------------------------------------------------------------------------------


def test_settings_that_endanger_or_slow_are_warnings(warehouse):
    class Answers:
        def execute(self, query):
            return self

        def fetchone(self):
            return (False, True, 128 * checks_there.MB, 1024 * checks_there.MB)

    told = [(f.state, f.detail.split(" ")[0]) for f in checks_there.settings(Answers(), own=False)]
    assert told == [("warn", "fsync"), ("warn", "shared_buffers"), ("warn", "max_wal_size")]
    assert [f.detail.split(" ")[0] for f in checks_there.settings(Answers(), own=True)] == ["fsync"]
    assert next(iter(checks_there.settings(warehouse, own=True))).state == "ok"


@pytest.mark.parametrize(
    ("ahead", "state", "said"),
    [(0.2, "ok", "agrees"), (-7200, "warn", "2 h 0 min behind"), (90, "warn", "1 min 30 s ahead of")],
)
def test_clocks_that_differ_are_a_warning(ahead, state, said):
    finding = checks_there.clock(ahead)
    assert finding.state == state
    assert said in finding.detail


def test_a_user_who_may_not_create_tables_is_a_failure(dw, well, warehouse, warehouse_url):
    warehouse.execute("create schema closed; create role reader login password 'reader-password'")
    try:
        parts = urlsplit(warehouse_url)
        url = warehouse_url.replace(f"{parts.username}:{parts.password}@", "reader:${env:READER}@")
        (well / "dw.yaml").write_text(f"name: shop\nwarehouse: {url}\nschema: closed\n", "utf-8")
        code, checks = found(dw, well, "--no-sources", READER="reader-password")
    finally:
        warehouse.execute("drop role reader")
    assert code == 1
    assert "GRANT CREATE" in about(checks, "'reader' cannot create tables")["fix"]


def test_a_warehouse_of_a_newer_dw_is_a_failure(dw, well, warehouse):
    warehouse.execute("update etl_warehouse set version = 99")
    code, checks = found(dw, well, "--no-sources")
    assert code == 1
    assert about(checks, "belongs to a newer dw")["fix"] == "pip install --upgrade dwcli"


def test_a_run_of_a_newer_dw_is_a_warning(dw, well, warehouse):
    insert_run(warehouse, "shop.orders", "success", -1, dw_version="99.1")
    code, checks = found(dw, well, "--no-sources")
    assert code == 0
    assert about(checks, "was made by dw 99.1")["state"] == "warn"


def test_versions_are_compared_by_their_numbers():
    assert checks_there.numbers("0.10.2.dev3+g1") > checks_there.numbers("0.9")
    assert checks_there.numbers("unknown") == ()


# -- runs and the lake -----------------------------------------------------------------------------------


def test_a_dead_run_is_found_and_marked(dw, well, warehouse):
    insert_run(warehouse, "shop.orders", "running", 1, pid=4242, host="here")
    code, checks = found(dw, well, "--no-sources")
    assert code == 0
    assert about(checks, "is dead")["state"] == "warn"
    code, checks = found(dw, well, "--no-sources", "--fix")
    assert about(checks, "is dead")["mended"] == "1 run of shop.orders marked as interrupted"
    states = warehouse.execute("select status, error_code from etl_audit_log where pid = 4242").fetchall()
    assert states == [("failure", "DW-INTERRUPTED")]


def test_a_run_under_way_is_left_alone(dw, well, warehouse, warehouse_url):
    from dwcli.warehouse import connect

    insert_run(warehouse, "shop.orders", "running", 1)
    with closing(connect(warehouse_url, autocommit=True)) as holder:
        take_lock(holder, "shop.orders", "test")
        _, checks = found(dw, well, "--no-sources", "--fix")
    assert about(checks, "under way")["detail"] == "under way: shop.orders"
    assert warehouse.execute("select count(*) from etl_audit_log where status = 'running'").fetchone() == (1,)


def test_pipelines_that_are_late_are_told(dw, well, warehouse):
    rewrite(
        warehouse,
        "update etl_audit_log set started_at = now() - interval '9 hours',"
        " finished_at = now() - interval '9 hours'",
    )
    code, checks = found(dw, well, "--no-sources")
    assert code == 0
    late = about(checks, "late:")
    assert late["fix"] == "dw run --due"
    assert late["detail"] == "late: shop.orders (9 h ago, every 1h)"


def test_snapshots_that_wait_or_are_damaged_are_told(dw, well, warehouse):
    warehouse.execute("delete from etl_load where pipeline_name = 'shop.orders'")
    manifest = next((well / "lake").glob("*/shop.customers/*/*.manifest.json"))
    manifest.rename(manifest.with_name(manifest.name + ".refused"))
    code, checks = found(dw, well, "--no-sources")
    assert code == 0
    assert about(checks, "not yet loaded")["fix"] == "dw run shop.orders"
    assert about(checks, "1 damaged snapshot")["fix"] == "dw clean"


def test_room_on_the_disk(tmp_path, monkeypatch):
    def states() -> list[str]:
        usage = type("usage", (), {})
        told = []
        for free in (checks_here.NONE - 1, checks_here.LITTLE - 1, checks_here.LITTLE):
            usage.free = free
            monkeypatch.setattr(checks_here.shutil, "disk_usage", lambda folder: usage)
            told.append(checks_here.space("lake", tmp_path).state)
        return told

    assert states() == ["fail", "warn", "ok"]


# -- the screen ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_it_fits_the_screen(terminal, well, columns):
    (well / ".env").chmod(0o644)
    child = terminal("doctor", "--no-color", width=columns)
    child.expect(pexpect.EOF)
    child.wait()
    lines = [ESCAPES.sub("", line).rstrip() for line in child.before.replace("\r", "").splitlines()]
    assert child.exitstatus == 1
    assert any(line.startswith("FAIL") and ".env may be read" in line for line in lines)
    assert any(line.strip() == "fix: chmod 600 .env" for line in lines)
    assert lines[-1] == "Next: dw doctor --fix"
    assert max(width(line) for line in lines) <= columns


def test_quiet_shows_what_is_not_well(terminal, well):
    (well / ".env").chmod(0o644)
    child = terminal("doctor", "-q", "--no-color", "--no-sources")
    child.expect(pexpect.EOF)
    child.wait()
    lines = [ESCAPES.sub("", line).rstrip() for line in child.before.replace("\r", "").splitlines()]
    assert any(".env may be read" in line for line in lines)
    assert not any(line.startswith("ok") for line in lines)
