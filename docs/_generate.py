"""Reference pages from the code. `make docs-generate` runs these between the [[[cog]]] marks of the pages.

Each function returns Markdown. A page without its marks' text up to date fails `make check`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dwcli import connectors
from dwcli.render.sources import tried_against

PAGES = Path(__file__).parent / "connectors"
#: What `make faults` found, part by part.
RELIABILITY = Path(__file__).parent / "_reliability.json"


def commands() -> str:
    """Every command with its --help, in the order of `dw --help`."""
    from dwcli.cli.app import COMMANDS, is_there

    names = [command.name for command in COMMANDS if is_there(command)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        helps = list(pool.map(help_of, [[], *([name] for name in names)]))
    sections = [f"## dw {name}".rstrip() for name in ["", *names]]
    return "\n\n".join(
        f"{title}\n\n```text\n{text}\n```" for title, text in zip(sections, helps, strict=True)
    )


def documents() -> str:
    """Every document that `--json` prints, field by field."""
    from dwcli.cli._json import markdown

    return markdown()


def reliability() -> str:
    """What each part of the fault tests came to, with the bound that so many tries without a fault allow."""
    head = ("What was done", "How often", "Wrong", "With 95 % certainty below", "Last done")
    table: list[Sequence[str]] = [head]
    for part in json.loads(RELIABILITY.read_text("utf-8")).values():
        hits, wrong = part["hits"], part["wrong"]
        bound = f"1 in {hits // 3:,}" if hits >= 3 and not wrong else ""
        often = f"{hits:,}" if part["scale"] >= 1 else f"{hits:,} (scale {part['scale']:g})"
        table.append((part["what"], often, str(wrong), bound, part["date"]))
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def help_of(words: list[str]) -> str:
    """What `dw WORDS --help` prints in 100 columns."""
    done = subprocess.run(
        [Path(sys.executable).parent / "dw", *words, "--help"],
        env={**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"},
        cwd=Path(__file__).parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    return "\n".join(line.rstrip() for line in plain.splitlines()).strip("\n")


def errors() -> str:
    """Every error code with its explanation, as `dw help CODE` tells it."""
    from dwcli.cli._codes import CODES

    sections = []
    for code, entry in CODES.items():
        causes = "\n".join(f"- {cause}" for cause in entry.causes)
        do = "\n".join(f"- {sentence}" for sentence in entry.do)
        sections.append(
            f"## {code}\n\n{entry.what} Exit code {entry.exit_code}.\n\n"
            f"Usual causes:\n\n{causes}\n\nWhat to do:\n\n{do}"
        )
    return "\n\n".join(sections)


def sources() -> str:
    """The table of every kind of source, each with its page."""
    head = ("Source", "Protocol", "Also called", "Driver", "New rows by", "Types", "Tried against")
    table = [head, *(source(name) for name in connectors.names())]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def source(protocol: str) -> list[str]:
    """A row of that table."""
    said = connectors.literals(protocol)
    tried = tried_against(said.get("TRIED"), said.get("STAND_IN"))
    return [
        f"[{connectors.title(protocol)}]({protocol}.md)",
        f"`{protocol}`",
        listed(aliases(protocol)),
        driver(protocol),
        said.get("INCREMENTAL", ""),
        said.get("TYPING", ""),
        tried or "",
    ]


def source_list() -> str:
    """Every kind of source in one sentence, for the README."""
    return ", ".join(connectors.title(name) for name in connectors.names())


def fields(protocol: str) -> str:
    """The configuration keys of one kind of source."""
    from dwcli.cli.forms import markdown

    return markdown(connectors.load(protocol).Config)


def aliases(protocol: str) -> tuple[str, ...]:
    return tuple(connectors.literals(protocol).get("ALIASES", ()))


def driver(protocol: str) -> str:
    extra = connectors.extra(protocol)
    return f"`pip install 'dwcli[{extra}]'`" if extra else "comes with dw"


def listed(words: tuple[str, ...]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def new_page(protocol: str) -> str:
    """A page to begin with, for a connector that has none; what is around the marks is yours to write."""
    return f"""# {connectors.title(protocol)}

<!-- [[[cog
import _generate
cog.outl(_generate.fields("{protocol}"))
]]] -->
<!-- [[[end]]] -->
"""


def main() -> None:
    """Begin the pages of connectors that have none."""
    for protocol in connectors.names():
        page = PAGES / f"{protocol}.md"
        if not page.exists():
            page.write_text(new_page(protocol), "utf-8")


if __name__ == "__main__":
    main()
