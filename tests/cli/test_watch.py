"""`dw watch`: every key, against a real warehouse with loaded runs, and in a real terminal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from contextlib import asynccontextmanager

import pexpect
import psycopg
import pytest
from textual.containers import VerticalScroll
from textual.widgets import Input, RichLog, Sparkline, Static

from dwcli.cli.watch import TAIL_BYTES, dashboard_of, log_tail, looker, progress
from dwcli.project import load_project
from dwcli.render.dashboard import Ask, Detail
from tests.audit_log import rewrite
from tests.cli.conftest import DW
from tests.cli.test_look_commands import insert_run


@pytest.fixture
def loaded(dw, shop, monkeypatch, environment):
    """The project after one run of all its pipelines, in an environment without the machine's settings."""
    for name in [name for name in os.environ if name.startswith("DW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", environment["HOME"])
    dw("run", "--all", cwd=shop)
    return shop


@asynccontextmanager
async def watching(root, size=(100, 30)):
    """A dashboard of the project that has looked once. Runs that it started are over at the end."""
    app = dashboard_of(load_project(root), every=0.1)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.found is not None)
        yield app, pilot
        await until(pilot, lambda: not app.started)


async def until(pilot, true, seconds=30):
    """Wait for something to become true on the screen."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        await pilot.pause(0.02)


def insert_newest(warehouse, pipeline, status, **more):
    """A run that began this moment."""
    insert_run(warehouse, pipeline, status, 0, **more)
    rewrite(
        warehouse, "update etl_audit_log set started_at = now() where run_id like %s", [f"{pipeline}-0-%"]
    )


def names(app, pane):
    """The first words of a pane's rows, as they are drawn."""
    table = app.pane(pane)
    return [table.get_row_at(number)[0].plain for number in range(table.row_count)]


def words(app, selector):
    return app.screen_stack[0].query_one(selector, Static).content.plain


def body(app):
    """What the detail on the screen says."""
    from rich.console import Console

    console = Console(width=90)
    with console.capture() as captured:
        console.print(app.screen.query_one("#body", Static).content)
    return captured.get()


def log_of(app):
    return "\n".join(line.text for line in app.screen_stack[0].query_one("#log", RichLog).lines)


def told(app):
    return [note.message for note in app._notifications]


# -- panes ---------------------------------------------------------------------------------------------


def test_the_panes_show_the_pipelines_the_last_runs_and_the_log_of_the_selected_one(loaded):
    async def scene():
        async with watching(loaded) as (app, pilot):
            assert words(app, "#header").startswith("shop  warehouse up ")
            assert set(names(app, "pipelines")) == {"broken.missing", "shop.orders", "shop.customers"}
            assert app.pane("audit").row_count == 3
            assert names(app, "running") == []
            await until(pilot, lambda: "the database has no table 'nowhere'" in log_of(app))
            await pilot.press("down")
            await until(pilot, lambda: "100 read" in log_of(app))
            assert app.selected_pipeline() == "shop.orders"
            assert words(app, "#trend-words") == "1 run, last 100, most 100"
            assert app.query_one(Sparkline).data == [100.0]

    asyncio.run(scene())


def test_tab_goes_through_the_panes_and_j_and_k_move(loaded):
    async def scene():
        async with watching(loaded) as (app, pilot):
            await pilot.press("j")
            assert app.selected_pipeline() == "shop.orders"
            await pilot.press("k")
            assert app.selected_pipeline() == "broken.missing"
            seen = []
            for _ in range(4):
                await pilot.press("tab")
                seen.append(app.focused.id)
            assert seen == ["running", "audit", "log", "pipelines"]
            await pilot.press("shift+tab", "shift+tab", "down")
            assert app.lead == "audit"
            assert app.selected_run() == app.found.runs[1]["run_id"]
            assert app.selected_pipeline() == app.found.runs[1]["pipeline_name"]

    asyncio.run(scene())


