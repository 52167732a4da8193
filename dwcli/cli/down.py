"""`dw down`: the project's own warehouse, stopped."""

from __future__ import annotations

from dwcli.cli._say import say
from dwcli.cli.settings import settings


def down() -> None:
    """Stop the project's own warehouse; its data stays. The next run starts it again."""
    from dwcli.cli._warehouse import own_server_home
    from dwcli.project import load_project
    from dwcli.warehouse import embedded

    stopped = embedded.stop(own_server_home(load_project(settings().project), "down"))
    say("ok  warehouse stopped" if stopped else "ok  warehouse was not running")
    if settings().json:
        from dwcli.render.console import print_json

        print_json({"ok": True, "stopped": stopped})
