"""A person in front of `dw add-source`: answers what is asked on the screen, and nothing else.

What to answer comes from the connector's own configuration model, so a new kind of source needs no word here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pexpect
from pydantic import BaseModel, SecretStr

from dwcli.cli import forms
from dwcli.connectors import load

ENTER, DOWN, UP, SPACE, ERASE = "\r", "\x1b[B", "\x1b[A", " ", "\x15"
#: A screen on which no line is broken and no list is cut.
ROWS, COLUMNS = 60, 250
#: What a terminal obeys: colours, and where the next characters go.
CONTROLS = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>()][A-Z0-9]?)")
#: Between two words of a question: its colours, and the way to the next line.
SPACED = r"(?:\x1b\[[0-9;?]*[A-Za-z]|\s)*"
#: Questions that may come several times; only a new one has its options behind it.
AGAIN = rf"Ready to connect\?{SPACED}»|Which\?{SPACED}\(type to filter\)"
#: What a case has where its query says it.
UNUSED = "unused"


@dataclass
class Person:
    """What one person knows of a source, and has not been asked yet."""

    child: pexpect.spawn
    protocol: str
    query: str
    #: answers by field, as text or yes and no; a field without one is left as it is
    answers: dict[str, Any]
    fields: dict[str, forms.Field]
    #: everything asked, for the message of a failure
    asked: list[str] = field(default_factory=list)


def add_source(child: pexpect.spawn, protocol: str, config: Mapping[str, Any], query: str) -> list[str]:
    """Go through the wizard, from the kind of source to the end of the first load; the questions asked."""
    model: type[BaseModel] = load(protocol).Config
    fields = {one.name: one for one in forms.fields_of(model)}
    answers = {
        name: query if value == UNUSED else value
        for name, value in config.items()
        if value is not None and value != "" and not _is_default(fields[name], value)
    }
    answers |= {name: "" for name, value in config.items() if value == "" and fields[name].default}
    person = Person(child, protocol, query, answers, fields)
    while _answer_next(person):
        pass
    return person.asked


def _is_default(one: forms.Field, value: Any) -> bool:
    default = one.default.get_secret_value() if isinstance(one.default, SecretStr) else one.default
    return bool(forms.as_text(default) == forms.as_text(value)) and not one.secret


def _answer_next(person: Person) -> bool:
    """Wait for a question and answer it; False when the program has ended."""
    child = person.child
    steps = {
        "What kind of source?": lambda: child.send(person.protocol + ENTER),
        "Name": lambda: child.send(ENTER),
        "How to connect": lambda: child.send(ENTER),
        "Name of the pipeline": lambda: child.send(ERASE + "orders" + ENTER),
        "Load now?": lambda: child.send(ENTER),
    }
    questions = {text: one for one in person.fields.values() for text in (forms.hint(one), one.question)}
    words = [re.escape(text) for text in (*steps, *questions)]
    words += [r"Which [\w ]+\?", r"What to read: .+?", r"(?:Key|Cursor|Write|Every) \([\w ]+\)", r"And now\?"]
    question = re.compile(rf"\?{SPACED}(?:({AGAIN})|({'|'.join(words)}) ?\x1b)")
    if child.expect([pexpect.EOF, question]) == 0:
        return False
    again, said = child.match.groups()
    if again:
        said = again.partition("?")[0] + "?"
    elif said in person.asked:  # it is written once more when it is answered
        return True
    assert said != "And now?", f"after {person.asked}: {plain(child.before)}"
    assert len(person.asked) < 100, person.asked
    person.asked.append(said)
    if said == "Ready to connect?":
        child.send((DOWN if person.answers else "") + ENTER)
    elif said == "Which?":
        child.send(f"{next(iter(person.answers))}:{ENTER}")
    elif said.startswith("Which "):
        _pick(person)
    elif said.startswith("What to read"):
        child.send(person.query + ENTER)
    elif said in questions and said not in steps:
        _answer(person, questions[said])
    else:
        steps.get(said, lambda: child.send(ENTER))()
    return True


def plain(text: str) -> str:
    """What was written to a terminal, as lines of text."""
    return CONTROLS.sub("", text).replace("\r", "")


def _answer(person: Person, one: forms.Field) -> None:
    known = one.name in person.answers
    value = person.answers.pop(one.name, None)
    if one.secret and one.shape == "one":
        _answer_secret(person, one, value)
    elif one.type is bool and one.shape == "one":
        _choose(person, ["True", "False"], str(one.default), str(value if known else one.default))
    elif one.choices and one.shape == "one":
        usual = str(one.default or one.choices[0])
        _choose(person, [*one.choices], usual, str(value if known else usual))
    else:
        person.child.send((ERASE + forms.typed(one, value) if known else "") + ENTER)


def _choose(person: Person, options: list[str], usual: str, wanted: str) -> None:
    person.child.send(DOWN * ((options.index(wanted) - options.index(usual)) % len(options)) + ENTER)


def _answer_secret(person: Person, one: forms.Field, value: Any) -> None:
    """Typed now; or, of a secret that the source does not have, that there is none."""
    often_none = one.name in forms.OFTEN_NONE
    if value:
        person.child.send(DOWN * often_none + ENTER)
        person.child.expect_exact("[hidden]")
        person.child.send(str(value) + ENTER)
    else:
        assert not one.required, f"{one.name} is needed, and the case has none"
        person.child.send(UP * (not often_none) + ENTER)


def _pick(person: Person) -> None:
    """Tick what is to be read; what is not in the list is typed."""
    child = person.child
    child.expect_exact("something else:")
    lines = plain(child.before).split("\n")
    listed = [match[1] for line in lines if (match := re.search(r"[○●]\s+(\S.*?)(?:\s{2,}|$)", line))]
    assert listed, lines
    ticked = "●" in child.before
    wanted = [
        name
        for name in listed
        if _bare(name).split(".", 1)[-1] == person.query or _bare(name) == _bare(person.query)
    ]
    if wanted and not ticked:
        child.send(wanted[0] + SPACE)
        child.expect_exact("●")
    elif not wanted:
        # the last of the list is one step up from the first
        child.send((SPACE if ticked else "") + UP + SPACE)
    child.send(ENTER)


def _bare(name: str) -> str:
    """A name without quotes and schema."""
    return re.sub(r"""["'`\[\]]""", "", name).removeprefix("public.")