def test_a_run_that_goes_on_is_counted_by_its_log(loaded, warehouse):
    async def scene():
        async with watching(loaded, size=(160, 40)) as (app, pilot):
            insert_newest(warehouse, "shop.orders", "running")
            run_id = warehouse.execute(
                "select run_id from etl_audit_log where status = 'running'"
            ).fetchone()[0]
            await until(pilot, lambda: names(app, "running") == ["shop.orders"])
            row = [cell.plain for cell in app.pane("running").get_row_at(0)]
            assert row[3:] == ["-", "-", "-"]

            with (loaded / ".dw" / "logs" / f"{run_id}.log").open("a", encoding="utf-8") as log:
                for event, rows in (("BatchRead", 1000), ("BatchRead", 234), ("BatchLoaded", 1000)):
                    log.write(json.dumps({"event": event, "rows": rows}) + "\n")
                log.flush()
                await until(pilot, lambda: app.pane("running").get_row_at(0)[3].plain == "1,234")
                assert app.pane("running").get_row_at(0)[4].plain == "1,000"
                log.write(json.dumps({"event": "BatchRead", "rows": 6})[:-1])
                log.flush()
                await pilot.pause(0.3)
                assert app.pane("running").get_row_at(0)[3].plain == "1,234"
                log.write("}\n")
            await until(pilot, lambda: app.pane("running").get_row_at(0)[3].plain == "1,240")
            assert names(app, "pipelines")[1] == "shop.orders"
            assert app.pane("pipelines").get_row_at(1)[1].plain == "running"

            await pilot.press("down", "r")
            assert app.screen.question == "Run shop.orders now? It seems to be running already."
            await pilot.press("n")
            warehouse.execute("update etl_audit_log set status = 'success' where status = 'running'")
            await until(pilot, lambda: names(app, "running") == [])

    asyncio.run(scene())


def test_the_cursor_stays_on_its_run_when_newer_ones_come(loaded, warehouse):
    async def scene():
        async with watching(loaded) as (app, pilot):
            await pilot.press("tab", "tab", "down")
            chosen = app.selected_run()
            insert_newest(warehouse, "shop.orders", "success")
            await until(pilot, lambda: app.pane("audit").row_count == 4)
            assert app.selected_run() == chosen
            assert app.pane("audit").cursor_row == 2

    asyncio.run(scene())


# -- filter and commands -------------------------------------------------------------------------------


def test_the_filter_narrows_while_it_is_typed_and_escape_drops_it(loaded):
    async def scene():
        async with watching(loaded) as (app, pilot):
            await pilot.press("/", *"ord")
            assert names(app, "pipelines") == ["shop.orders"]
            assert app.pane("audit").row_count == 1
            assert str(app.pane("pipelines").border_title) == "Pipelines (1)  /ord"
            await pilot.press("enter")
            assert (app.focused.id, names(app, "pipelines")) == ("pipelines", ["shop.orders"])
            await pilot.press("escape")
            assert len(names(app, "pipelines")) == 3
            await pilot.press("/", *"FAILED")
            assert names(app, "pipelines") == ["broken.missing"]
            await pilot.press("escape")
            assert len(names(app, "pipelines")) == 3
            await pilot.press("/", "backspace")
            assert not app.query_one(Input).has_class("shown")
            await pilot.press("/", *"[red]q?r:")
            assert names(app, "pipelines") == []
            assert app.is_running and not isinstance(app.screen, Ask | Detail)

    asyncio.run(scene())


def test_commands_show_one_pane_filter_help_and_quit(loaded):
    async def scene():
        async with watching(loaded) as (app, pilot):
            await pilot.press(*":audit", "enter")
            assert app.screen.maximized is app.pane("audit")
            await pilot.press("escape")
            assert app.screen.maximized is None
            await pilot.press(*":log", "enter")
            assert app.screen.maximized.id == "log"
            await pilot.press("escape", *":filter", "space", *"cust", "enter")
            assert names(app, "pipelines") == ["shop.customers"]
            await pilot.press("escape", *":help", "enter")
            assert "filter every pane" in body(app)
            await pilot.press("escape", *":audti", "enter")
            assert told(app) == ["there is no command 'audti'. Did you mean 'audit'?"]
            await pilot.press(":", "enter", ":", "escape")
            assert not app.query_one(Input).has_class("shown")
            await pilot.press(*":q", "enter")
            await until(pilot, lambda: not app.is_running)
            assert app.return_code == 0

    asyncio.run(scene())


