"""The figures of the long form, kept part by part: a part is run alone, and only its line is written anew.

docs/reliability.md is made from docs/_reliability.json by docs/_generate.py; `make check` compares the two.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT, PAGE = ROOT / "docs" / "_reliability.json", ROOT / "docs" / "reliability.md"


@dataclass(frozen=True)
class Figures:
    """What one part came to.

    hits: kills, cuts, flips or races that really happened. wrong: how many of the cases were not as they must
    be. date: the last day of it. scale: 1 is full size.
    """

    what: str
    cases: int
    hits: int
    wrong: int
    seconds: int
    scale: float
    seed: int
    date: str = ""


def kept(path: Path = KEPT) -> dict[str, Figures]:
    """The figures of every part that was run at full size, by its name."""
    return {name: Figures(**found) for name, found in json.loads(path.read_text("utf-8")).items()}


def keep(name: str, new: Figures, order: list[str], path: Path = KEPT) -> str:
    """Keep what a part came to, in place of what it came to before. Returns a sentence on that.

    A run below full size proves less than what stands there, so it is not kept, whatever it found. One at
    full size always is: where it found something wrong, that is what is to be read until it is mended.
    """
    if new.scale < 1:
        return f"not kept: the scale was {new.scale:g}, and only full size goes to {path.name}"
    every = kept(path)
    old = every.get(name)
    every[name] = Figures(**asdict(new) | {"date": f"{datetime.now(UTC):%Y-%m-%d}"})
    every = {part: every[part] for part in order if part in every}
    text = json.dumps({part: asdict(one) for part, one in every.items()}, indent=1) + "\n"
    path.write_text(text, "utf-8")
    before = f"; before: {old.wrong} wrong in {old.hits:,}, {old.date}" if old else ""
    return f"kept in {path.name}: {new.wrong} wrong in {new.hits:,}{before}"


def write_page() -> None:
    """Put what is kept into the page."""
    cog = [sys.executable, "-m", "cogapp", "-n", "utf-8", "-I", "docs", "-r", str(PAGE)]
    subprocess.run(cog, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
