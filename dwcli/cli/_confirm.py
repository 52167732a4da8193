"""One question before something that cannot be taken back with a key."""

from __future__ import annotations

from dwcli.cli import prompts
from dwcli.cli.settings import can_ask, settings
from dwcli.errors import AnswerMissing


def confirmed(question: str, command: str) -> bool:
    """Whether a person says yes. --yes says it beforehand.

    command: what to type where nobody can be asked. Raises AnswerMissing there.
    """
    if settings().yes:
        return True
    if not can_ask():
        raise AnswerMissing(f"can't ask: {question} (no terminal, or --no-input)", hint=f"{command} --yes")
    with prompts.asking("Nothing was changed."):
        return prompts.confirm(question, default=False)