def test_the_line_proposes_the_pipelines(loaded):
    async def scene():
        async with watching(loaded) as (app, pilot):
            await pilot.press(*":run", "space", *"shop.c")
            await pilot.pause(0.2)
            await pilot.press("right", "enter")
            await until(pilot, lambda: isinstance(app.screen, Ask))
            assert app.screen.question == "Run shop.customers now?"
            await pilot.press("n")

    asyncio.run(scene())


@pytest.mark.parametrize(("key", "code"), [("q", 0), ("ctrl+c", 130)])
def test_it_ends(loaded, key, code):
    async def scene():
        async with watching(loaded) as (app, pilot):
            await pilot.press(key)
            await until(pilot, lambda: not app.is_running)
            assert app.return_code == code

    asyncio.run(scene())


# -- detail --------------------------------------------------------------------------------------------


def test_enter_shows_a_pipeline_and_escape_goes_back(loaded, warehouse):
    async def scene():
        async with watching(loaded) as (app, pilot):
            await pilot.press("down", "enter")
            told_there = body(app)
            for part in (
                "shop.orders",
                "merge",
                "updated_at",
                "public.orders",
                "every 1h",
                "100 in the last good",
            ):
                assert part in told_there
            insert_newest(warehouse, "shop.orders", "failure", error_message="[red]no\x1b[31m table")
            await until(pilot, lambda: "[red]no\\x1b[31m table" in body(app))
            assert "2 runs, 1 failed" in body(app)
            await pilot.press("j", "k", "escape")
            assert app.focused.id == "pipelines"

    asyncio.run(scene())


def test_enter_shows_a_run_with_its_log(loaded):
    async def scene():
        async with watching(loaded) as (app, pilot):
            await pilot.press(*"/orders", "enter", "tab", "tab", "enter")
            run = app.found.runs[[run["pipeline_name"] for run in app.found.runs].index("shop.orders")]
            assert run["run_id"] in body(app)
            assert "read 100  inserted 100" in body(app)
            assert "read 100 rows (" in body(app)
            assert app.screen.query_one(VerticalScroll).has_focus
            await pilot.press("q")
            await until(pilot, lambda: not app.is_running)

    asyncio.run(scene())


def test_help_names_every_key(loaded):
    async def scene():
        async with watching(loaded) as (app, pilot):
            await pilot.press("?")
            for key in ("tab", "enter", "escape", "/", ":run NAME", "q, ctrl+c"):
                assert key in body(app)
            await pilot.press("enter")
            assert not isinstance(app.screen, Detail)

    asyncio.run(scene())


# -- running -------------------------------------------------------------------------------------------


def test_r_asks_and_runs_the_selected_pipeline(loaded, warehouse, capfd):
    async def scene():
        async with watching(loaded) as (app, pilot):
            await pilot.press("down", "r")
            assert app.screen.question == "Run shop.orders now?"
            await pilot.press("enter")
            assert not isinstance(app.screen, Ask) and not app.started
            await pilot.press("r", "y")
            await until(pilot, lambda: "shop.orders: loaded" in told(app))
            await until(pilot, lambda: app.pane("audit").row_count == 4)

    asyncio.run(scene())
    runs = warehouse.execute(
        "select count(*) from etl_audit_log where pipeline_name = 'shop.orders'"
    ).fetchone()
    assert runs == (2,)
    assert json.loads((loaded / ".dw" / "logs" / "shop.orders.out").read_text())["status"] == "success"
    assert (loaded / ".dw" / "logs" / "shop.orders.err").stat().st_mode & 0o777 == 0o600
    assert "read" not in capfd.readouterr().out


