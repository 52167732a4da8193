"""The log that each run of a project leaves, and what is never in it."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from dwcli.connectors import secrets_of
from dwcli.contract import IngestedItem
from dwcli.events import Notice
from dwcli.pipeline import runlog
from tests.pipeline.runs import Source, batches, run

ENTRY = {"time", "level", "logger", "event", "run_id", "pipeline"}


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "shop" / ".dw" / "logs"


def lines(logs):
    (path,) = logs.glob("*.log")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_run_writes_its_events_and_what_the_library_says(warehouse_url, lake, logs):
    outcome = run(warehouse_url, lake, batches([{"id": 1}], [{"id": 2}]), logs=logs)
    (path,) = logs.glob("*.log")
    found = lines(logs)
    assert path.name == f"{outcome.result['run_id']}.log"
    assert all(entry.keys() >= ENTRY and entry["run_id"] == outcome.result["run_id"] for entry in found)
    assert [entry["rows"] for entry in found if entry["event"] == "BatchLoaded"] == [1, 1]
    assert any(
        entry["logger"] == "dwcli.staging.writer" and "staged 1 rows" in entry["message"] for entry in found
    )
    assert found[-1]["event"] == "RunFinished"
    assert {key: found[-1][key] for key in ("status", "rows_loaded", "seconds")} == {
        key: outcome.result[key] for key in ("status", "rows_loaded", "seconds")
    }


def test_only_its_owner_may_read_it(warehouse_url, lake, logs):
    before = os.umask(0)
    try:
        run(warehouse_url, lake, batches([{"id": 1}]), logs=logs)
    finally:
        os.umask(before)
    (path,) = logs.glob("*.log")
    assert [p.stat().st_mode & 0o777 for p in (path, logs, logs.parent)] == [0o600, 0o700, 0o700]


class Config(BaseModel):
    token: SecretStr = SecretStr('tok"en\\ü-4711')
    uri: SecretStr = SecretStr("proto://reader:in%20url@host/db")
    headers: dict[str, SecretStr] = {"X-Key": SecretStr("header-secret")}
    nested: list[dict[str, SecretStr]] = [{"k": SecretStr("deep-secret")}]


SECRETS = ['tok"en\\ü-4711', "in%20url", "in url", "header-secret", "deep-secret", "warehouse-word"]


def test_no_secret_is_in_a_log_whoever_says_it(warehouse_url, lake, logs):
    def talkative(cursor) -> Any:
        driver = logging.getLogger("some.driver")
        for secret in SECRETS:
            driver.warning("logging in with %s", secret, extra={"x": secret})
        driver.warning("all: %r", SECRETS)
        try:
            raise ValueError(f"refused {SECRETS[0]} and {SECRETS[-1]}\nDETAIL: row {4000 + 111}")
        except ValueError:
            driver.exception("no luck")
        yield IngestedItem(payload=[{"id": 1}])
        raise RuntimeError(" ".join(SECRETS))

    source = Source(talkative)

    def connector():
        made = source.made()
        made.config = Config()
        return made

    source.made, source.connector = source.connector, connector
    outcome = run(warehouse_url, lake, source, logs=logs, hidden=("warehouse-word",))
    (path,) = logs.glob("*.log")
    text = path.read_text("utf-8")
    assert outcome.result["status"] == "failure"
    assert text.count("logging in with ***") == len(SECRETS)
    assert "ValueError: refused ***" in text and "row 4111" not in text
    decoded = text + json.dumps([json.loads(line) for line in text.splitlines()], ensure_ascii=False)
    for secret in SECRETS:
        assert secret not in decoded and json.dumps(secret)[1:-1] not in decoded
        assert secret not in json.dumps(outcome.result, ensure_ascii=False)


def test_every_secret_of_a_config_is_known_by_value():
    assert set(secrets_of(Config())) >= set(SECRETS) - {"warehouse-word"}


def test_runs_at_the_same_time_keep_to_their_own_logs(warehouse_url, tmp_path):
    both = threading.Barrier(2)

    def source(name):
        def answer(cursor) -> Any:
            both.wait(30)
            logging.getLogger("some.driver").warning("this is %s", name)
            both.wait(30)
            yield IngestedItem(payload=[{"id": 1}])

        return Source(answer)

    threads = [
        threading.Thread(
            target=run,
            args=(warehouse_url, tmp_path / "lake", source(name)),
            kwargs={"logs": tmp_path / name, "pipeline": name, "lake_name": name, "table": name},
        )
        for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("one", "two"):
        said = [entry["message"] for entry in lines(tmp_path / name) if entry["logger"] == "some.driver"]
        assert said == [f"this is {name}"]
    assert not any(isinstance(h, runlog._Handler) for h in logging.getLogger().handlers)
    assert logging.getLogger("dwcli").level == logging.NOTSET


def test_old_logs_go_and_others_files_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(runlog, "KEPT_LOGS", 3)
    now = time.time()
    for name, age in (("a", 1), ("b", 2), ("c", 3), ("d", 4), ("ancient", 40 * 86400)):
        path = tmp_path / f"{name}.log"
        path.touch()
        os.utime(path, (now - age, now - age))
    (tmp_path / "notes.txt").touch()
    runlog.remove_old(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "b.log", "notes.txt"]


def test_a_log_that_cannot_be_written_is_told_and_the_run_goes_on(warehouse_url, lake, tmp_path):
    (tmp_path / "file").touch()
    outcome = run(warehouse_url, lake, batches([{"id": 1}]), logs=tmp_path / "file" / "logs")
    assert outcome.result["status"] == "success"
    (notice,) = [event for event in outcome.events if isinstance(event, Notice)]
    assert "this run has no log" in notice.text


def test_a_full_disk_does_not_end_the_run(warehouse_url, lake, logs, monkeypatch):
    def full(text):
        raise OSError(28, "No space left on device")

    opened = runlog._open

    def with_full_disk(started):
        log = opened(started)
        log.file.close()
        log.file = SimpleNamespace(write=full, flush=lambda: None, close=lambda: None)
        return log

    monkeypatch.setattr(runlog, "_open", with_full_disk)
    assert run(warehouse_url, lake, batches([{"id": 1}]), logs=logs).result["status"] == "success"
