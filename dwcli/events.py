"""What happens during a run, as frozen records.

The pipeline calls `emit(event)`; the terminal, the log and the tests are three listeners. `pipeline`
is the full name, `source.pipeline`, in every event. `emit` is called from several threads: a listener
must be quick and must not raise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Stage = Literal["extract", "stage", "load"]


@dataclass(frozen=True)
class RunStarted:
    pipeline: str
    run_id: str
    target: str
    #: what the source's catalogue expects, None where it does not say
    rows_expected: int | None = None
    bytes_expected: int | None = None
    #: where the read begins; None for everything
    cursor_from: str | None = None


@dataclass(frozen=True)
class StageStarted:
    pipeline: str
    stage: Stage


@dataclass(frozen=True)
class BatchRead:
    pipeline: str
    rows: int
    #: bytes of the batch in memory
    bytes: int


@dataclass(frozen=True)
class BatchStaged:
    pipeline: str
    rows: int
    #: bytes of the Parquet file
    bytes: int
    path: str


@dataclass(frozen=True)
class BatchLoaded:
    pipeline: str
    rows: int


@dataclass(frozen=True)
class SchemaChanged:
    pipeline: str
    #: one sentence, such as "new column discount (numeric)"
    change: str


@dataclass(frozen=True)
class Notice:
    """Something the user should know that is no failure: late rows, a policy applied, a count."""

    pipeline: str
    text: str


@dataclass(frozen=True)
class RunFinished:
    """The run is over, well or badly; `result` is what `--json` prints."""

    pipeline: str
    result: Mapping[str, Any] = field(default_factory=dict)


Event = (
    RunStarted | StageStarted | BatchRead | BatchStaged | BatchLoaded | SchemaChanged | Notice | RunFinished
)
Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""
