"""What `--json` prints: every field of every command's document, with a sentence.

    DOCUMENTS ──markdown──▶ docs/reference/json.md
              ──problems──▶ the test that real output has exactly these fields, of these kinds

A kind is `text`, `integer`, `number`, `boolean`, `moment` (text: ISO 8601 in UTC), `object`, `list` or `any`;
a question mark after it means that null may stand there. An object without `inside` has names of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Fields = Mapping[str, "Field"]


@dataclass(frozen=True)
class Field:
    """One field. inside: the fields of an object, or of each object in a list; of: the kind of its values."""

    kind: str
    says: str
    inside: Fields | None = None
    of: str = ""


@dataclass(frozen=True)
class Document:
    """One document that a command prints, and when."""

    command: str
    when: str
    field: Field


# -- dw run --------------------------------------------------------------------------------------------

ERROR: Fields = {
    "code": Field("text", "a code that stays the same, such as `DW-CONN-LOGIN`"),
    "message": Field("text", "what went wrong, in one sentence"),
    "why": Field("text", "the cause, as far as it is known; may be empty"),
    "hint": Field("text", "what to do about it; may be empty"),
}
STAGES: Fields = {
    "extract": Field("number", "reading the source"),
    "stage": Field("number", "writing Parquet"),
    "load": Field("number", "loading the warehouse"),
}
RUN: Fields = {
    "run_id": Field("text", "names the run in the audit log, the lake and every row it loaded"),
    "status": Field("text", "`success` or `failure`"),
    "pipeline_name": Field("text", "`source.pipeline`; `default` for one query without a project"),
    "source_name": Field("text", "the source"),
    "target_table": Field("text", "`schema.table`"),
    "rows_loaded": Field("integer", "rows that are in the warehouse by this run; 0 where it failed"),
    "parquet_files": Field("integer", "files it wrote to the lake"),
    "duration_seconds": Field("number", "from beginning to end; stages overlap, so it is not their sum"),
    "started_at": Field("moment", "when it began"),
    "write": Field("text", "`append`, `replace`, `merge` or `scd2`"),
    "rows_read": Field("integer", "rows that the source gave"),
    "rows_inserted": Field("integer", "rows that are new in the table"),
    "rows_updated": Field("integer", "rows of the table that changed"),
    "rows_deleted": Field("integer", "rows that went from the table, or were marked as deleted"),
    "rows_rejected": Field("integer", "rows set aside in etl_rejects"),
    "bytes_staged": Field("integer", "bytes of its Parquet files"),
    "cursor_from": Field("text?", "where reading began; null for everything"),
    "cursor_to": Field("text?", "the largest cursor value that arrived; null without a cursor"),
    "seconds": Field("object", "seconds that each stage worked", STAGES),
    "schema_changes": Field("list", "what changed in the table, one sentence each", of="text"),
    "values_changed": Field("object", "what could not arrive exactly, and how many values", of="integer"),
    "healed_runs": Field("list", "ids of interrupted runs whose rows were loaded first", of="text"),
    "error": Field("object?", "null where all went well", ERROR),
}
COLUMN: Fields = {
    "name": Field("text", "the column, as the warehouse calls it"),
    "type": Field("text", "the type it would have"),
    "type_now": Field("text?", "the type it has; null where there is no such column"),
}
PLAN: Fields = {
    "dry_run": Field("boolean", "always true: tells a plan from a run"),
    "ok": Field("boolean", "false where something is known that would make the run fail"),
    "pipeline_name": Field("text", "`source.pipeline`"),
    "source_name": Field("text", "the source"),
    "target_table": Field("text", "`schema.table`"),
    "reading": Field(
        "object?",
        "what would be read; null where that could not be found out",
        {
            "query": Field("text", "table, SQL, path … in the source"),
            "everything": Field("boolean", "whether all the source has is read, not only what is new"),
            "why": Field("text", "why it is so"),
            "cursor_column": Field("text?", "the cursor; null where none is used"),
            "cursor_from": Field("text?", "where reading begins, any lookback taken off"),
            "cursor_to": Field("text?", "where it ends; null for what is there by then"),
            "rows_estimate": Field("integer?", "about how many rows; null where nobody knows"),
            "bytes_estimate": Field("integer?", "about how many bytes in the source"),
            "estimated_by": Field("text?", "`catalogue` of the source, or `history`: the runs before"),
        },
    ),
    "schema": Field(
        "object?",
        "how the table would change; null where the source could not be asked",
        {
            "known": Field("boolean", "false where columns are told only by reading"),
            "typing": Field("text?", "`declared` by the source, or `inferred` from some of its rows"),
            "new_table": Field("boolean", "whether the table would be made"),
            "columns": Field("list", "columns that would be new, or of a wider type", COLUMN),
            "not_in_source": Field("list", "columns of the table that the source does not have", of="text"),
            "ddl": Field("list", "the statements", of="text"),
        },
    ),
    "meeting": Field(
        "object?",
        "what would become of the rows",
        {
            "write": Field("text", "`append`, `replace`, `merge` or `scd2`, as this run would do it"),
            "key": Field("list", "columns that tell rows apart", of="text"),
            "rows": Field("text", "what becomes of the rows, as a sentence"),
            "deletes": Field("text", "what becomes of rows that the source no longer has"),
            "table_rows_estimate": Field("integer?", "rows of the table now, as PostgreSQL estimates them"),
        },
    ),
    "waiting": Field(
        "list",
        "snapshots of interrupted runs, which would be loaded first",
        {
            "run_id": Field("text", "the run that wrote it"),
            "snapshot": Field("text", "its manifest within the lake"),
            "rows": Field("integer", "its rows"),
            "cursor_to": Field("text?", "where the cursor would stand afterwards"),
        },
    ),
    "cost": Field(
        "object?",
        "what the run would take, as the runs before show it",
        {
            "seconds_estimate": Field("number?", "about how long; null without runs to judge by"),
            "lake_bytes_estimate": Field("integer?", "about how many bytes of Parquet"),
            "lake_bytes_free": Field("integer?", "bytes free where the lake is"),
            "from_runs": Field("integer", "runs that the estimates were made from"),
        },
    ),
    "warnings": Field(
        "list",
        "what should be known first",
        {
            "text": Field("text", "one sentence"),
            "hint": Field("text", "what to do about it; may be empty"),
            "stops": Field("boolean", "whether it would make the run fail"),
        },
    ),
    "error": Field("object?", "why the plan is not complete; null where it is", ERROR),
}

# -- the others ----------------------------------------------------------------------------------------

STANDING: Fields = {
    "pipeline": Field("text", "`source.pipeline`"),
    "state": Field("text", "`ok`, `FAILED`, `STALE`, `running` or `never`"),
    "last_ok": Field("moment?", "when the last good run ended"),
    "last_run": Field("moment?", "when the last run ended, or began if it still runs"),
    "every": Field("text?", "how often it is to run"),
    "due": Field("moment?", "when it is to run next; after failures, when it is tried again"),
    "failures": Field("integer", "runs that failed since the last good one, as far as the last runs tell"),
    "rows": Field("integer?", "rows that the last good run loaded (LOADED)"),
    "table_rows": Field("integer?", "rows that the table has (ROWS); null where the warehouse cannot say it"),
    "table_rows_exact": Field("boolean", "whether they were counted; large tables are estimated"),
    "trend": Field("list", "rows of the last runs, oldest first; null for one that failed", of="integer?"),
    "fix": Field("text", "the command that mends it or tells more; may be empty"),
    "error": Field("text", "the error of the last run; may be empty"),
    "needs_attention": Field("boolean", "whether `--check` fails because of it"),
    "seconds_since_ok": Field("number?", "age of the last good run"),
}
STATUS: Fields = {
    "project": Field("text", "name of the project"),
    "warehouse": Field(
        "object",
        "the warehouse as it was found",
        {
            "up": Field("boolean", "whether it answers; if not, the rest is the local record"),
            "where": Field("text", "host and port, never a password"),
            "bytes_used": Field("integer?", "size of the database"),
            "bytes_free": Field("integer?", "free on its disk, where that is this machine's"),
            "why": Field("text", "why it does not answer; may be empty"),
            "hint": Field("text", "what to do about it; may be empty"),
        },
    ),
    "pipelines": Field("list", "every pipeline of the project", STANDING),
    "ok": Field("boolean", "whether no pipeline needs attention"),
}
AUDIT: Fields = {
    "id": Field("integer", "number of the row"),
    "run_id": RUN["run_id"],
    "pipeline_name": RUN["pipeline_name"],
    "source_name": RUN["source_name"],
    "protocol": Field("text", "the kind of source"),
    "target_table": RUN["target_table"],
    "status": Field("text", "`running`, `success` or `failure`"),
    "rows_loaded": Field("integer?", "rows that are in the warehouse by this run"),
    "parquet_files": Field("integer?", "files it wrote to the lake"),
    "error_message": Field("text?", "what went wrong"),
    "started_at": Field("moment", "when it began"),
    "finished_at": Field("moment?", "when it ended; null while it runs"),
    "write": Field("text?", "`append`, `replace`, `merge` or `scd2`; null in runs of an older dw"),
    "rows_read": Field("integer?", RUN["rows_read"].says),
    "rows_inserted": Field("integer?", RUN["rows_inserted"].says),
    "rows_updated": Field("integer?", RUN["rows_updated"].says),
    "rows_deleted": Field("integer?", RUN["rows_deleted"].says),
    "rows_rejected": Field("integer?", RUN["rows_rejected"].says),
    "bytes_staged": Field("integer?", RUN["bytes_staged"].says),
    "cursor_from": RUN["cursor_from"],
    "cursor_to": RUN["cursor_to"],
    "seconds": Field("object?", RUN["seconds"].says, STAGES),
    "schema_changes": Field("list?", RUN["schema_changes"].says, of="text"),
    "values_changed": Field("object?", RUN["values_changed"].says, of="integer"),
    "error_code": Field("text?", ERROR["code"].says),
    "error_hint": Field("text?", ERROR["hint"].says),
    "host": Field("text?", "the machine it ran on"),
    "os_user": Field("text?", "who ran it"),
    "pid": Field("integer?", "its process"),
    "dw_version": Field("text?", "the version of dw"),
    "config_hash": Field("text?", "the same for two runs with the same configuration"),
    "command": Field("text?", "what was typed"),
    "snapshot": Field("text?", "its manifest within the lake"),
}
SOURCE: Fields = {
    "name": Field("text", "the source"),
    "protocol": Field("text", "the kind of source"),
    "file": Field("text", "its file within the project"),
    "pipelines": Field(
        "list",
        "its pipelines",
        {
            "name": Field("text", "the pipeline, without the source"),
            "query": Field("text?", "what is read; null where it is named like the pipeline"),
            "target": Field("text", "`schema.table`"),
            "write": Field("text", "`append`, `replace`, `merge` or `scd2`"),
            "key": Field("list", "columns that tell rows apart", of="text"),
            "cursor": Field("text?", "the column that tells what is new"),
            "every": Field("text?", "how often it is to run"),
        },
    ),
}
PROTOCOL: Fields = {
    "protocol": Field("text", "what goes into `protocol:`"),
    "title": Field("text", "how people call it"),
    "aliases": Field("list", "other names for it", of="text"),
    "extra": Field("text?", "the pip extra that brings its driver; null where it needs none"),
    "missing": Field("list", "packages of the extra that are not installed", of="text"),
    "incremental": Field("text?", "how it finds what is new; null where it reads everything"),
    "typing": Field("text?", "`declared` or `inferred`: where types come from"),
    "streaming": Field("boolean?", "whether memory is bounded by the batch, not by the resource"),
    "tried": Field("text?", "the real server that its tests run against"),
    "stand_in": Field("text?", "what stands in for it there"),
}
VERIFY: Fields = {
    "pipeline_name": Field("text", "`source.pipeline`"),
    "target_table": Field("text", "`schema.table`"),
    "ok": Field("boolean", "whether everything agrees"),
    "checks": Field(
        "list",
        "one comparison each",
        {
            "part": Field("text", "`lake`, `receipts` or `source`"),
            "ok": Field("boolean", "whether it agrees"),
            "detail": Field("text", "what was found"),
            "hint": Field("text", "what mends it; may be empty"),
            "milliseconds": Field("number", "how long it took"),
        },
    ),
}
STATE: Fields = {
    "pipeline_name": Field("text", "`source.pipeline`"),
    "cursor_column": Field("text?", "the column that the value is of"),
    "cursor_value": Field("text?", "how far it has come, in PostgreSQL's text form"),
    "cursor_type": Field("text?", "the PostgreSQL type of the value"),
    "position": Field("any", "where the source says it is, in the source's own form"),
    "run_id": Field("text?", "the run that moved it last"),
    "updated_at": Field("moment?", "when it was moved"),
}
MOVED: Fields = {
    "pipeline_name": Field("text", "`source.pipeline`"),
    "cursor_from": Field("text?", "the value before"),
    "cursor_to": Field("text?", "the value now; null after a reset"),
}
CLEAN: Fields = {
    "files": Field("integer", "files that are not needed any more"),
    "bytes": Field("integer", "their size"),
    "leftovers": Field(
        "list",
        "what they are",
        {
            "pipeline": Field("text", "`source.pipeline`"),
            "what": Field("text", "why they may go"),
            "paths": Field("list", "the files", of="text"),
            "bytes": Field("integer", "their size"),
        },
    ),
}
FAILURE: Fields = {
    "ok": Field("boolean", "always false"),
    "error": Field("object", "what went wrong", ERROR),
}


def _one(inside: Fields) -> Field:
    return Field("object", "", inside)


def _each(inside: Fields) -> Field:
    return Field("list", "", inside)


def _several(name: str, inside: Fields, ok: str) -> Field:
    return _one({"ok": Field("boolean", ok), name: Field("list", "one for each pipeline, in order", inside)})


AUDIT_RUN: Fields = {
    **AUDIT,
    "files": Field(
        "list",
        "files of its snapshot",
        {
            "name": Field("text", "name of the file"),
            "rows": Field("integer", "rows in it"),
            "bytes": Field("integer", "its size"),
            "there": Field("boolean", "whether it is in the lake"),
        },
    ),
    "files_remark": Field("text", "what is wrong with the snapshot; may be empty"),
    "ddl": Field(
        "list",
        "what it changed in tables",
        {
            "table": Field("text", "`schema.table`"),
            "change": Field("text", "the change in words"),
            "ddl": Field("text", "the statement"),
            "changed_at": Field("moment", "when"),
        },
    ),
    "rejects": Field(
        "object",
        "rows that it set aside",
        {
            "rows": Field("integer", "how many"),
            "reasons": Field(
                "list",
                "why, the most frequent first",
                {"reason": Field("text", "why"), "rows": Field("integer", "how many")},
            ),
            "first": Field(
                "list",
                "the first of them",
                {
                    "source_file": Field("text", "the file of the lake"),
                    "row_number": Field("integer", "the row in it"),
                    "reason": Field("text", "why"),
                },
            ),
        },
    ),
    "config_before": Field(
        "object?",
        "the pipeline's run before this one",
        {"run_id": RUN["run_id"], "config_hash": Field("text?", "tells whether the configuration changed")},
    ),
    "log": Field("text?", "where its log is, on this machine"),
}
DOCUMENTS = (
    Document("run", "one pipeline; also `dw replay`", _one(RUN)),
    Document("run", "several pipelines", _several("runs", RUN, "whether every run succeeded")),
    Document("run --dry-run", "one pipeline", _one(PLAN)),
    Document("run --dry-run", "several pipelines", _several("plans", PLAN, "whether none is known to fail")),
    Document("status", "always", _one(STATUS)),
    Document("audit", "the list of runs, newest first", _each(AUDIT)),
    Document("audit RUN", "one run", _one(AUDIT_RUN)),
    Document("sources", "every source", _each(SOURCE)),
    Document("sources --protocols", "every kind of source", _each(PROTOCOL)),
    Document("verify", "one pipeline by name", _one(VERIFY)),
    Document("verify", "several pipelines", _several("pipelines", VERIFY, "whether everything agrees")),
    Document("state show", "every pipeline", _each(STATE)),
    Document("state set, state reset", "one pipeline", _one(MOVED)),
    Document("clean", "always; with `--dry-run` nothing is removed", _one(CLEAN)),
    Document("Any command", "nothing was done, or it failed as a whole", _one(FAILURE)),
)


# -- faces ---------------------------------------------------------------------------------------------


def markdown() -> str:
    """The reference of all documents. What has been described once is referred to by its heading."""
    parts: list[str] = []
    headings: dict[int, str] = {}
    for document in DOCUMENTS:
        name = document.command if document.command[0].isupper() else f"dw {document.command}"
        heading = f"{name}: {document.when}"
        shape = "A list of objects." if document.field.kind == "list" else "An object."
        known = headings.get(id(document.field.inside))
        if known:
            parts.append(f"## {heading}\n\n{shape} Its fields: see “{known}”.")
            continue
        rows = [
            f"| `{path}` | {field.kind} | {says} |" for path, field, says in _flat(document.field, headings)
        ]
        headings[id(document.field.inside)] = heading
        table = "\n".join(["| field | kind | |", "|---|---|---|", *rows])
        parts.append(f"## {heading}\n\n{shape}\n\n{table}")
    return "\n\n".join(parts)


def _flat(field: Field, headings: Mapping[int, str], path: str = "") -> Iterator[tuple[str, Field, str]]:
    """Every field below, by its path (`error.code`, `runs[].run_id`), and what is said of it."""
    for name, below in (field.inside or {}).items():
        here, known = f"{path}{name}", headings.get(id(below.inside))
        yield here, below, f"{below.says}: see “{known}”" if known else below.says
        if below.inside and not known:
            yield from _flat(below, headings, here + ("[]." if below.kind.startswith("list") else "."))


KINDS: Mapping[str, tuple[type, ...]] = {
    "text": (str,),
    "moment": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "list": (list,),
}


def problems(value: Any, field: Field, path: str = "$") -> list[str]:
    """How a value differs from its description: fields too many, fields missing, another kind."""
    kind = field.kind.removesuffix("?")
    if kind == "any" or (value is None and field.kind.endswith("?")):
        return []
    fits: bool = isinstance(value, KINDS[kind]) and isinstance(value, bool) == (kind == "boolean")
    if not fits:
        return [f"{path} is {value!r}, not {field.kind}"]
    if kind == "moment":
        return [] if datetime.fromisoformat(value).tzinfo else [f"{path} has no zone: {value}"]
    if kind == "list":
        element = Field("object", "", field.inside) if field.inside else Field(field.of or "any", "")
        return [text for n, one in enumerate(value) for text in problems(one, element, f"{path}[{n}]")]
    if kind == "object" and field.inside is None:
        below = Field(field.of or "any", "")
        return [text for name, one in value.items() for text in problems(one, below, f"{path}.{name}")]
    if kind == "object" and field.inside is not None:
        inside = field.inside
        found = [f"{path}.{name} is not described" for name in value.keys() - inside.keys()]
        found += [f"{path}.{name} is missing" for name in inside.keys() - value.keys()]
        for name in inside.keys() & value.keys():
            found += problems(value[name], inside[name], f"{path}.{name}")
        return sorted(found)
    return []
