"""What `dw doctor` looks at in the project folder: files, secrets, drivers, space. It connects to nothing."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwcli.errors import ConfigError, DwError, ProjectMissing
from dwcli.references import REFERENCE
from dwcli.render.doctor import Finding
from dwcli.render.words import count, size

if TYPE_CHECKING:
    from dwcli.connectors import Connector
    from dwcli.project import Project, Source

#: Free space below which a load may fail, and below which it fails soon.
LITTLE, NONE = 2 * 1024**3, 200 * 1024**2
#: Keys below the first level whose values are secret; the first level is known from the connector.
SECRET_KEY = re.compile(r"(?i)(password|passwd|secret|token|api[_-]?key|authorization|cookie)$")
PASSWORD_IN_URL = re.compile(r"://[^/@\s:]*:([^@\s]+)@")


@dataclass
class Folder:
    """A project as far as it can be read."""

    root: Path | None = None
    project: Project | None = None
    findings: list[Finding] = field(default_factory=list)


def read_folder(given: Path | str | None) -> Folder:
    """The project, or what of it is valid, with a finding for each file that is not.

    given: the folder that was asked for; None for here and above.
    """
    from dwcli.project import Project, find_root, load_project, pipelines_of, read_config

    try:
        project = load_project(given)
    except ProjectMissing as error:
        return Folder(findings=[Finding("project", "fail" if given else "warn", error.message, error.hint)])
    except ConfigError as error:
        start = Path(given or ".").resolve()
        root = find_root(start)
        assert root is not None
        try:
            config = read_config(root)
        except ConfigError as reason:
            return Folder(root, None, [_invalid(root, reason, "dw.yaml")])
        sources, findings = _valid_sources(root)
        return Folder(root, Project(root, config, sources), findings or [_invalid(root, error, "sources/")])
    told = ", ".join(
        [count(len(project.sources), "source"), count(len(pipelines_of(project)), "pipeline"), "files valid"]
    )
    finding = Finding("project", "ok", f"{project.config.name}: {told}")
    if not project.sources:
        finding = Finding("project", "warn", f"{project.config.name}: no sources yet", "dw add-source")
    return Folder(project.root, project, [finding])


def _invalid(root: Path, error: DwError, file: str) -> Finding:
    said = f"{error.message} ({error.why})" if error.why else error.message
    return Finding("project", "fail", said.replace(f"{root}{os.sep}", ""), error.hint or f"edit {file}")


def _valid_sources(root: Path) -> tuple[dict[str, Source], list[Finding]]:
    from dwcli.project import read_source, source_files

    sources: dict[str, Source] = {}
    findings = []
    for path in source_files(root):
        try:
            sources[path.stem] = read_source(path)
        except ConfigError as error:
            findings.append(_invalid(root, error, str(path.relative_to(root))))
    return sources, findings


# -- who may read what ---------------------------------------------------------------------------------


def permissions(root: Path) -> Iterator[Finding]:
    """`.env` for its owner alone, `.dw` too; git passes over both."""
    from dwcli.references import others_can_read

    env, private = root / ".env", root / ".dw"
    if env.exists():
        mode = stat.S_IMODE(env.stat().st_mode)
        if others_can_read(env):
            yield Finding(
                "secrets",
                "fail",
                f".env may be read by others (mode {mode:04o})",
                "chmod 600 .env",
                lambda: _restrict(env, 0o600),
            )
        else:
            yield Finding("secrets", "ok", f".env is its owner's alone ({mode:04o})")
    if private.is_dir():
        yield _of_private(private)
    yield from _in_git(root)


def _of_private(private: Path) -> Finding:
    found = private.stat()
    mode = stat.S_IMODE(found.st_mode)
    # For root the warehouse's server runs as another account, which passes through with its group.
    passing = stat.S_IXGRP if found.st_uid == 0 else 0
    if mode & 0o077 & ~passing:
        return Finding(
            "secrets",
            "fail",
            f".dw is open to others (mode {mode:04o})",
            f"chmod {0o700 | mode & passing:o} .dw",
            lambda: _restrict(private, 0o700 | mode & passing),
        )
    return Finding("secrets", "ok", f".dw is its owner's alone ({mode:04o})")


def _restrict(path: Path, mode: int) -> str:
    path.chmod(mode)
    return f"chmod {mode:o} {path.name}"


def _in_git(root: Path) -> Iterator[Finding]:
    from dwcli.cli._secrets import ignore, is_tracked

    names = (".env", ".dw/")
    tracked = [name for name in names if is_tracked(root, name)]
    if tracked:
        yield Finding(
            "secrets",
            "fail",
            f"{' and '.join(tracked)} in git: it is published with the next push",
            f"git rm -r --cached {' '.join(tracked)}, commit that, and change the secrets in it",
        )
    answers = {name: _ignored(root, name) for name in names}
    open_ = [name for name, ignored in answers.items() if not ignored]
    if not open_:
        if not tracked:
            yield Finding("secrets", "ok", "git passes over .env and .dw")
        return
    in_repository = answers[open_[0]] is False

    def mend() -> str:
        ignore(root, open_)
        return f"{' and '.join(open_)} added to .gitignore"

    yield Finding(
        "secrets",
        "fail" if in_repository and ".env" in open_ and (root / ".env").exists() else "warn",
        f"git does not pass over {' and '.join(open_)}",
        f"add to .gitignore: {' '.join(open_)}",
        mend,
    )


def _ignored(root: Path, name: str) -> bool | None:
    """Whether git passes over a name. Outside of a repository None: a .gitignore does not say so."""
    inside = f"{name}x" if name.endswith("/") else name  # a folder that may not be there yet
    try:
        done = subprocess.run(
            ["git", "check-ignore", "-q", "--no-index", "--", inside],
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=5,
        )
        if done.returncode in (0, 1):
            return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        pass
    try:
        lines = (root / ".gitignore").read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return name.strip("/") in {line.strip().strip("/") for line in lines} or None


def plain_secrets(project: Project) -> Iterator[Finding]:
    """Secrets that stand in the files which git keeps."""
    found = []
    if "://" in project.config.warehouse and _is_secret(project.config.warehouse):
        found.append(
            Finding("secrets", "fail", "dw.yaml holds a password: warehouse", _to_env("DW_PASSWORD", "user:"))
        )
    for source in project.sources.values():
        file = source.path.relative_to(project.root)
        found += [
            Finding(
                "secrets",
                "fail",
                f"{file} holds a secret in plain text: {key}",
                _to_env(f"{source.name}_{key}", f"{key.rpartition('.')[2]}: "),
            )
            for key in secret_keys(source)
        ]
    yield from found or [Finding("secrets", "ok", "no secret stands in dw.yaml or sources/")]


def _to_env(name: str, before: str) -> str:
    name = re.sub(r"[^A-Z0-9]+", "_", name.upper())
    return f"write {before}${{env:{name}}} there, and {name}=… in .env"


def secret_keys(source: Source) -> list[str]:
    """The keys of a source, such as `password` or `headers.Authorization`, that hold a secret themselves."""
    from dwcli.cli.forms import fields_of
    from dwcli.connectors import load

    try:
        known = {field.name: field for field in fields_of(load(source.protocol).Config)}
    except DwError:  # an unknown protocol is told elsewhere
        known = {}
    found = []
    for key, value in source.connection.items():
        one = key in known and known[key].secret and not isinstance(value, Mapping | list)
        found += [key] if one and _is_secret(value) else list(_below(key, value))
    return found


def _below(path: str, value: Any) -> Iterator[str]:
    """Secrets in what is nested, by the look of their keys, and passwords in URLs."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if SECRET_KEY.search(str(key)) and not isinstance(item, Mapping | list) and _is_secret(item):
                yield f"{path}.{key}"
            else:
                yield from _below(f"{path}.{key}", item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _below(f"{path}.{number}", item)
    elif isinstance(value, str) and "://" in value and _is_secret(value):
        yield path


def _is_secret(value: Any) -> bool:
    """Whether the value of a secret field is written out; of a URL only its password counts."""
    if value is None or isinstance(value, bool) or not str(value):
        return False
    text = str(value)
    if "://" in text:
        return PASSWORD_IN_URL.search(REFERENCE.sub("", text)) is not None
    return not REFERENCE.search(text)


# -- what the sources need -----------------------------------------------------------------------------


def drivers(project: Project) -> Iterator[Finding]:
    """The drivers of the sources that there are."""
    from dwcli.connectors import extra, missing_packages, resolve_name, title

    used = set()
    for source in project.sources.values():
        try:
            used.add(resolve_name(source.protocol))
        except DwError:
            continue
    lacking = {protocol: missing for protocol in sorted(used) if (missing := missing_packages(protocol))}
    for protocol, missing in lacking.items():
        yield Finding(
            "drivers",
            "fail",
            f"{title(protocol)} needs {', '.join(missing)}, which is not installed",
            f"pip install 'dwcli[{extra(protocol) or protocol}]'",
        )
    if used and not lacking:
        yield Finding("drivers", "ok", f"installed: {', '.join(sorted(used))}")


def configured(project: Project, connectors: dict[str, Connector]) -> Iterator[Finding]:
    """What is wrong with the values of sources; `connectors` gets one for each that is complete."""
    from dwcli.connectors import create_connector
    from dwcli.project import connection_values

    for source in project.sources.values():
        try:
            connectors[source.name] = create_connector(connection_values(project, source))
        except DwError as error:
            fix = error.hint or f"edit {source.path.relative_to(project.root)}"
            yield Finding("sources", "fail", f"{source.name}: {error.message}", fix)


# -- space ---------------------------------------------------------------------------------------------


def disks(project: Project, warehouse: Path | None) -> Iterator[Finding]:
    """Free space where the lake, dw's own files and the warehouse are; a disk is told once.

    warehouse: the folder of the project's own warehouse.
    """
    folders = {".dw": project.private}
    if "://" not in project.config.lake:
        folders["lake"] = project.lake
        there = _nearest(project.lake)
        if not os.access(there, os.W_OK | os.X_OK):
            yield Finding("disk", "fail", f"the lake cannot be written: {there}", f"ls -ld {there}")
    if warehouse is not None:
        folders["warehouse"] = warehouse
    named: dict[int, list[str]] = {}
    for name, folder in folders.items():
        named.setdefault(_nearest(folder).stat().st_dev, []).append(name)
    for names in named.values():
        yield space(", ".join(names), _nearest(folders[names[0]]))


def space(names: str, folder: Path) -> Finding:
    """How much room is left on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    files = os.statvfs(folder)
    fix = f"dw clean --dry-run, or make room: df -h {folder}"
    if files.f_files and not files.f_favail:
        return Finding("disk", "fail", f"no file can be made any more: {names}", f"df -i {folder}")
    if free < NONE:
        return Finding("disk", "fail", f"{size(free)} free: {names}", fix)
    if free < LITTLE:
        return Finding("disk", "warn", f"only {size(free)} free: {names}", fix)
    return Finding("disk", "ok", f"{size(free)} free: {names}")


def _nearest(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


# -- the schedule --------------------------------------------------------------------------------------


def timer_of(project: Project) -> Iterator[Finding]:
    """Whether anything calls `dw run --due` for the pipelines that have a time."""
    from dwcli.cli import _timers
    from dwcli.cli._due import with_a_time
    from dwcli.clock import tick_minutes

    times = [pipeline.config.every or "" for pipeline in with_a_time(project, [])]
    timer = _timers.timer_for(project.config.name, project.root, tick_minutes(times))
    there = _timers.installed(timer)
    timed, on = f"{count(len(times), 'pipeline')} with every:", "dw schedule on"
    if there is None and times:
        if _timers.has_systemd() or _timers.cron_lines_or_none() is not None:
            yield Finding("schedule", "warn", f"{timed}, and no timer that runs them", on)
        else:
            said = "no systemd or cron here, another scheduler has to call dw run --due"
            yield Finding("schedule", "ok", f"{timed}; {said}")
    elif there is not None and not times:
        said = f"the timer {there['name']} finds no pipeline with every:"
        yield Finding("schedule", "warn", said, "dw schedule off")
    elif there is not None and not there["current"]:
        yield Finding("schedule", "warn", f"the timer {there['name']} is off or out of date", on)
    elif there is not None:
        rhythm = _timers.rhythm(timer.minutes)
        yield Finding("schedule", "ok", f"{timed}, looked at {rhythm} by {there['by']}")
