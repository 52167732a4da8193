"""`dw edit NAME --editor`: a source's file in the person's own editor.

A copy is edited, so that no run meets a file that is half done; it takes the file's place once it is valid.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from dwcli.cli import prompts
from dwcli.cli._rewrite import difference
from dwcli.cli._say import say
from dwcli.cli.settings import can_ask, settings
from dwcli.errors import AnswerMissing, ConfigError, DwError, NameUnknown, ProjectMissing, UsageError

if TYPE_CHECKING:
    from dwcli.project import Project


def edit_file(name: str) -> None:
    """Open the file of a source, or of a pipeline's source; the file may be one that is not valid now.

    Raises AnswerMissing without a terminal, UsageError without an editor.
    """
    from dwcli.cli.edit import show_difference, validated, write

    if not can_ask():
        raise AnswerMissing("an editor needs a terminal", hint=f"dw edit {name} --help for flags instead")
    project = _project()
    path = _file_of(project, name)
    editor = _editor()
    before = path.read_bytes().decode("utf-8", "surrogateescape")
    copy = project.private / "drafts" / path.name
    copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    copy.write_bytes(path.read_bytes())
    try:
        while True:
            _open(editor, copy)
            try:
                after = copy.read_bytes().decode("utf-8")
                validated(project, path, after)
                break
            except (DwError, UnicodeDecodeError) as error:
                say(f"  FAIL  {error}", fold=True)
                if isinstance(error, DwError) and error.hint:
                    say(f"        fix: {error.hint}", fold=True)
            options = [("again", "Edit again"), ("back", "Go back: the file stays as it was")]
            with prompts.on_stderr():
                answer = prompts.choose("And now?", options, "again")
            if answer == "back":
                copy.unlink()
                say("Nothing was changed.")
                return
    except KeyboardInterrupt:
        say(f"\nNothing was changed. Your text is kept: {copy}")
        raise
    lines = difference(before, after, str(path))
    if not lines:
        say("Nothing was changed.")
    else:
        show_difference(lines)
        write(project, path, before, after, {})
    copy.unlink()


def _project() -> Project:
    """The project; where it is not valid, as much of it as there is, for a file in it may be the reason."""
    from dwcli.project import Project, ProjectConfig, find_root, load_project

    try:
        return load_project(settings().project)
    except ProjectMissing:
        raise
    except ConfigError:
        start = Path(settings().project or os.environ.get("DW_PROJECT") or ".").resolve()
        root = find_root(start)
        if root is None:
            raise
        return Project(root, ProjectConfig.model_validate({"name": "unread"}), {})


def _file_of(project: Project, name: str) -> Path:
    from dwcli.cli._named import named
    from dwcli.documents import nearest
    from dwcli.project import source_files

    files = {path.stem: path for path in source_files(project.root)}
    for word in (name, name.partition(".")[0]):
        if word in files:
            return files[word]
    if project.sources:
        return named(project, name)[0].path
    raise NameUnknown(
        f"there is no source '{name}'.{nearest(name, files)}", hint=f"known: {', '.join(files) or 'none'}"
    )


def _editor() -> list[str]:
    words = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "")
    if not words:
        words = [found for found in ("nano", "vi", "notepad") if shutil.which(found)][:1]
    if not words or not shutil.which(words[0]):
        raise UsageError(
            f"there is no editor '{words[0]}'" if words else "no editor is known",
            hint="export EDITOR=nano, or another that is installed",
        )
    return words


def _open(editor: list[str], path: Path) -> None:
    done = subprocess.run([*editor, str(path)], check=False)
    if done.returncode != 0:
        path.unlink(missing_ok=True)
        raise DwError(
            f"the editor ended with {done.returncode}: nothing was changed", hint="dw edit NAME --editor"
        )
