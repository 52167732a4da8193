"""`dw schedule`: what it writes, what it leaves alone, and what it shows.

`systemctl` and `crontab` are scripts that note how they were called; the crontab is a file of the test's.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pexpect
import pytest

from dwcli.render.words import width
from tests.cli.test_look_commands import on_screen, rows_of

SYSTEMCTL = """\
#!/bin/sh
echo "$@" >> "$STUB_DIR/systemctl.calls"
test -e "$STUB_DIR/no-bus" && { echo "Failed to connect to bus: No medium found" >&2; exit 1; }
test -e "$STUB_DIR/refuse-$2" && { echo "Unit is masked." >&2; exit 1; }
exit 0
"""
CRONTAB = """\
#!/bin/sh
echo "$@" >> "$STUB_DIR/crontab.calls"
case "$1" in
-l) test -e "$STUB_DIR/locked" && { echo "you are not allowed to use this program" >&2; exit 1; }
    test -e "$STUB_DIR/crontab" || { echo "no crontab for me" >&2; exit 1; }
    cat "$STUB_DIR/crontab" ;;
-) cat > "$STUB_DIR/crontab" ;;
*) exit 2 ;;
esac
"""


@pytest.fixture
def stubs(tmp_path, environment):
    """A folder first on PATH with both programs; `bin` is all of PATH, so nothing real can be met."""
    folder = tmp_path / "stubs"
    (folder / "bin").mkdir(parents=True)
    for name, text in (("systemctl", SYSTEMCTL), ("crontab", CRONTAB)):
        (folder / "bin" / name).write_text(text, "utf-8")
        (folder / "bin" / name).chmod(0o755)
    for name in ("sh", "cat", "echo", "test"):
        (folder / "bin" / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    for name in ("XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"):
        environment.pop(name, None)
    environment |= {"PATH": str(folder / "bin"), "STUB_DIR": str(folder)}
    (folder / "home").write_text(environment["HOME"], "utf-8")
    return folder


def units(stubs):
    folder = Path((stubs / "home").read_text("utf-8")) / ".config" / "systemd" / "user"
    return sorted(folder.glob("*")) if folder.is_dir() else []


def calls(stubs, program):
    path = stubs / f"{program}.calls"
    return path.read_text("utf-8").splitlines() if path.exists() else []


def test_on_writes_one_timer_and_starts_it(dw, shop, stubs):
    done = dw("schedule", "on", "--yes", cwd=shop)
    assert done.returncode == 0, done.stderr
    service, timer = units(stubs)
    assert (service.suffix, timer.suffix, service.stem) == (".service", ".timer", timer.stem)
    assert service.stem.startswith("dw-shop-")
    text = service.read_text("utf-8")
    assert f"WorkingDirectory={shop}\n" in text
    assert f"StandardError=append:{shop}/.dw/logs/schedule.log\n" in text
    assert (shop / ".dw" / "logs").is_dir()
    command = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    words = shlex.split(command.removeprefix("ExecStart="))
    assert Path(words[0]).is_absolute() and Path(words[0]).exists()
    assert words[-4:] == ["run", "--due", "--quiet", "--no-input"]
    assert "OnCalendar=*:0/3\n" in timer.read_text("utf-8")
    assert "Persistent=true\n" in timer.read_text("utf-8")
    assert f"--user restart {timer.name}" in calls(stubs, "systemctl")
    assert calls(stubs, "crontab") == ["-l"]
    assert "is on already" in dw("schedule", "on", cwd=shop).stderr


def test_what_the_service_calls_works(dw, shop, stubs, environment):
    dw("schedule", "on", "--yes", cwd=shop)
    text = units(stubs)[0].read_text("utf-8")
    command = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    done = subprocess.run(
        shlex.split(command.removeprefix("ExecStart=")),
        cwd=shop,
        env={"HOME": environment["HOME"], "PYTHONPATH": environment["PYTHONPATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert {run["pipeline_name"] for run in json.loads(done.stdout)["runs"]} == {
        "shop.orders",
        "broken.missing",
    }
    assert "dw run --due" in done.stderr.splitlines()[0]  # with the time, since it goes to a log
    assert "FAIL" in done.stderr


def test_off_removes_what_on_wrote(dw, shop, stubs):
    dw("schedule", "on", "--yes", cwd=shop)
    (shop / "dw.yaml").write_text((shop / "dw.yaml").read_text("utf-8").replace("name: shop", "name: store"))
    other = units(stubs)[0].with_name("dw-shop-00000000.timer")
    other.write_text("theirs", "utf-8")
    assert dw("schedule", "off", cwd=shop).returncode == 2  # nobody to ask
    done = dw("schedule", "off", "--yes", cwd=shop)
    assert done.returncode == 0, done.stderr
    assert units(stubs) == [other]
    assert any(call.startswith("--user disable --now dw-shop-") for call in calls(stubs, "systemctl"))
    assert "It is off" in dw("schedule", "off", cwd=shop).stderr


def test_without_a_bus_it_is_one_line_of_the_crontab(dw, shop, stubs):
    (stubs / "no-bus").touch()
    theirs = "# mine\nMAILTO=me\n0 1 * * * backup 50\\% # dw schedule: dw-shop-00000000\n\n"
    (stubs / "crontab").write_text(theirs, "utf-8")
    done = dw("schedule", "on", "--yes", cwd=shop)
    assert done.returncode == 0, done.stderr
    assert units(stubs) == []
    written = (stubs / "crontab").read_text("utf-8")
    assert written.startswith(theirs) and written.count("\n") == theirs.count("\n") + 1
    line = written.splitlines()[-1]
    assert line.startswith(f"*/3 * * * * cd {shop} && ")
    assert dw("schedule", "on", "--yes", cwd=shop).stderr.startswith("ok  it is on already")

    shown = json.loads(dw("schedule", "show", "--json", cwd=shop).stdout)["installed"]
    assert (shown["by"], shown["minutes"], shown["current"]) == ("crontab", 3, True)
    assert dw("schedule", "off", "--yes", cwd=shop).returncode == 0
    assert (stubs / "crontab").read_text("utf-8") == theirs


def test_the_crontab_line_works_in_a_folder_with_an_odd_name(dw, shop, stubs, environment):
    (stubs / "no-bus").touch()
    odd = shop.with_name("a b%'c")
    shop.rename(odd)
    for name in ("shop", "broken"):
        path = odd / "sources" / f"{name}.yaml"
        path.write_text(path.read_text("utf-8").replace(str(shop), "."), "utf-8")
    assert dw("schedule", "on", "--yes", cwd=odd).returncode == 0
    command = (stubs / "crontab").read_text("utf-8").split(" * * * * ")[1].replace("\\%", "%")
    subprocess.run(
        ["/bin/sh", "-c", command],
        env={"HOME": environment["HOME"], "PYTHONPATH": environment["PYTHONPATH"], "PATH": "/usr/bin:/bin"},
        timeout=60,
    )
    log = (odd / ".dw" / "logs" / "schedule.log").read_text("utf-8")
    assert "FAIL  broken.missing" in log and "shop.orders" not in log
    last = json.loads((odd / ".dw" / "last.json").read_text("utf-8"))
    assert last["shop.orders"]["status"] == "success"


def test_a_crontab_that_cannot_be_read_is_left_alone(dw, shop, stubs):
    (stubs / "no-bus").touch()
    (stubs / "locked").touch()
    done = dw("schedule", "on", "--yes", cwd=shop)
    assert done.returncode == 2
    assert "not allowed to use this program" in done.stderr
    assert set(calls(stubs, "crontab")) == {"-l"}


def test_with_neither_it_says_what_another_scheduler_would_call(dw, shop, stubs):
    for name in ("systemctl", "crontab"):
        (stubs / "bin" / name).unlink()
    done = dw("schedule", "on", "--yes", cwd=shop)
    assert done.returncode == 2
    assert "run --due" in done.stderr and "Traceback" not in done.stderr
    assert dw("schedule", "show", cwd=shop).returncode == 0
    assert dw("schedule", "off", cwd=shop).returncode == 0


def test_systemds_own_refusal_is_told(dw, shop, stubs):
    (stubs / "refuse-enable").touch()
    done = dw("schedule", "on", "--yes", cwd=shop)
    assert done.returncode == 2
    assert "Unit is masked." in done.stderr and "dw schedule off" in done.stderr


@pytest.mark.parametrize("bus", [True, False])
def test_a_dry_run_and_a_refused_question_write_nothing(dw, shop, stubs, bus):
    if not bus:
        (stubs / "no-bus").touch()
    done = dw("schedule", "on", "--dry-run", cwd=shop)
    assert done.returncode == 0
    assert ("OnCalendar" if bus else "*/3 * * * *") in done.stdout
    planned = json.loads(dw("schedule", "on", "--dry-run", "--json", cwd=shop).stdout)["files"]
    assert len(planned) == (2 if bus else 1)
    unasked = dw("schedule", "on", cwd=shop)
    assert unasked.returncode == 2
    assert "dw schedule on --yes" in unasked.stderr
    assert units(stubs) == [] and not (stubs / "crontab").exists()
    assert all(call.startswith(("--user show", "--user is")) for call in calls(stubs, "systemctl"))


def test_it_asks_a_person(stubs, terminal, shop):
    child = terminal("schedule", "on")
    child.expect("Write this")
    child.send("\r")  # No is the default
    child.expect("Nothing was written")
    child.expect(pexpect.EOF)
    assert units(stubs) == []


def test_without_a_time_there_is_nothing_to_schedule(dw, shop, stubs):
    for name in ("shop", "broken"):
        path = shop / "sources" / f"{name}.yaml"
        path.write_text(
            path.read_text("utf-8").replace(", every: 1h", "").replace(", every: 1d", ""), "utf-8"
        )
    done = dw("schedule", "on", "--yes", cwd=shop)
    assert done.returncode == 2
    assert "every: 1h" in done.stderr


def test_show_says_what_is_due_when(dw, shop, stubs):
    dw("run", "orders", cwd=shop)
    done = dw("schedule", cwd=shop)
    assert done.returncode == 0
    assert "No timer" in done.stderr and done.stderr.splitlines()[-1] == "Next: dw schedule on"
    found = {row["PIPELINE"]: row for row in rows_of(done.stdout)}
    assert found["shop.customers"]["EVERY"] == ""
    assert found["shop.orders"]["STATE"] == "ok"
    pipelines = {p["pipeline"]: p for p in json.loads(dw("schedule", "--json", cwd=shop).stdout)["pipelines"]}
    assert {name: p["is_due"] for name, p in pipelines.items()} == {
        "shop.orders": False,
        "shop.customers": False,
        "broken.missing": True,
    }
    assert pipelines["shop.customers"]["due"] is None


def test_show_tells_when_the_timer_has_become_too_slow(dw, shop, stubs):
    dw("schedule", "on", "--yes", cwd=shop)
    path = shop / "sources" / "shop.yaml"
    path.write_text(path.read_text("utf-8").replace("every: 1h", "every: 10m"), "utf-8")
    done = dw("schedule", "show", cwd=shop)
    assert "not what these pipelines need now (every minute" in done.stderr
    assert dw("schedule", "on", "--yes", cwd=shop).returncode == 0
    assert "OnCalendar=*:*\n" in units(stubs)[1].read_text("utf-8")


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_show_fits_the_screen(stubs, terminal, shop, columns):
    lines = on_screen(terminal("schedule", "show", "--no-color", width=columns))
    assert any(line.startswith("shop.orders") for line in lines)
    assert max(width(line) for line in lines) <= columns


def test_a_large_log_is_begun_anew(dw, shop, stubs):
    log = shop / ".dw" / "logs" / "schedule.log"
    log.parent.mkdir(parents=True)
    log.write_text("x" * (1024 * 1024 + 1), "utf-8")
    dw("run", "--due", "shop", cwd=shop)
    assert not log.exists() and log.with_name("schedule.1.log").exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_finds_nothing_wrong_with_the_units(dw, shop, stubs, tmp_path):
    odd = shop.with_name("a b%c")
    shop.rename(odd)
    dw("schedule", "on", "--yes", cwd=odd)
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", *map(str, units(stubs))],
        capture_output=True,
        text=True,
        timeout=60,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert [line for line in done.stderr.splitlines() if "dw-shop-" in line] == []


def test_doctor_says_whether_a_timer_runs_what_has_a_time(dw, shop, stubs):
    def said():
        checks = json.loads(dw("doctor", "--no-sources", "--json", cwd=shop).stdout)["checks"]
        return [(c["state"], c["fix"]) for c in checks if c["layer"] == "schedule"]

    assert said() == [("warn", "dw schedule on")]
    dw("schedule", "on", "--yes", cwd=shop)
    assert said() == [("ok", "")]
    for path in (shop / "sources").glob("*.yaml"):
        path.write_text(re.sub(r", every: \w+", "", path.read_text("utf-8")), "utf-8")
    assert said() == [("warn", "dw schedule off")]
