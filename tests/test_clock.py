"""When pipelines are due and late, by duration and by cron, with the machine's clock and its summer time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dwcli import clock
from dwcli.clock import Past, checked_every, is_due, late_from, next_due, next_run, past_of, tick_minutes
from dwcli.errors import ConfigError
from dwcli.project import load_project


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    clock.machine_zone.cache_clear()
    yield
    clock.machine_zone.cache_clear()


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("every", "after", "expected"),
    [
        ("1h", "2026-01-01 10:00", "2026-01-01 11:00"),
        ("0 6 * * 1-5", "2026-01-02 06:00", "2026-01-05 05:00"),  # Friday, then Monday; 6 in Berlin is 5 UTC
        ("0 6 * * *", "2026-07-01 00:00", "2026-07-01 04:00"),
        ("30 2 * * *", "2026-03-28 12:00", "2026-03-29 01:00"),  # 02:30 is skipped that night: 03:00
        ("30 2 * * *", "2026-10-24 12:00", "2026-10-25 00:30"),  # 02:30 comes twice: the first
        ("30 2 * * *", "2026-10-25 00:30", "2026-10-26 01:30"),  # … and no second time
        ("*/15 * * * *", "2026-01-01 10:00:01", "2026-01-01 10:15"),
    ],
)
def test_the_next_time(every, after, expected):
    assert next_due(every, at(after)) == at(expected)


def test_due_and_late():
    last = at("2026-01-01 10:00")
    minutes = [59, 60, 66, 67]
    moments = [last + timedelta(minutes=m) for m in minutes]
    assert [is_due("1h", Past(last), now) for now in moments] == [False, True, True, True]
    assert [late_from("1h", last) < now for now in moments] == [False, False, False, True]
    assert is_due("1h", Past(), last)
    assert not is_due("0 6 * * *", Past(last), at("2026-01-02 04:59:59"))
    assert is_due("0 6 * * *", Past(last), at("2026-01-02 05:00"))
    assert late_from("0 6 * * *", last) == at("2026-01-02 06:00")
    assert is_due("1h", Past(last), last + timedelta(minutes=59, seconds=40))  # a timer is never exact


@pytest.mark.parametrize(
    ("every", "waits"),
    [
        ("1d", [15, 30, 60, 60]),
        ("1h", [3, 6, 12, 24, 48, 60, 60]),
        ("10m", [1, 2, 4, 8, 10, 10]),  # never longer than its own time
        ("1m", [1, 1, 1]),
        ("0 6 * * *", [15, 30, 60, 60]),
        ("59 23 * * *", [1, 2, 4, 8, 16, 32, 60, 60]),
        ("*/5 * * * *", [4, 4]),  # what is due again by the clock does not wait
    ],
)
def test_what_fails_is_tried_again_after_growing_waits(every, waits):
    failed = at("2026-01-02 10:01")
    for began in (None, at("2025-12-24 10:00")):
        for failures, minutes in enumerate(waits, 1):
            past = Past(began, failures, failed)
            again = failed + timedelta(minutes=minutes)
            assert next_run(every, past) == again
            assert is_due(every, past, again)
            assert not is_due(every, past, again - timedelta(seconds=31))


def test_a_failure_before_its_time_does_not_make_a_pipeline_due_earlier():
    past = Past(at("2026-01-01 10:00"), 1, at("2026-01-01 10:10"))
    assert next_run("1h", past) == at("2026-01-01 11:00")
    assert not is_due("1h", past, at("2026-01-01 10:50"))


def test_the_past_is_what_has_come_since_the_last_good_run():
    def run(status: str, minute: int, code: str | None = None) -> dict[str, object]:
        began = at(f"2026-01-01 10:{minute:02}")
        ended = began + timedelta(seconds=30)
        return {"status": status, "started_at": began, "finished_at": ended, "error_code": code}

    stopped = run("failure", 8, "DW-STOPPED")
    runs = [stopped, run("failure", 6), run("failure", 4), run("success", 2), run("failure", 1)]
    assert past_of(runs) == Past(at("2026-01-01 10:02"), 2, at("2026-01-01 10:06:30"))
    assert past_of([run("running", 9), *runs]) == past_of(runs)
    assert past_of([stopped]) == past_of([]) == Past()


@pytest.mark.parametrize(
    ("everies", "minutes"),
    [
        (["1d"], 15),
        (["1h"], 3),
        (["10s"], 1),
        (["0 6 * * *"], 15),
        (["0 6 * * *", "5 7 * * *"], 5),
        (["7 6 * * *"], 1),
        (["* * * * *"], 1),
        ([], 15),
    ],
)
def test_the_timer_is_as_fine_as_it_must_be(everies, minutes):
    assert tick_minutes(everies) == minutes


@pytest.mark.parametrize("every", ["1h", "90s", "0 6 * * 1-5", "0 6 L * *", "0 0 29 2 *", " 1d "])
def test_what_is_taken(every):
    assert checked_every(every) == every.strip()


@pytest.mark.parametrize(
    ("every", "said"),
    [
        ("hourly", "neither a duration"),
        ("60", "neither a duration"),
        ("0s", "from 1s"),
        ("61 * * * *", "bad minute"),
        ("0 6 * *", "five fields"),
        ("0 0 6 * * *", "five fields"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("@daily", "neither a duration"),
        ("0 6 * * FOO", "bad day-of-week"),
    ],
)
def test_what_is_refused(every, said):
    with pytest.raises(ValueError, match=said):
        checked_every(every)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("0 6 * * 9", "shop.yaml:5:5: 'every': cron expression: bad day-of-week"),
        ("often", "shop.yaml:5:5: 'every': neither a duration"),
        ("* * * * *", "shop.yaml:5:1"),
        ("*/5 * * * *", "shop.yaml:5:12: aliases"),
    ],
)
def test_a_wrong_time_is_told_with_its_place(tmp_path, written, said):
    (tmp_path / "dw.yaml").write_text("name: shop\n", "utf-8")
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "shop.yaml").write_text(
        f"protocol: sqlite\ndatabase_path: x\npipelines:\n  orders:\n    every: {written}\n", "utf-8"
    )
    with pytest.raises(ConfigError) as raised:
        load_project(tmp_path)
    assert said in raised.value.message
    assert written[:1] != "*" or "in quotes" in raised.value.hint


def test_without_a_zone_the_systems_own_rules_hold(monkeypatch):
    monkeypatch.setenv("TZ", "No/Such_Zone")
    assert clock.machine_zone() is None
    found = next_due("0 6 * * *", at("2026-01-01 12:00")).astimezone()
    assert (found.hour, found.minute) == (6, 0)
