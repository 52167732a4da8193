"""A Singer tap as a program: where it is, how it is installed, run and ended."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from dwcli.errors import ConfigError, ConnectionFailed, QueryFailed
from dwcli.log import get_logger
from dwcli.references import redact

log = get_logger(__name__)

#: A requirement as pip takes it: a name, extras, versions, or a place to get it from.
REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[\w, .-]*\])?"
    r"(\s*(==|>=|<=|~=|!=|<|>)[\w.*+!]+(\s*,\s*(==|>=|<=|~=|!=|<|>)[\w.*+!]+)*|\s*@\s*\S+)?"
)
#: Keys of a tap's config whose values are kept out of logs and errors.
SECRET_KEYS = re.compile(r"(?i)pass|secret|token|key|credential|auth|dsn|connection_string|url|uri")
FOLDERS = "dw-tap-"
#: Seconds that a tap gets between the request to end and the end.
GRACE_SECONDS = 5.0
LAST_LINES = 12
READ_BYTES = 256 * 1024
#: One message larger than this is no row.
MAX_LINE_BYTES = 64 * 1024 * 1024


# -- where it is -----------------------------------------------------------------------------------------


def locate(tap: str, executable: str, folder: Path) -> str:
    """The path of the tap's program; a package is installed on its first use.

    tap: a path, the name of a program on the PATH, or a package as pip takes it (`tap-x==1.2`).
    executable: the program's name where it is not the package's. folder: where packages are installed.

    Raises ConnectionFailed when there is no such program and it cannot be installed.
    """
    if os.sep in tap and REQUIREMENT.fullmatch(tap) is None:
        path = Path(tap).expanduser()
        if not path.is_file():
            raise ConnectionFailed(
                f"there is no tap at {path}", layer="name", hint="check tap; it is read from where dw runs"
            )
        if not os.access(path, os.X_OK):
            raise ConnectionFailed(f"{path} is no program", layer="permission", hint=f"chmod +x {path}")
        return str(path.resolve())
    match = REQUIREMENT.fullmatch(tap)
    if match is None:
        raise ConfigError(
            f"'{tap}' is neither a path nor a package",
            hint="tap: /path/to/tap-shop, or tap: tap-shop==1.2",
        )
    found = shutil.which(tap)
    return found or _installed(tap, match["name"], executable, folder.expanduser())


def _installed(requirement: str, name: str, executable: str, folder: Path) -> str:
    """The program in an environment of its own, which is made if it is not there yet."""
    digest = hashlib.sha256(requirement.encode()).hexdigest()[:8]
    home = folder / f"{name.lower()}-{digest}"
    ready = home / ".ready"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            log.warning("installing %s into %s: this happens once", requirement, home)
            _install(requirement, home)
            ready.write_text(requirement, "utf-8")
    return _program(home / "bin", name, executable)


def _install(requirement: str, home: Path) -> None:
    if home.exists():
        shutil.rmtree(home)  # what an interrupted installation left
    pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    for command in ([sys.executable, "-m", "venv", str(home)], [*pip, "install", "--quiet", requirement]):
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_environment()
        )
        if done.returncode:
            shutil.rmtree(home, ignore_errors=True)
            lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise ConnectionFailed(
                f"the package {requirement} cannot be installed",
                layer="name",
                why=" ".join(lines[-3:])[:600],
                hint="check the package's name, or install the tap yourself and give the path of its program",
            )


def _program(bin: Path, name: str, executable: str) -> str:
    wanted = [executable] if executable else [name, name.replace("_", "-"), name.lower()]
    for candidate in wanted:
        if (bin / candidate).is_file():
            return str(bin / candidate)
    taps = sorted(path.name for path in bin.glob("tap-*"))
    if len(taps) == 1 and not executable:
        return str(bin / taps[0])
    raise ConnectionFailed(
        f"the package {name} brings no program {executable or name}",
        layer="name",
        hint=f"set executable to one of: {', '.join(taps)}" if taps else "check that it is a Singer tap",
    )


def _environment() -> dict[str, str]:
    """The process's environment without what would make the tap's Python look for this one's packages."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


# -- what it is given ------------------------------------------------------------------------------------


@contextlib.contextmanager
def papers(documents: Mapping[str, Any], held: list[Path]) -> Iterator[dict[str, str]]:
    """The documents as JSON files that the owner alone can read, by name; gone when the context ends.

    held: the folders in use, among them this one while the context lasts. When a run is ended, its reading
    thread may not come to the end of the context; then `discard` removes them.
    What a killed run left behind is removed first. A folder is held by a lock, which dies with its
    process; the number of a process could be another's by now.
    """
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=FOLDERS))  # 0700
    held.append(folder)
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            paths = {}
            for name, document in documents.items():
                path = folder / f"{name}.json"
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(document, file)
                paths[name] = str(path)
            yield paths
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(ValueError):
            held.remove(folder)


