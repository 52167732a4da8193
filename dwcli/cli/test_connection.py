"""`dw test-connection`: how far a connection gets, layer by layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dwcli.cli._output import result_wanted, tell
from dwcli.cli.settings import settings
from dwcli.errors import ConnectionFailed, DwError, UsageError

if TYPE_CHECKING:
    from dwcli.connectors import Connector
    from dwcli.contract import Resource
    from dwcli.warehouse import Check

#: The name that means the warehouse itself.
WAREHOUSE = "dw"
#: The name that means those who are told of failures; only by name, since it sends a message.
NOTIFY = "notify"
#: Resources are counted up to here: a source with a million files is connected as well as one with this many.
COUNTED = 1000


def test_connection(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Sources, dw for the warehouse, notify for a test message; else all but that.",
        ),
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="The same as NAME; dw is the warehouse.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A connection outside the project, as YAML or JSON.")
    ] = None,
) -> None:
    """Check connections layer by layer: name, port, encryption, login, what can be read."""
    wanted = [*(names or []), *(source or [])]
    if config and wanted:
        raise UsageError("either --config or names, not both", hint=f"dw test-connection --config {config}")
    results = [_test_file(config)] if config else [_test(name) for name in wanted or _every_name()]
    ok = all(result["ok"] for result in results)
    if result_wanted():
        from dwcli.render.console import print_json

        print_json(
            results[0] if len(results) == 1 and (config or wanted) else {"ok": ok, "connections": results}
        )
    if not ok:
        raise typer.Exit(1)


def _every_name() -> list[str]:
    from dwcli.project import load_project

    return [WAREHOUSE, *load_project(settings().project).sources]


def _test(name: str) -> dict[str, Any]:
    from dwcli.connectors import create_connector
    from dwcli.project import connection_values, find_source, load_project

    if name == WAREHOUSE:
        return _test_warehouse()
    project = load_project(settings().project)
    if name == NOTIFY and name not in project.sources:
        from dwcli.cli._notify import test_message

        return _collect(NOTIFY, "a test message to each", lambda: test_message(project))
    source = find_source(project, name.partition(".")[0])
    return _collect(
        source.name,
        " ".join([source.protocol, *_place(source.connection)]),
        lambda: checks(create_connector(connection_values(project, source)), f"dw edit {source.name}"),
    )


def _test_file(path: Path) -> dict[str, Any]:
    from dwcli.connectors import create_connector

    connector = create_connector(path)
    return _collect(str(path), connector.protocol, lambda: checks(connector, ""))


def _test_warehouse() -> dict[str, Any]:
    from dwcli.cli._warehouse import warehouse_anywhere
    from dwcli.warehouse import check, mask_url

    url, schema = warehouse_anywhere()
    return _collect(WAREHOUSE, mask_url(url), lambda: check(url, schema))


def _collect(name: str, about: str, run: Callable[[], Iterator[Check]]) -> dict[str, Any]:
    """Run the checks of one connection, tell them, and keep them as plain values."""
    from dwcli.render.console import stderr
    from dwcli.render.sources import checks_view
    from dwcli.warehouse import Check

    begun = time.perf_counter()
    try:
        found = list(run())
    except DwError as error:  # it did not even come to connecting: a secret without a value, a driver
        found = [Check("config", False, _since(begun), _sentence(error), error.hint)]
    listed = [asdict(check) | {"milliseconds": round(check.milliseconds, 1)} for check in found]
    tell(checks_view(name, about, listed, stderr().width))
    return {"name": name, "about": about, "ok": all(check.ok for check in found), "checks": listed}


def checks(connector: Connector, edit: str) -> Iterator[Check]:
    """Connect to a source and look what it offers; ends after the first layer that fails."""
    from dwcli.log import warnings_heard
    from dwcli.render.sources import WARNING
    from dwcli.warehouse import Check

    begun = time.perf_counter()
    try:
        yield from _reach(connector)
        begun = time.perf_counter()
        with warnings_heard() as heard:
            connector.connect()
        yield Check("login", True, _since(begun), _as_whom(connector))
        for words in dict.fromkeys(heard):
            yield Check(WARNING, True, 0.0, words)
        begun = time.perf_counter()
        offered = list(islice(connector.discover(), COUNTED))
        yield Check("read", True, _since(begun), _what_it_offers(connector, offered))
    except ConnectionFailed as error:
        yield Check(error.layer, False, _since(begun), _sentence(error), error.hint or edit)
    except DwError as error:
        yield Check("read", False, _since(begun), _sentence(error), error.hint or edit)
    finally:
        connector.close()


def _what_it_offers(connector: Connector, offered: Sequence[Resource]) -> str:
    """What a source offers, counted; a group of files beside its files is none more."""
    from dwcli.cli._inference import nouns

    if not offered:
        usual = "lists nothing: it is empty, or this login may see nothing in it"
        return str(getattr(connector.module, "UNLISTED", usual))
    counted = [resource for resource in offered if resource.kind != "files"] or offered
    more = " or more" if len(offered) == COUNTED else ""
    words = nouns(counted)
    return f"can read {len(counted):,}{more} {words.removesuffix('s') if len(counted) == 1 else words}"


def _reach(connector: Connector) -> Iterator[Check]:
    """Name and port, for a source that has a host and a port."""
    import socket

    from dwcli.connectors._probe import reach
    from dwcli.warehouse import Check

    host, port = getattr(connector.config, "host", None), getattr(connector.config, "port", None)
    if not host or not port or str(host).startswith("/"):
        return
    begun = time.perf_counter()
    with suppress(OSError, UnicodeError):  # reach says better what is wrong with a name
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        yield Check("name", True, _since(begun), "name resolves")
    begun = time.perf_counter()
    reach(host, port)
    yield Check("port", True, _since(begun), "port answers")


def _place(connection: Mapping[str, Any]) -> list[str]:
    """`db.internal:5432`, where the file says so plainly."""
    host, port = connection.get("host"), connection.get("port")
    return [f"{host}:{port}" if port else str(host)] if host else []


def _as_whom(connector: Connector) -> str:
    user = getattr(connector.config, "username", None)
    return f"login '{user}' accepted" if user else "opens"


def _sentence(error: DwError) -> str:
    return f"{error.message} ({error.why})" if error.why else error.message


def _since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000