def test_a_run_that_fails_says_why(loaded):
    async def scene():
        async with watching(loaded) as (app, pilot):
            await pilot.press(*":run", "space", *"missing", "enter")
            await until(pilot, lambda: isinstance(app.screen, Ask))
            await pilot.press("y")
            failed = "broken.missing failed: the database has no table 'nowhere'."
            await until(pilot, lambda: failed in told(app))

    asyncio.run(scene())


def test_what_cannot_be_run_is_said(loaded):
    async def scene():
        async with watching(loaded) as (app, pilot):
            await pilot.press(*":run", "space", *"shop.ordesr", "enter")
            assert told(app)[-1] == "there is no pipeline 'shop.ordesr' here. Did you mean 'shop.orders'?"
            await pilot.press(*"/nothing", "enter", "r")
            assert told(app)[-1] == "no pipeline is selected"
            assert not app.started

    asyncio.run(scene())


# -- sizes ---------------------------------------------------------------------------------------------


def test_columns_and_panes_give_way_to_a_small_screen(loaded):
    async def scene():
        async with watching(loaded, size=(120, 40)) as (app, pilot):
            assert len(app.pane("pipelines").columns) == 7
            assert app.query_one("#trend").display
            for size in ((80, 24), (40, 12), (20, 6), (160, 50)):
                await pilot.resize_terminal(*size)
                await pilot.pause(0.2)
                drawn = sum(
                    column.get_render_width(app.pane("audit"))
                    for column in app.pane("audit").columns.values()
                )
                assert drawn <= size[0] or size[0] < 40
                assert app.query_one("#trend").display == (size[0] >= 60)
                assert app.query_one("#log").display == (size[1] >= 18)
                assert set(names(app, "pipelines")) == {"broken.missing", "shop.orders", "shop.customers"}
                await pilot.press("?", "escape", *":log", "enter")
                await until(pilot, lambda: "no table 'nowhere'" in " ".join(log_of(app).split()))
                assert app.query_one("#log").display and app.query_one("#log").size.height > size[1] - 4
                await pilot.press("escape")
                assert app.query_one("#log").display == (size[1] >= 18)

    asyncio.run(scene())


# -- trouble -------------------------------------------------------------------------------------------


def test_a_warehouse_that_goes_is_a_line_and_comes_back(loaded, warehouse, warehouse_server):
    name = warehouse.info.dbname

    async def scene():
        async with watching(loaded) as (app, pilot):
            with psycopg.connect(warehouse_server, autocommit=True) as admin:
                admin.execute(f'alter database "{name}" allow_connections false')
                await until(pilot, lambda: "warehouse DOWN" in words(app, "#header"))
                assert "Fix: dw test-connection dw" in words(app, "#header")
                assert len(names(app, "pipelines")) == 3
                assert app.pane("audit").row_count == 3
                await pilot.press("enter", "escape", "tab", "tab", "enter", "escape")
                admin.execute(f'alter database "{name}" allow_connections true')
            await until(pilot, lambda: "warehouse up" in words(app, "#header"))

    asyncio.run(scene())


def test_a_warehouse_that_was_never_there_shows_the_local_record(loaded):
    (loaded / "dw.yaml").write_text("name: shop\nwarehouse: postgresql://u:hunter22@127.0.0.1:1/x\n", "utf-8")

    async def scene():
        async with watching(loaded) as (app, _):
            assert "warehouse DOWN" in words(app, "#header")
            assert "hunter22" not in words(app, "#header")
            states = {
                name: app.pane("pipelines").get_row_at(n)[1].plain
                for n, name in enumerate(names(app, "pipelines"))
            }
            assert states == {"shop.orders": "ok", "shop.customers": "ok", "broken.missing": "FAILED"}

    asyncio.run(scene())


def test_a_project_without_sources_says_what_to_do(shop):
    for path in (shop / "sources").glob("*.yaml"):
        path.unlink()

    async def scene():
        async with watching(shop) as (app, pilot):
            assert "Next: dw add-source" in words(app, "#header")
            await pilot.press("enter", "r", "tab", "enter", "tab", "enter", "tab", *":log", "enter", "escape")
            assert told(app)[0] == "no pipeline is selected"

    asyncio.run(scene())


