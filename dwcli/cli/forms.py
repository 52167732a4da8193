"""One config model, five uses: flags, questions, problems, docs, completion.

A connector declares its configuration once, as a pydantic model. `fields_of` flattens it into plain
`Field` records, and each front end is a small function over those records. Whoever collected the
answers, the model is the only judge.

An answer to a secret field is a reference (`${env:NAME}`, `${file:PATH}`) or, typed by a person, a
`SecretStr`; `split_secrets` turns the latter into references and values for `.env`.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from dwcli.errors import UsageError

#: How many values a field holds, and how each is written on the command line.
Shape = Literal["one", "list", "dict", "other"]
#: Secrets that sources open to everybody do without: Enter says that there is none.
OFTEN_NONE = ("token", "api_key")


@dataclass(frozen=True)
class Field:
    """What every front end needs to know about one configuration value."""

    name: str
    #: the type of one value: of the items, where the field holds several
    type: Any
    shape: Shape
    help: str
    required: bool
    default: Any
    choices: tuple[str, ...]
    secret: bool
    #: has a flag, but is no question of the wizard
    advanced: bool
    #: other fields, and the values of them, one of which makes this a question; no values: any answer
    needs: Mapping[str, tuple[str, ...]]
    #: the same, for what makes this no question any more
    unless: Mapping[str, tuple[str, ...]]
    example: str
    check: Callable[[Any], Any]

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def flags(self) -> tuple[str, ...]:
        """Every flag that can answer this field, the best one first."""
        if self.secret:
            ways = ("env", "file") if self.shape == "dict" else ("env", "file", "stdin")
            return tuple(f"{self.flag}-{way}" for way in ways)
        return (self.flag,)

    @property
    def question(self) -> str:
        words = self.help or self.name.replace("_", " ")
        return words[:1].upper() + words[1:]


def fields_of(model: type[BaseModel]) -> list[Field]:
    """Flatten a model into form fields, in declaration order; what every connector has comes last."""
    fields = [_field(info.alias or name, info) for name, info in model.model_fields.items()]
    return sorted(fields, key=lambda field: field.advanced)


def questions_of(model: type[BaseModel]) -> list[Field]:
    """The fields that a wizard asks for."""
    return [field for field in fields_of(model) if not field.advanced]


def is_question(field: Field, fields: Sequence[Field], answers: Mapping[str, Any]) -> bool:
    """Whether a field still means something after these answers: no password where there is no user."""
    defaults = {other.name: other.default for other in fields}

    def holds(name: str, values: tuple[str, ...]) -> bool:
        value = answers.get(name, defaults.get(name))
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        return str(value) in values if values else bool(value)

    if not field.required and any(holds(name, values) for name, values in field.unless.items()):
        return False
    return field.required or not field.needs or any(holds(n, values) for n, values in field.needs.items())


def _field(name: str, info: Any) -> Field:
    whole = _without_none(info.annotation)
    shape, single = _shape(whole)
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    constrained: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    return Field(
        name=name,
        type=single,
        shape=shape,
        help=info.description or "",
        required=info.is_required(),
        default=default,
        choices=tuple(str(c) for c in get_args(single)) if get_origin(single) is Literal else (),
        secret=single is SecretStr,
        advanced=bool(extra.get("advanced")),
        needs=_conditions(extra.get("needs")),
        unless=_conditions(extra.get("unless")),
        example=str(info.examples[0]) if info.examples else "",
        check=TypeAdapter(constrained).validate_python,
    )


def _conditions(given: Any) -> dict[str, tuple[str, ...]]:
    """`"username"`, or `{"format": ["excel"]}`, as names and values."""
    if isinstance(given, dict):
        return {name: tuple(values) for name, values in given.items()}
    return {given: ()} if given else {}


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _without_none(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        rest = [item for item in get_args(annotation) if item is not NoneType]
        # several kinds of value: the simplest one is what a command line can carry
        bare = [_without_none(item) for item in rest]
        plain = [item for item in bare if item in (SecretStr, str)]
        return bare[0] if len(bare) == 1 else (plain or [annotation])[0]
    return annotation


def _shape(annotation: Any) -> tuple[Shape, Any]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (list, tuple, set, frozenset):
        return "list", _without_none(inner[0]) if inner else str
    if origin is dict or annotation is dict:
        value = _without_none(inner[1]) if inner else str
        return ("dict", value if value is SecretStr else str) if _is_plain(value) else ("other", str)
    if _is_plain(annotation):
        return "one", annotation
    return "other", str


def _is_plain(annotation: Any) -> bool:
    return annotation in (str, int, float, bool, Path, SecretStr, Any) or get_origin(annotation) is Literal


# -- flags --------------------------------------------------------------------------------------------


def parameters(model: type[BaseModel], panel: str = "") -> dict[str, inspect.Parameter]:
    """One Typer option per field, or three for a secret, which never takes a value itself.

    panel: the title that they stand under in `--help`; else they are sorted by how much they are needed.
    """
    found: dict[str, inspect.Parameter] = {}
    for field in sorted(
        fields_of(model), key=lambda f: (not f.required, f.advanced, f.name == "batch_bytes")
    ):
        for flag in field.flags:
            parameter = _parameter(field, flag, panel)
            found[parameter.name] = parameter
    return found


def _parameter(field: Field, flag: str, title: str) -> inspect.Parameter:
    import typer

    kind, metavar, text = _flag_type(field), _metavar(field), field.help
    if field.secret:
        way = flag.removeprefix(field.flag + "-")
        kind = {"stdin": bool}.get(way, list[str] if field.shape == "dict" else str)
        metavar = {"env": "VARIABLE", "file": "PATH", "stdin": ""}[way]
        metavar = f"NAME={metavar}" if field.shape == "dict" else metavar
        text = {
            "env": f"{field.help}: the environment variable that holds it",
            "file": f"{field.help}: the file that holds it",
            "stdin": f"{field.help}: read from standard input",
        }[way]
    shown = "" if field.default in (None, "", [], {}, ()) or field.secret else str(field.default)
    panel = "Required" if field.required else "Advanced" if field.advanced else "Optional"
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool and not field.secret else flag,
        help=text,
        show_default=shown or False,
        rich_help_panel=title or f"{panel} for this kind of source",
        metavar=None if field.choices else metavar,
    )
    return inspect.Parameter(
        flag[2:].replace("-", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _flag_type(field: Field) -> Any:
    if field.shape in ("list", "dict"):
        return list[str]
    if field.shape == "other" or field.type in (Path, Any):
        return str
    return field.type


def _metavar(field: Field) -> str:
    if field.shape == "dict":
        return "NAME=VALUE"
    if field.type is bool:
        return ""
    if field.shape == "other":
        return "JSON"
    return field.name.upper()


def answers_from_flags(model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """Config values from what `parameters` let a person give; fields without a flag are left out.

    Raises UsageError for a NAME=VALUE without `=`, and for two ways to give one secret.
    """
    answers: dict[str, Any] = {}
    for field in fields_of(model):
        values = {
            flag: given[flag[2:].replace("-", "_")]
            for flag in field.flags
            if given.get(flag[2:].replace("-", "_")) not in (None, [], False)
            or (not field.secret and given.get(flag[2:].replace("-", "_")) is False)
        }
        if len(values) > 1:
            raise UsageError(f"{' and '.join(values)} say the same thing twice", hint="give one of them")
        for flag, value in values.items():
            answers[field.name] = _answer(field, flag, value)
    return answers


def _answer(field: Field, flag: str, value: Any) -> Any:
    if field.secret:
        return _secret_answer(field, flag.removeprefix(field.flag + "-"), value)
    if field.shape == "dict":
        return {name: item for name, item in (_pair(flag, text) for text in value)}
    if field.shape == "list":
        return [item.strip() for text in value for item in _list_items(text)]
    if field.shape == "other":
        return _parsed(flag, value)
    return value


def _list_items(text: str) -> list[str]:
    return text.split(",") if "," in text else [text]


def _secret_answer(field: Field, way: str, value: Any) -> Any:
    if way == "stdin":
        return SecretStr(sys.stdin.readline().rstrip("\r\n"))
    if field.shape == "dict":
        pairs = (_pair(f"{field.flag}-{way}", text) for text in value)
        return {name: f"${{{way}:{item}}}" for name, item in pairs}
    return f"${{{way}:{value}}}"


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{flag} is written NAME=VALUE", hint=f"{flag} NAME=VALUE")
    return name.strip(), value


def _parsed(flag: str, text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError:
        if text.lstrip()[:1] in ("{", "["):
            raise UsageError(f"{flag} is not valid JSON") from None
        return text


def flags_from_answers(model: type[BaseModel], answers: Mapping[str, Any]) -> list[str]:
    """The flags that say the same as these answers; typed secrets must be references by now."""
    words: list[str] = []
    for field in fields_of(model):
        if field.name not in answers or answers[field.name] == field.default:
            continue
        words += flag_words(field, answers[field.name])
    return words


def flag_words(field: Field, value: Any) -> list[str]:
    """The flags that give a field this value."""
    if field.secret:
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        words: list[str] = []
        for name, text in pairs:
            match = re.fullmatch(r"\$\{(env|file):([^}]+)\}", str(text))
            way, target = (match[1], match[2]) if match else ("env", "VARIABLE")
            words += [f"{field.flag}-{way}", f"{name}={target}" if name else target]
        return words
    if field.shape == "dict":
        return [word for name, item in value.items() for word in (field.flag, f"{name}={item}")]
    if field.shape == "list":
        return [word for item in value for word in (field.flag, str(item))]
    if field.type is bool:
        return [field.flag if value else f"--no-{field.flag[2:]}"]
    if field.shape == "other":
        import json

        return [field.flag, value if isinstance(value, str) else json.dumps(value)]
    return [field.flag, str(value)]


def missing(model: type[BaseModel], answers: Mapping[str, Any]) -> list[Field]:
    """The required fields that have no answer yet."""
    return [field for field in fields_of(model) if field.required and field.name not in answers]


# -- questions ----------------------------------------------------------------------------------------


def ask(
    model: type[BaseModel],
    answers: Mapping[str, Any],
    keep: Callable[[dict[str, Any]], None] = lambda answers: None,
    source: str = "",
) -> dict[str, Any]:
    """Ask for every field not already answered that means something; defaults are one Enter away.

    keep: called with all answers so far after each one. source: its name, which the variables of its secrets
    begin with. Raises KeyboardInterrupt.
    """
    got = dict(answers)
    fields = fields_of(model)
    for field in questions_of(model):
        if field.name not in got and is_question(field, fields, got):
            answer = ask_field(field, source=source, secret="none" if field.name in OFTEN_NONE else "type")
            answer = emptied(field) if answer is None else answer
            if answer is not None:
                got[field.name] = answer
                keep(got)
    return got


def ask_field(field: Field, default: Any = None, source: str = "", secret: str = "type") -> Any:
    """One field's question; None where an optional one was passed over.

    secret: the way to give a secret that Enter takes.
    """
    from dwcli.cli import prompts

    default = field.default if default is None else default
    if field.secret and field.shape == "one":
        return _ask_secret(field, default, source, secret)
    if field.type is bool and field.shape == "one":
        return prompts.confirm(field.question, bool(default))
    if field.choices and field.shape == "one":
        return prompts.choose(
            field.question, [(choice, choice) for choice in field.choices], str(default or field.choices[0])
        )
    text = prompts.text(hint(field), typed(field, default), checker(field))
    text = text.strip() or text  # a blank at the end comes from pasting
    if text == "":
        return None
    return _from_text(field, text)


def emptied(field: Field) -> str | None:
    """What an answer that was wiped out says: empty text, where that is not what the default says."""
    text = field.type is str and field.shape == "one" and not field.choices
    return "" if text and field.default else None


def _ask_secret(field: Field, default: Any, source: str, usual: str) -> Any:
    """A secret typed now, or the variable that will hold it; None for none.

    default: the reference that stands there now. A variable that is set already is what Enter takes.
    """
    from dwcli.cli import prompts

    match = re.fullmatch(r"\$\{env:([^}]+)\}", str(default or ""))
    variable = match[1].strip() if match else secret_variable(source, field.name).lstrip("_")
    options = [("type", "type it (kept in .env)"), ("env", "environment variable")]
    options += [] if field.required else [("none", "there is none")]
    way = prompts.choose(field.question, options, "env" if match or os.environ.get(variable) else usual)
    if way == "none":
        return None
    if way == "env":
        name = prompts.text("Environment variable", variable, _check_variable)
        return f"${{env:{name}}}"
    typed = prompts.hidden(field.question, checker(field))
    return SecretStr(typed) if typed else None


def _check_variable(typed: str) -> str:
    fits = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", typed)
    return "" if fits else "its name: letters, digits and _, not the secret itself"


def hint(field: Field) -> str:
    """The question of a text, with what helps to answer it."""
    if field.shape == "dict":
        return f"{field.question} (NAME=VALUE, …)"
    if field.shape == "other" and isinstance(field.default, dict):
        return f'{field.question} (JSON, such as {{"name": 1}})'
    if field.example and not field.default:
        return f"{field.question} ({field.example})"
    said = field.required or field.default not in (None, "", [], ()) or "empty" in field.help
    return field.question if said else f"{field.question} (optional)"


def typed(field: Field, value: Any) -> str:
    """A value of this field as a person would type it: JSON, where it is more than a list or pairs."""
    if field.shape == "other" and value and not isinstance(value, str):
        import json

        return json.dumps(value, ensure_ascii=False)
    return as_text(value)


def as_text(value: Any) -> str:
    """A value as a person would type it."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return str(value)


