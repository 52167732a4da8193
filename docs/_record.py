"""Plays the quickstart in a real terminal and keeps what is seen: quickstart.svg and quickstart.cast.

    python docs/_record.py

The commands are those of quickstart.md. Where the page spares its reader the questions (`--yes`), the
recording answers them, key by key. Everything is real: the wizard, the PostgreSQL that is started, the rows.
Home is a new folder that is gone afterwards, and the environment holds nothing of this machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pexpect
from _terminal import Frame, Screen, feed, frame_of, svg, text_of

from dwcli.warehouse import embedded

HERE = Path(__file__).parent
COLUMNS, ROWS = 80, 24
TITLE = "dw: from an empty folder to answers"
PROMPT = "\x1b[1;32m$\x1b[0m "
#: Seconds to wait for what is to be seen.
PATIENCE = 60
#: Seconds that a key, a line and an answer to read take in the recording, however long they took.
KEY, PAUSE, READ = 0.05, 0.6, 2.0
#: A picture that is shown shorter than this is left out of the SVG.
SHORTEST = 0.19
ENTER, ERASE, DOWN = "\r", "\x15", "\x1b[B"
#: What is typed instead of a line of the page, and (what is then seen, the keys that answer it).
ASKED = {
    "dw init shop --yes": (
        "dw init shop",
        [("Warehouse", ENTER), ("Port", ENTER), ("Keep", ENTER)],
    ),
    "dw add-source files sales --path data --pipeline 'orders=orders-*.csv' --yes": (
        "dw add-source",
        [
            ("What kind of source?", "files"),
            ("/ files", ENTER),
            ("Name", ERASE + "sales" + ENTER),
            ("such as data/", "data/orders-*.csv" + ENTER),
            ("Ready to connect?", ENTER),
            ("Which files?", ENTER),
            ("Key", ENTER),
            ("Cursor", ENTER),
            ("Write", ENTER),
            ("Every", ENTER),
            ("Load now?", DOWN + DOWN + ENTER),
        ],
    ),
}


@dataclass
class Recording:
    """A shell in a terminal, and what it has shown so far."""

    child: pexpect.spawn
    screen: Screen = field(default_factory=lambda: Screen(COLUMNS, ROWS))
    seconds: float = 0.0
    #: when, and what was written to the screen
    events: list[tuple[float, str]] = field(default_factory=list)
    #: when, and what was seen then
    frames: list[tuple[float, Frame]] = field(default_factory=list)


def main() -> None:
    """Record it, and write both files."""
    home = Path(tempfile.mkdtemp(prefix="dw-"))
    try:
        with shell(home) as recording:
            for command in commands():
                play(recording, command)
            recording.seconds += READ
    finally:
        for server in home.rglob(".dw/postgres"):
            embedded.remove(server)
        shutil.rmtree(home)
    write(recording)


def commands() -> list[str]:
    """What the page tells to type in its project, in its order."""
    blocks = re.findall(r"^```console\n(.*?)^```$", (HERE / "quickstart.md").read_text("utf-8"), re.M | re.S)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@contextmanager
def shell(home: Path) -> Iterator[Recording]:
    """A shell in a folder of its own, which shows nothing but `$`."""
    child = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile"],
        cwd=str(home),
        env={
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
            "PS1": "$ ",
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "BASH_SILENCE_DEPRECATION_WARNING": "1",
        },
        dimensions=(ROWS, COLUMNS),
        encoding="utf-8",
        timeout=PATIENCE,
    )
    recording = Recording(child)
    try:
        see(recording, "$")
        yield recording
    finally:
        child.close(force=True)


def play(recording: Recording, command: str) -> None:
    """Type a command, answer what it asks, and wait for the next prompt."""
    typed, questions = ASKED.get(command, (command, []))
    for key in typed:
        recording.child.send(key)
        see(recording, "", KEY)
    done = prompts(recording)
    recording.child.send(ENTER)
    for seen, keys in questions:
        see(recording, seen, PAUSE)
        for key in re.findall(r"\x1b\[.|.", keys, re.S):
            recording.child.send(key)
            see(recording, "", KEY if key.isprintable() else PAUSE)
    wait_until(recording, lambda: prompts(recording) != done and at_prompt(recording))
    if "dw: " in "".join(output for _, output in recording.events[done:]):
        raise RuntimeError(f"{typed} failed:\n{text_of(recording.screen)}")
    shown(recording, READ if command.startswith("dw") else PAUSE)


def at_prompt(recording: Recording) -> bool:
    """Whether the shell waits for a command."""
    return text_of(recording.screen).split("\n")[-1].rstrip() == "$"


def prompts(recording: Recording) -> int:
    """How many events there were: a prompt after it is a new one."""
    return len(recording.events)


def see(recording: Recording, words: str, seconds: float = KEY) -> None:
    """Wait until words are on the screen, which then stays for some seconds."""
    if words:
        wait_until(recording, lambda: words in text_of(recording.screen))
    else:
        take(recording, 0.02)
    shown(recording, seconds)


def wait_until(recording: Recording, seen) -> None:  # noqa: ANN001
    """Take what is written until something is seen."""
    limit = time.monotonic() + PATIENCE
    while not seen():
        if time.monotonic() > limit:
            raise TimeoutError(f"it was not seen; the screen is:\n{text_of(recording.screen)}")
        take(recording, 0.1)
    while take(recording, 0.15):  # what belongs to it
        pass


def take(recording: Recording, seconds: float) -> bool:
    """What the program writes within some seconds; whether it wrote anything."""
    try:
        output = recording.child.read_nonblocking(65536, seconds)
    except pexpect.TIMEOUT:
        return False
    recording.events.append((recording.seconds, output))
    feed(recording.screen, output)
    while recording.screen.answers:
        recording.child.send(recording.screen.answers.pop(0))
    return True


def shown(recording: Recording, seconds: float) -> None:
    """Keep the screen as it is; it is seen for some seconds."""
    recording.frames.append((recording.seconds, frame_of(recording.screen)))
    recording.seconds += seconds


def write(recording: Recording) -> None:
    """Both files: one to look at anywhere, one for players of asciinema."""
    head = {"version": 2, "width": COLUMNS, "height": ROWS, "title": TITLE, "env": {"TERM": "xterm-256color"}}
    lines = [head, *([round(at, 3), "o", output] for at, output in recording.events)]
    (HERE / "quickstart.cast").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8"
    )
    kept: list[tuple[float, Frame]] = []
    for at, frame in recording.frames:
        if kept and at - kept[-1][0] < SHORTEST:
            kept[-1] = (kept[-1][0], frame)
        elif not kept or kept[-1][1] != frame:
            kept.append((at, frame))
    ends = [at for at, _ in kept[1:]] + [recording.seconds]
    film = [(end - at, frame) for (at, frame), end in zip(kept, ends, strict=True)]
    (HERE / "quickstart.svg").write_text(svg(film, TITLE), "utf-8")


if __name__ == "__main__":
    main()