def test_a_file_that_is_being_edited_is_a_line_and_a_new_pipeline_appears(loaded):
    path = loaded / "sources" / "shop.yaml"
    good = path.read_text("utf-8")

    async def scene():
        async with watching(loaded) as (app, pilot):
            path.write_text(good + "  more: {qery: x}\n", "utf-8")
            await until(pilot, lambda: "qery" in words(app, "#header"))
            path.write_text(good + "  more: {query: customers}\n", "utf-8")
            await until(pilot, lambda: "shop.more" in names(app, "pipelines"))
            assert "warehouse up" in words(app, "#header")

    asyncio.run(scene())


def test_a_look_that_breaks_is_a_line(loaded, monkeypatch):
    async def scene():
        async with watching(loaded) as (app, pilot):
            app.look = lambda: [][1]
            await until(pilot, lambda: words(app, "#header") == "IndexError: list index out of range")
            app.look = looker(load_project(loaded))
            await until(pilot, lambda: "warehouse up" in words(app, "#header"))

    asyncio.run(scene())


# -- logs ----------------------------------------------------------------------------------------------


def test_a_log_is_read_from_its_end_and_never_outside_its_folder(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    (tmp_path / "secret.log").write_text('{"event": "BatchRead", "rows": 1}\n')
    assert log_tail(folder, "../secret") == []
    assert progress(folder, "../secret", None).read == 0
    assert log_tail(folder, "nosuch") == []
    lines = [json.dumps({"event": "BatchRead", "rows": n, "pad": "x" * 100}) for n in range(2000)]
    (folder / "a.log").write_text("\n".join([*lines, "not json", '"text"']) + "\n")
    tail = log_tail(folder, "a")
    assert tail[-3]["rows"] == 1999
    assert [entry["message"] for entry in tail[-2:]] == ["not json", '"text"']
    assert 100 < len(tail) <= TAIL_BYTES // 100
    assert progress(folder, "a", None).read == sum(range(2000))


# -- the command ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 160])
def test_it_draws_in_a_terminal_and_leaves_it_as_it_was(terminal, loaded, width):
    child = terminal("watch", width=width)
    child.expect("Pipelines")
    child.expect("broken.missing")
    child.send("q")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
    assert "\x1b[?1049l" in child.before


def test_signals_are_what_they_were_before(loaded):
    before = signal.getsignal(signal.SIGTERM)

    async def scene():
        async with watching(loaded) as (app, pilot):
            os.kill(os.getpid(), signal.SIGTERM)
            await until(pilot, lambda: not app.is_running)
            assert app.return_code == 143

    asyncio.run(scene())
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_and_sigterm_end_it(terminal, loaded):
    child = terminal("watch")
    child.expect("broken.missing")
    child.send("\x03")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 130
    child = terminal("watch")
    child.expect("broken.missing")
    child.kill(signal.SIGTERM)
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 143
    assert "Traceback" not in child.before
    assert "\x1b[?1049l" in child.before


def test_without_a_terminal_it_names_status(dw, shop):
    done = dw("watch", cwd=shop)
    assert (done.returncode, done.stdout) == (2, "")
    assert "fix: dw status" in done.stderr


def test_a_dumb_terminal_is_none(terminal, shop):
    child = terminal(shell=f"TERM=dumb {DW[0]} -m dwcli watch")
    child.expect("fix: dw status")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 2


def test_without_textual_it_says_what_to_install(terminal, shop):
    code = (
        "import importlib.util as u, sys; find = u.find_spec;"
        "u.find_spec = lambda name: None if name == 'textual' else find(name);"
        "from dwcli.cli.app import main; sys.exit(main(['watch']))"
    )
    child = terminal(shell=f'{DW[0]} -c "{code}"')
    child.expect(r"pip install 'dwcli\[watch\]'")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 2


def test_no_other_command_loads_textual(environment, shop):
    code = "import sys; from dwcli.cli.app import main; main(['status']); sys.exit('textual' in sys.modules)"
    done = subprocess.run([DW[0], "-c", code], cwd=shop, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