def _from_text(field: Field, text: str) -> Any:
    if field.shape == "list":
        return [item.strip() for item in text.split(",") if item.strip()]
    if field.shape == "dict":
        return dict(_pair(field.flag, item.strip()) for item in text.split(",") if item.strip())
    if field.shape == "other":
        return _parsed(field.flag, text)
    if field.type in (int, float):
        return _number(field.type, text)
    return text


def _number(kind: type[int] | type[float], text: str) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise ValueError("a whole number is expected" if kind is int else "a number is expected") from None


def checker(field: Field) -> Callable[[str], str]:
    """A check of what was typed: an empty text is fine, else the sentence to show."""

    def check(raw: str) -> str:
        if raw == "":
            return f"{field.question} is needed" if field.required else ""
        try:
            field.check(_from_text(field, raw))
        except ValidationError as error:
            return str(error.errors(include_input=False)[0]["msg"])
        except (UsageError, ValueError) as error:
            return str(error).replace(f"{field.flag} is", "this is", 1)
        return ""

    return check


# -- secrets ------------------------------------------------------------------------------------------


def split_secrets(answers: Mapping[str, Any], source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(config values with references in place of typed secrets, the values by variable name)."""
    values: dict[str, str] = {}
    connection: dict[str, Any] = {}
    for name, answer in answers.items():
        if isinstance(answer, SecretStr):
            variable = secret_variable(source, name)
            values[variable] = answer.get_secret_value()
            connection[name] = f"${{env:{variable}}}"
        else:
            connection[name] = answer
    return connection, values


def secret_variable(source: str, field: str) -> str:
    """The variable in `.env` that holds a source's secret, such as SHOP_PASSWORD."""
    name = re.sub(r"[^A-Z0-9]", "_", f"{source}_{field}".upper())
    return name if not name[:1].isdigit() else f"_{name}"


# -- problems, docs -----------------------------------------------------------------------------------


def problems(error: ValidationError) -> list[str]:
    """Each validation error as a line that names the flag the user would change, without the value."""
    return [
        f"--{'.'.join(map(str, e['loc'])).replace('_', '-')}: {e['msg']}"
        for e in error.errors(include_input=False, include_url=False)
    ]


def markdown(model: type[BaseModel]) -> str:
    """The reference table of a connector's docs page."""
    rows = [
        f"| `{field.name}` | `{'`, `'.join(field.flags)}` | {field.help} | "
        f"{'required' if field.required else _default_text(field)} |"
        for field in fields_of(model)
    ]
    return "\n".join(["| Key | Flag | Meaning | Default |", "|---|---|---|---|", *rows])


def _default_text(field: Field) -> str:
    text = as_text(field.default)
    return f"`{text}`" if text and not field.secret else ""
