"""One config model as flags, questions, problems and docs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from pydantic import Field, SecretStr, ValidationError

from dwcli import connectors
from dwcli.cli import forms, prompts
from dwcli.contract import ConnectorConfig
from dwcli.errors import UsageError


class Config(ConnectorConfig):
    """A server with one of every kind of field."""

    host: str = Field(description="host name")
    port: int = Field(5432, ge=1, le=65535, description="port")
    mode: Literal["off", "on"] = Field("off", description="mode")
    strict: bool = Field(False, description="strict")
    password: SecretStr | None = Field(None, description="password")
    columns: list[str] = Field(default_factory=list, description="columns")
    headers: dict[str, str] = Field(default_factory=dict, description="headers")
    folder: Path | None = Field(None, description="folder", json_schema_extra={"advanced": True})
    tokens: dict[str, SecretStr] = Field(
        default_factory=dict, description="tokens", json_schema_extra={"advanced": True}
    )


def wizard(keys: str, answers: dict):
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        return forms.ask(Config, answers)


def test_the_wizard_asks_only_what_the_flags_left_open():
    down, enter = "\x1b[B", "\r"
    got = wizard(f"db{enter}{down}{enter}{enter}{enter}s3cret{enter}a, b{enter}x=1{enter}", {"port": 6543})
    config = Config.model_validate(got)
    assert config.model_dump(exclude={"password", "batch_bytes", "folder", "tokens"}) == {
        "host": "db",
        "port": 6543,
        "mode": "on",
        "strict": False,
        "columns": ["a", "b"],
        "headers": {"x": "1"},
    }
    assert config.password is not None and config.password.get_secret_value() == "s3cret"


def test_an_answer_that_the_model_refuses_is_asked_for_again():
    erase = "\x7f" * 4
    got = wizard(f"db\r{erase}99999\r\x7f\r\r\r\r\r\r\r", {})
    assert got["port"] == 9999


def test_a_secret_may_be_a_variable_that_is_set_elsewhere():
    down = "\x1b[B"
    got = wizard(f"db\r\r\r\r{down}\r\x15PGPASS\r\r\r", {})
    assert got["password"] == "${env:PGPASS}"
    assert forms._check_variable("hunter2 #x") and not forms._check_variable("PGPASS")


def test_ctrl_c_leaves_the_wizard():
    with pytest.raises(KeyboardInterrupt):
        wizard("db\r\x03", {})


def test_a_required_answer_cannot_be_empty():
    field = forms.fields_of(Config)[0]
    assert forms.checker(field)("") == "Host name is needed"


def test_advanced_fields_have_flags_but_are_no_questions():
    assert {"folder", "tokens", "batch_bytes"} & {f.name for f in forms.questions_of(Config)} == set()
    assert {"folder", "batch_bytes", "tokens_env"} <= set(forms.parameters(Config))


def test_no_flag_takes_a_secret_value():
    flags = set(forms.parameters(Config))
    assert {"password_env", "password_file", "password_stdin"} <= flags
    assert not {"password", "tokens", "tokens_stdin"} & flags


def test_flags_become_answers_with_secrets_as_references():
    given = {
        "host": "db",
        "password_env": "PGPASSWORD",
        "columns": ["a", "b,c"],
        "headers": ["x=1", "y=a=b"],
        "tokens_file": ["t=/run/secret"],
        "strict": False,
    }
    assert forms.answers_from_flags(Config, given) == {
        "host": "db",
        "password": "${env:PGPASSWORD}",
        "columns": ["a", "b", "c"],
        "headers": {"x": "1", "y": "a=b"},
        "tokens": {"t": "${file:/run/secret}"},
        "strict": False,
    }


def test_two_ways_to_give_one_secret_are_refused():
    with pytest.raises(UsageError, match="--password-env and --password-file"):
        forms.answers_from_flags(Config, {"password_env": "A", "password_file": "b"})


def test_a_pair_without_an_equals_sign_is_refused():
    with pytest.raises(UsageError, match="NAME=VALUE"):
        forms.answers_from_flags(Config, {"headers": ["x"]})


def test_answers_and_flags_say_the_same_both_ways():
    answers = {
        "host": "db",
        "port": 6543,
        "mode": "on",
        "strict": True,
        "password": "${env:PW}",
        "columns": ["a", "b"],
        "headers": {"x": "1"},
    }
    words = forms.flags_from_answers(Config, answers)
    assert words[:4] == ["--host", "db", "--port", "6543"]
    assert "--strict" in words and "--password-env PW" in " ".join(words)
    assert words.count("--columns") == 2


def test_typed_secrets_become_references_and_values_for_the_env_file():
    connection, values = forms.split_secrets({"host": "db", "password": SecretStr("x y")}, "my-shop")
    assert connection == {"host": "db", "password": "${env:MY_SHOP_PASSWORD}"}
    assert values == {"MY_SHOP_PASSWORD": "x y"}


def test_problems_name_the_flag_and_not_the_value():
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"host": "db", "port": 99999})
    (line,) = forms.problems(caught.value)
    assert line.startswith("--port: ") and "99999" not in line


def test_the_docs_table_has_every_field():
    table = forms.markdown(Config)
    assert all(f"`{field.name}`" in table for field in forms.fields_of(Config))
    assert "`--password-env`" in table


@pytest.mark.parametrize("protocol", connectors.names())
def test_no_field_of_a_connector_hides_a_flag_of_add_source(protocol: str):
    import inspect

    from dwcli.cli.add_source import add_source

    own = set(inspect.signature(add_source).parameters) | {"project", "json", "quiet", "yes"}
    assert not own & set(forms.parameters(connectors.load(protocol).Config))


# -- questions that follow from others -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "answers", "asked"),
    [
        ("http", {"base_url": "https://a", "token": "t"}, ["flatten"]),
        ("http", {"base_url": "https://a", "username": "u"}, ["token", "password", "flatten"]),
        ("http", {"base_url": "https://a"}, ["token", "username", "api_key", "flatten"]),
        ("ftp", {"host": "a"}, ["port", "username", "remote_base_path", "tls"]),
        ("ftp", {"host": "a", "username": "u"}, ["port", "password", "remote_base_path", "tls"]),
        ("neo4j", {"uri": "bolt://a", "username": ""}, ["database"]),
        ("neo4j", {"uri": "bolt://a"}, ["username", "password", "database"]),
        ("files", {"path": "a"}, []),
        ("files", {"path": "a", "format": "excel"}, ["sheet"]),
    ],
)
def test_no_question_is_asked_that_an_answer_has_made_empty(protocol, answers, asked):
    from dwcli.connectors import load

    fields = forms.fields_of(load(protocol).Config)
    found = [
        field.name
        for field in fields
        if not field.advanced and field.name not in answers and forms.is_question(field, fields, answers)
    ]
    assert found == asked


def test_a_default_that_is_wiped_out_is_an_empty_answer(monkeypatch):
    from dwcli.cli import prompts
    from dwcli.connectors import load

    monkeypatch.setattr(prompts, "text", lambda question, default="", check=None: "")
    answers = forms.ask(load("neo4j").Config, {"uri": "bolt://a"})
    assert answers == {"uri": "bolt://a", "username": ""}


def test_settings_in_json_are_shown_and_refused_as_json(monkeypatch):
    from dwcli.connectors import load

    field = next(f for f in forms.fields_of(load("singer").Config) if f.name == "tap_config")
    assert forms.typed(field, {"folder": "/größe"}) == '{"folder": "/größe"}' and forms.typed(field, {}) == ""
    assert forms.checker(field)('{"folder": ') == "this is not valid JSON"


@pytest.mark.parametrize("typed", ["über", "ÜB", "日本", "zeb", "зеб", "ж\x7f日"])
def test_lists_are_filtered_by_any_letter(typed):
    names = ["orders", "Übersicht", "日本の店", "zebra", "зебра", "ß"]
    wanted = {"über": "Übersicht", "ÜB": "Übersicht", "日本": "日本の店", "zeb": "zebra", "зеб": "зебра"}
    options = [(name, name) for name in names]
    for ask, keys in (
        (lambda: prompts.choose("Table", options, search=True), f"{typed}\r"),
        (lambda: prompts.pick("Tables", options)[0], f"{typed} \r"),
    ):
        with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
            pipe.send_text(keys)
            assert ask() == wanted.get(typed, "日本の店")
