"""One question before something is written or removed that no key takes back."""

from __future__ import annotations

from dwcli.cli import prompts
from dwcli.cli.settings import can_ask, settings
from dwcli.errors import AnswerMissing


def confirmed(question: str, command: str, default: bool = False) -> bool:
    """Whether a person says yes. --yes says it beforehand.

    command: what to type where nobody can be asked. Raises AnswerMissing there. default: what Enter says.
    """
    if settings().yes:
        return True
    if not can_ask():
        raise AnswerMissing(f"can't ask: {question} (no terminal, or --no-input)", hint=f"{command} --yes")
    with prompts.asking("Nothing was changed."):
        return prompts.confirm(question, default)
