"""`dw up`: the project's own warehouse, running."""

from __future__ import annotations

from dwcli.cli._say import say
from dwcli.cli.settings import settings


def up() -> None:
    """Start the project's own warehouse; one that runs stays as it is."""
    from dwcli.cli._warehouse import own_server_home, started
    from dwcli.project import load_project

    server, was_down = started(own_server_home(load_project(settings().project), "up"))
    word = "started" if was_down else "is up"
    say(f"ok  warehouse {word}: Postgres {server.version} on 127.0.0.1:{server.port}")
    if settings().json:
        from dwcli.render.console import print_json

        print_json(
            {
                "ok": True,
                "started": was_down,
                "host": "127.0.0.1",
                "port": server.port,
                "pid": server.pid,
            }
        )
