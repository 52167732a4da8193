"""`dw up`: the project's own warehouse, running."""

from __future__ import annotations

from dwcli.cli._say import say, waiting
from dwcli.cli.settings import settings


def up() -> None:
    """Start the project's own warehouse; one that runs stays as it is."""
    from dwcli.cli._warehouse import own_server_home
    from dwcli.project import load_project
    from dwcli.warehouse import embedded

    home = own_server_home(load_project(settings().project), "up")
    before = embedded.running(home)
    with waiting("starting Postgres"):
        server = before or embedded.start(home)
    word = "is up" if before else "started"
    say(f"ok  warehouse {word}: Postgres {server.version} on 127.0.0.1:{server.port}")
    if settings().json:
        from dwcli.render.console import print_json

        print_json(
            {
                "ok": True,
                "started": before is None,
                "host": "127.0.0.1",
                "port": server.port,
                "pid": server.pid,
            }
        )
