"""What a change of a pipeline means for the rows that it has loaded, a sentence each."""

from __future__ import annotations

from dataclasses import dataclass

from dwcli.contract import KEYED
from dwcli.project import PipelineConfig


@dataclass(frozen=True)
class Meaning:
    """One consequence. refresh: only `--full-refresh` makes old rows like new ones."""

    text: str
    refresh: bool = False


def meanings(name: str, before: PipelineConfig, after: PipelineConfig) -> list[Meaning]:
    """What the change means for a pipeline that has loaded rows. name: without its source."""
    if after.write == "replace":
        return _reloaded(name, before, after)
    found: list[Meaning] = []
    if (before.target or name, before.schema_) != (after.target or name, after.schema_):
        found.append(
            Meaning("the old table stays as it is, and the new one gets only what is new from now on", True)
        )
    if (before.query or name) != (after.query or name):
        found.append(Meaning("rows that are loaded stay, also those that the new query does not read", True))
    if before.write != after.write:
        found.append(_write(before, after))
    if before.key != after.key and before.key and after.write in KEYED:
        old, new = ", ".join(before.key), ", ".join(after.key)
        found.append(
            Meaning(f"rows that are loaded were told apart by {old}; by {new} some may be there twice", True)
        )
    if before.cursor != after.cursor:
        found.append(_cursor(before, after))
    return found


def _reloaded(name: str, before: PipelineConfig, after: PipelineConfig) -> list[Meaning]:
    if (before.target or name, before.schema_) != (after.target or name, after.schema_):
        return [Meaning("the next run fills the new table; the old one stays as it is")]
    if before.write != "replace":
        return [Meaning("the next run replaces all rows of the table by what the source has then")]
    return []


def _write(before: PipelineConfig, after: PipelineConfig) -> Meaning:
    if before.write == "scd2":
        return Meaning("old versions of rows stay in the table beside the new rows", True)
    if after.write == "scd2":
        return Meaning("rows that are loaded become the first versions of their keys")
    if after.write == "append":
        return Meaning("a changed row is added beside its old version from now on")
    return Meaning(
        f"rows that are loaded must be unique by {', '.join(after.key)}, else the next run fails", True
    )


def _cursor(before: PipelineConfig, after: PipelineConfig) -> Meaning:
    if before.cursor is None:
        told = f"the next run reads everything, and from then on what is new by {after.cursor}"
    elif after.cursor is None:
        told = f"the place reached by {before.cursor} is no longer used"
    else:
        told = f"the place reached by {before.cursor} means nothing for {after.cursor}: all is read again"
    if after.write == "append":
        return Meaning(f"{told}, and rows that are loaded would be there twice", True)
    return Meaning(told)
