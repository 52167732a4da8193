"""`dw completion`: TAB in bash, zsh and fish, and the cache that it reads names from."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dwcli.cli._confirm import confirmed
from dwcli.cli._say import say
from dwcli.errors import UsageError
from dwcli.references import write_private

if TYPE_CHECKING:
    from dwcli.project import Project

Shell = Literal["bash", "zsh", "fish"]

#: The shell asks with the words typed so far, the last one being the one under the cursor. Where the first
#: line of `dw` names the Python that it runs in, that is asked: the script around it takes as long again.
SCRIPTS: dict[str, str] = {
    "bash": """\
_dw_complete() {
    local IFS=$'\\n' dw line
    local -a ask=(env "${COMP_WORDS[0]}")
    dw=$(type -P "${COMP_WORDS[0]}") && read -r line 2>/dev/null <"$dw"
    if [[ $line == '#!'/*python* && -x ${line#??} ]]; then
        ask=("${line#??}" -P -c 'from dwcli._entry import main; main()')
    fi
    COMPREPLY=($(_DW_COMPLETE=bash "${ask[@]}" -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -o bashdefault -F _dw_complete dw
""",
    "zsh": """\
#compdef dw
_dw_complete() {
    local line dw=${commands[${words[1]}]:-${words[1]}}
    local -a names ask=(env ${words[1]})
    [[ -r $dw ]] && read -r line 2>/dev/null <$dw
    if [[ $line == '#!'/*python* && -x ${line#??} ]]; then
        ask=(${line#??} -P -c 'from dwcli._entry import main; main()')
    fi
    for line in ${(f)"$(_DW_COMPLETE=zsh $ask -- "${(@)words[2,$CURRENT]}" 2>/dev/null)"}; do
        names+=("${${line%%$'\\t'*}//:/\\\\:}${${(M)line:#*$'\\t'*}:+:${line#*$'\\t'}}")
    done
    if (( $#names )); then
        _describe -t dw dw names
    else
        _files
    fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
compdef _dw_complete dw
""",
    "fish": """\
function __dw_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l ask $words[1]
    set -l dw (command -s $words[1])
    and read -l line <$dw
    and string match -rq '^#!/\\S*python\\S*$' -- $line
    and set ask (string sub -s 3 -- $line) -P -c 'from dwcli._entry import main; main()'
    set -l found (env _DW_COMPLETE=fish $ask -- $words[2..-1] 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete --command dw --no-files --arguments '(__dw_complete)'
""",
}


def completion(
    action: Annotated[
        Literal["install", "show"],
        typer.Argument(help="install: for every new shell; show: print the script."),
    ],
    shell: Annotated[Shell | None, typer.Argument(help="Which shell; else the one of $SHELL.")] = None,
) -> None:
    """TAB for commands, flags, sources, pipelines and runs."""
    chosen = shell or _shell_of_user()
    if action == "show":
        import sys

        sys.stdout.write(SCRIPTS[chosen])
        return
    _install(chosen)


def _shell_of_user() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    if name not in SCRIPTS:
        raise UsageError(
            f"which shell? $SHELL is '{name}'" if name else "which shell? $SHELL is not set",
            hint="dw completion install bash, zsh or fish",
        )
    return name


def startup_file(shell: str) -> Path:
    """The file that the shell reads when it starts, as its own documentation has it."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return {
        "bash": Path.home() / ".bashrc",
        "zsh": Path(os.environ.get("ZDOTDIR") or Path.home()) / ".zshrc",
        "fish": config / "fish" / "completions" / "dw.fish",
    }[shell]


def startup_text(shell: str) -> str:
    """What goes into that file. A shell without `dw` on its path starts as before."""
    if shell == "fish":
        return SCRIPTS["fish"]
    return f'command -v dw >/dev/null && eval "$(dw completion show {shell})"  # TAB for dw\n'


def _install(shell: str) -> None:
    path, text = startup_file(shell), startup_text(shell)
    before = path.read_text("utf-8", "replace") if path.exists() else ""
    if text in before:
        say(f"ok  {path} has it already")
        return
    say(f"To be added to {path}:\n")
    say("".join(f"    {line}\n" for line in text.splitlines()))
    if not confirmed("Write it?", f"dw completion install {shell}", default=True):
        say("Nothing was written.")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shell == "fish":
            path.write_text(text, "utf-8")
        else:
            with path.open("a", encoding="utf-8") as file:
                file.write(("\n" if before and not before.endswith("\n") else "") + text)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written",
            why=error.strerror or str(error),
            hint=f"add it by hand: dw completion show {shell}",
        ) from None
    say(f"ok  {path}")
    say(f"Next: {'open a new shell' if shell == 'fish' else f'source {shlex.quote(str(path))}'}")


def refresh_completion_cache(project: Project, tables: Iterable[str], run_ids: Iterable[str]) -> None:
    """Keep names for TAB, which never connects: the warehouse's tables, the newest runs.

    Called by commands that have just looked into the warehouse; what was known before stays, the newest
    runs first. A cache that cannot be written is no
    reason for them to fail.
    """
    from dwcli.cli._tab import cache

    before = cache(str(project.root))
    kept = {
        "tables": sorted({*before.get("tables", []), *tables})[:5000],
        "runs": list(dict.fromkeys([*run_ids, *before.get("runs", [])]))[:200],
    }
    try:
        project.private.mkdir(mode=0o700, exist_ok=True)
        write_private(project.private / "complete.json", json.dumps(kept) + "\n")
    except OSError:
        return