def discard(held: Sequence[Path]) -> None:
    """Remove folders of documents, whatever still uses them."""
    for folder in [*held]:
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> int:
    """Remove the folders of runs that were killed. Returns how many there were."""
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDERS}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid != os.getuid() or not (folder / "lock").exists():
                continue  # another's, or one that is being made
            with (folder / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                removed += 1
    return removed


def secrets_in(config: Any, name: str = "") -> list[str]:
    """The values in a tap's config that are kept out of logs and errors, by the names of their keys."""
    if isinstance(config, dict):
        return [secret for key, value in config.items() for secret in secrets_in(value, str(key))]
    if isinstance(config, list):
        return [secret for value in config for secret in secrets_in(value, name)]
    return [config] if isinstance(config, str) and SECRET_KEYS.search(name) else []


# -- running it ------------------------------------------------------------------------------------------


@dataclass
class Tap:
    """A tap that runs. Its errors are read by a thread, so that it never waits for its reader."""

    name: str
    process: subprocess.Popen[bytes]
    secrets: Sequence[str]
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    listener: threading.Thread | None = None
    #: set when dw ended it
    stopped: bool = False


def start(command: Sequence[str], secrets: Sequence[str]) -> Tap:
    """Run a tap in a process group of its own. Raises ConnectionFailed when it is no program."""
    name = Path(command[0]).name
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env=_environment(),
        )
    except OSError as error:
        raise ConnectionFailed(
            f"{command[0]} cannot be run",
            layer="permission",
            why=error.strerror or str(error),
            hint="a script needs its interpreter in the first line, such as #!/usr/bin/env python3",
        ) from None
    assert process.stdout is not None
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 1024 * 1024)  # fewer changes between the two
    tap = Tap(name, process, secrets)
    tap.listener = threading.Thread(target=_listen, args=(tap,), name=f"{name} errors", daemon=True)
    tap.listener.start()
    return tap


def _listen(tap: Tap) -> None:
    assert tap.process.stderr is not None
    for line in tap.process.stderr:
        text = redact(line.decode("utf-8", "replace").rstrip(), tap.secrets)[:2000]
        if text:
            log.info("%s: %s", tap.name, text)
            tap.last_lines.append(text)


def output(tap: Tap) -> Iterator[bytes]:
    """What the tap writes, as pieces that end with a line. Raises QueryFailed when it did not end well."""
    stream: IO[bytes] | None = tap.process.stdout
    assert stream is not None
    rest: list[bytes] = []
    held = 0
    while chunk := stream.read(READ_BYTES):
        cut = chunk.rfind(b"\n") + 1
        if cut:
            yield b"".join([*rest, chunk[:cut]])
            rest, held = [chunk[cut:]], len(chunk) - cut
        else:
            rest.append(chunk)
            held += len(chunk)
            if held > MAX_LINE_BYTES:
                raise QueryFailed(f"{tap.name} wrote a line of more than {MAX_LINE_BYTES:,} bytes")
    ended_well(tap)
    if held:
        yield b"".join(rest)


def ended_well(tap: Tap) -> None:
    """Wait for the end. Raises QueryFailed with the last lines of its errors unless it is a good one."""
    code = tap.process.wait()
    if tap.listener is not None:
        tap.listener.join(GRACE_SECONDS)
    if tap.stopped:
        raise ConnectionFailed("the read was stopped", layer="lost")
    if code == 0:
        return
    how = f"was ended by {_signal_name(-code)}" if code < 0 else f"failed with exit code {code}"
    raise QueryFailed(
        f"{tap.name} {how}",
        why="\n".join(tap.last_lines) or "it said nothing on standard error",
        hint="check tap_config against the tap's own documentation",
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def stop(tap: Tap) -> None:
    """End the tap and whatever it started, if it still runs."""
    tap.stopped = True
    if tap.process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(tap.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                tap.process.wait(GRACE_SECONDS)
                break
    if tap.listener is not None:
        tap.listener.join(GRACE_SECONDS)


def release(tap: Tap) -> None:
    """End the tap and close its pipes; by the one who reads them."""
    stop(tap)
    for stream in (tap.process.stdout, tap.process.stderr):
        if stream is not None:
            stream.close()
