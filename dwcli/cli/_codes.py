"""What every error code means: the texts of `dw help CODE` and of the reference page of errors.

A code is a promise: scripts compare it, so it keeps its name and its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Explanation:
    """One code: what happened, what it usually comes from, what to do."""

    what: str
    causes: tuple[str, ...]
    #: sentences, some of them with a command between backticks
    do: tuple[str, ...]
    exit_code: int = 1


#: The classes of `dwcli.errors`, then the layers of a connection, then codes of single places.
CODES: dict[str, Explanation] = {
    "DW-ERROR": Explanation(
        "Something failed that has no code of its own; the message says what.",
        ("a file or folder that cannot be written", "a program or a plugin that cannot be started"),
        ("Read the message and its fix.", "Check the project as a whole: `dw doctor`."),
    ),
    "DW-USAGE": Explanation(
        "The command line cannot be understood. Nothing was done.",
        ("a mistyped command or flag", "flags that exclude each other", "a value of the wrong kind"),
        ("See what the command takes: `dw help COMMAND`.",),
        2,
    ),
    "DW-CONFIG": Explanation(
        "A configuration file, or a value in it, is not valid. Nothing was done.",
        (
            "a mistyped key, or one that this kind of source does not have",
            "a key that another one needs, such as key: for write: merge",
            "YAML whose indentation is wrong",
        ),
        (
            "Go to the file, line and column in the message.",
            "See the keys of a kind of source: `dw add-source PROTOCOL --help`.",
            "Check all files at once: `dw doctor --no-sources`.",
        ),
        2,
    ),
    "DW-SECRET": Explanation(
        "A ${env:NAME} or ${file:PATH} in the configuration has no value. Nothing was done.",
        (
            "the variable is set in your shell, and not where dw runs (cron, a service, a container)",
            ".env was not copied along with the project: it is not in git",
            "the file of the secret was moved or is not readable",
        ),
        ("Add a line NAME=… to .env beside dw.yaml, or export NAME.", "Check all of them: `dw doctor`."),
        2,
    ),
    "DW-NO-PROJECT": Explanation(
        "There is no dw.yaml in this folder or in one above it. Nothing was done.",
        ("dw runs in another folder than you think (cron begins in the home)", "the project was moved"),
        (
            "Name the folder: `dw -C PATH status`, or set DW_PROJECT.",
            "Make a project here: `dw init`.",
        ),
        2,
    ),
    "DW-UNKNOWN": Explanation(
        "There is no pipeline, source, run, protocol or topic of that name. Nothing was done.",
        ("a mistyped name", "a name that stands in more than one source"),
        (
            "List what there is: `dw sources`, `dw audit`, `dw sources --protocols`.",
            "Say the whole name: SOURCE.PIPELINE.",
        ),
        2,
    ),
    "DW-ANSWER": Explanation(
        "A question has no answer, and nobody is there to be asked. Nothing was done.",
        ("dw runs without a terminal, or with --no-input or DW_NO_INPUT",),
        ("Give the flags that the message lists.", "Add --yes where the default is what you want."),
        2,
    ),
    "DW-DRIVER": Explanation(
        "The library that speaks to this kind of source is not installed. Nothing was done.",
        ("dw was installed without this source's extra", "dw runs from another Python environment"),
        (
            "Install it: `pip install 'dwcli[PROTOCOL]'`.",
            "See which are there: `dw sources --protocols`.",
        ),
        2,
    ),
    "DW-SOURCE": Explanation(
        "The source answered with something that cannot be used.",
        ("the source itself has an error", "something between here and there answers in its place"),
        ("Look at what it gives: `dw preview NAME`.", "Check the connection: `dw test-connection NAME`."),
    ),
    "DW-SOURCE-MISSING": Explanation(
        "The source has no such table, file, endpoint, topic or collection.",
        (
            "it was renamed or dropped, or the file is not there yet",
            "it stands in another schema or folder, or is written with other capitals",
            "the user may not see it",
        ),
        ("Check query: of the pipeline in its source file.", "Look at it: `dw preview NAME`."),
    ),
    "DW-SOURCE-QUERY": Explanation(
        "The source refused the query.",
        ("a mistake in its SQL", "a column that is gone", "the user may not read it", "its time limit"),
        ("Correct query: of the pipeline.", "Try it without loading: `dw preview NAME`."),
    ),
    "DW-SOURCE-DATA": Explanation(
        "The data cannot be read as what it is said to be. Nothing of the run was loaded.",
        (
            "a damaged or half-written file",
            "another encoding, delimiter or format than the configuration says",
            "rows with more or fewer fields than the header",
        ),
        (
            "Look at the place that the message names.",
            "Say how it is written: encoding:, delimiter:, format: in the source file.",
        ),
    ),
    "DW-SHRANK": Explanation(
        "The source has so many rows less than the warehouse that it may be broken. Nothing was deleted.",
        ("the source was emptied, or is being filled just now", "query: shows only a part of it"),
        (
            "Look at the source: `dw preview NAME`.",
            "If the rows are really gone, do what the message's fix says.",
        ),
    ),
    "DW-WAREHOUSE": Explanation(
        "The warehouse refused something. Nothing of the run was committed.",
        (
            "its disk is full",
            "the user may not create or change a table",
            "a lock that another session holds",
            "it was stopped meanwhile",
        ),
        ("Check it: `dw test-connection dw`.", "Check disk, rights and settings: `dw doctor`."),
    ),
    "DW-VALUE": Explanation(
        "A value does not fit the column, or PostgreSQL cannot hold it. Nothing of the run was committed.",
        (
            "columns: gives a narrower type than the data needs",
            "contract: freeze, and the source has sent a new kind of value",
            "a date or a number beyond what the type holds",
        ),
        (
            "Give the column a wider type under columns: in the source file.",
            "Or set such rows aside: contract: discard_row (they go to etl_rejects).",
        ),
    ),
    "DW-KEY": Explanation(
        "A merge needs a key in every row, and some rows have none. Nothing of the run was committed.",
        ("a key column that is NULL in the source", "a key column that the source no longer has"),
        ("Choose key: columns that are never NULL.", "Or leave such rows out in query:."),
    ),
    "DW-SCHEMA": Explanation(
        "The table cannot or may not take this change of schema. Nothing of the run was committed.",
        (
            "contract: freeze, and the source has a new column or type",
            "a view or an index depends on the column that would change",
            "the target belongs to somebody else",
        ),
        (
            "Accept changes: contract: evolve in the source file.",
            "Or drop what depends on the column, run again, and make it anew.",
        ),
    ),
    "DW-COMMIT": Explanation(
        "The connection to the warehouse was lost at COMMIT, and it could not be asked what came of it."
        " The run is in the table whole, or not at all.",
        ("the warehouse, or the network, went down at that moment",),
        ("Run it again: the next run finds out, and loads nothing twice.",),
    ),
    "DW-LAKE": Explanation(
        "The lake cannot be written, or a file in it is missing or damaged.",
        ("the disk is full", "the folder belongs to another user", "files were changed or removed by hand"),
        (
            "Check folder and space: `dw doctor`.",
            "Where a file is damaged, read the source again: `dw run NAME`.",
        ),
    ),
    "DW-COUNTS": Explanation(
        "Rows read, staged and loaded are not the same number. Nothing was committed.",
        ("a trigger or a rule on the target table drops or adds rows", "a mistake in dw"),
        (
            "Look at triggers and rules of the target table.",
            "If it has none, please report it with the run's log.",
        ),
    ),
    "DW-LOCKED": Explanation(
        "The pipeline is already running, here or on another machine.",
        ("a schedule that is shorter than the run takes", "a run that waits for its source"),
        ("Wait: `dw status` shows it.", "In a schedule use `dw run --due`, which passes over it."),
    ),
    "DW-STOPPED": Explanation(
        "A signal ended the run (Ctrl-C, a service that was stopped). What was begun is rolled back.",
        ("Ctrl-C", "systemctl stop, docker stop, or a time limit"),
        ("Run it again: it goes on where the last good run ended.",),
        130,
    ),
    "DW-CONN": Explanation(
        "A server cannot be reached or used. The rest of the code says how far the connection got.",
        ("see DW-CONN-NAME, -PORT, -TLS, -LOGIN, -DATABASE, -PERMISSION, -LOST",),
        ("Go through it layer by layer: `dw test-connection NAME`.",),
    ),
    "DW-CONN-NAME": Explanation(
        "The first layer failed: the host's name does not resolve, or the file or program is not there.",
        (
            "a mistyped host",
            "a name that only another network or a VPN knows",
            "in a container: localhost means the container",
        ),
        ("Try the name: `getent hosts HOST`.", "Correct host (or the path) in the source file."),
    ),
    "DW-CONN-PORT": Explanation(
        "The name resolves, but nothing answers on the port.",
        (
            "the server is not running, or listens on another port",
            "it listens on 127.0.0.1 only",
            "a firewall or a security group in between",
        ),
        (
            "Start the server, or correct port.",
            "The project's own warehouse: `dw up`.",
            "Try the port from this machine: `nc -vz HOST PORT`.",
        ),
    ),
    "DW-CONN-TLS": Explanation(
        "The port answers, but no encrypted connection came about.",
        (
            "a certificate of an authority that this machine does not know, or for another name",
            "a certificate that is out of date; a clock that is wrong",
            "one side wants encryption and the other offers none",
        ),
        (
            "Name the authority's certificate (ca_file, sslrootcert, ssl_ca, as the source calls it).",
            "Check the clock: `dw doctor`.",
        ),
    ),
    "DW-CONN-LOGIN": Explanation(
        "The server answers, but does not let this user in.",
        (
            "a wrong or expired password or token",
            "a user that does not exist, or may not log in from this machine",
            "the server has no free connection for this user",
        ),
        (
            "Set the password that the source file refers to, in .env or in the environment.",
            "Try the login alone: `dw test-connection NAME`.",
        ),
    ),
    "DW-CONN-DATABASE": Explanation(
        "The login works, but the database (keyspace, bucket, queue, service) cannot be used.",
        ("it does not exist, or has another name", "it is starting up, recovering, or locked"),
        ("Correct the name in the source file.", "Wait a moment, then try `dw test-connection NAME`."),
    ),
    "DW-CONN-PERMISSION": Explanation(
        "The login works, but this user may not use or read it.",
        ("a right that was never granted", "a rule that allows only other machines", "a closed file"),
        ("Let its owner grant the right that the message names.", "Or log in as another user."),
    ),
    "DW-CONN-LOST": Explanation(
        "The connection broke while it was in use. Nothing of the unfinished part was kept.",
        (
            "the server was restarted, or ended the session",
            "a network or a proxy that drops connections which are quiet for long",
            "an answer that took longer than the time limit",
        ),
        (
            "Run it again: it goes on where the last good run ended.",
            "If it happens again: read less at once, or set the source's timeout higher.",
        ),
    ),
    "DW-CONN-READ": Explanation(
        "The connection works, but what the source offers cannot be listed.",
        ("the user may log in and not read the catalogue", "an answer that is not what was expected"),
        ("Let its owner grant reading.", "See the details: `dw test-connection NAME`."),
    ),
    "DW-SQL": Explanation(
        "The warehouse refused the SQL of `dw query`.",
        ("a mistake in it; ^ shows where", "a statement that changes something, without --write"),
        ("Correct it.", "Let it change something: `dw query --write …`."),
    ),
    "DW-INTERRUPTED": Explanation(
        "A run ended without a word. It is a mark in the audit log, made later by the next one.",
        ("kill -9, or no memory was left (the kernel's log says so)", "the machine stopped"),
        (
            "Run it again: what was complete in the lake is loaded from there.",
            "Where memory was short, lower memory: in dw.yaml.",
        ),
    ),
    "DW-BUG": Explanation(
        "A run met an error that dw does not know. What was begun is rolled back.",
        ("a mistake in dw or in a driver", "a machine without memory or file handles"),
        ("See the run and its log in .dw/logs/: `dw audit RUN`.", "Please report it with that log."),
    ),
    "DW-UNEXPECTED": Explanation(
        "dw met an error that it does not know.",
        ("a mistake in dw or in a driver", "a machine without memory or file handles"),
        ("The same command with -vv shows the traceback.", "Please report it with the file it names."),
    ),
}


def find(topic: str) -> str | None:
    """The code that a word means: `DW-CONN-LOGIN`, `conn-login`, `login`, `[DW-CONN-LOGIN]`; or None."""
    word = topic.strip().strip("[]").upper().replace("_", "-")
    return next((code for code in (word, f"DW-{word}", f"DW-CONN-{word}") if code in CODES), None)
