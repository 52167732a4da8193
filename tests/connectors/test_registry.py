"""What a connector says about itself, and how it is found."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from dwcli import connectors
from dwcli.errors import NameUnknown


@pytest.mark.parametrize("protocol", connectors.names())
def test_a_connector_says_what_it_can(protocol):
    said = connectors.literals(protocol)
    assert said["TITLE"] and isinstance(said.get("ALIASES", ()), tuple)
    assert said["TYPING"] in ("declared", "inferred")
    assert isinstance(said["STREAMING"], bool) and isinstance(said["INCREMENTAL"], str)
    assert said["QUERY"], "what a person may type as query"
    assert bool(said.get("TRIED")) != bool(said.get("STAND_IN")), "one of the two, and not both"


@pytest.mark.parametrize("protocol", connectors.names())
def test_what_is_read_from_the_text_is_what_the_module_says(protocol):
    module = connectors.load(protocol)
    assert {name: getattr(module, name) for name in connectors.literals(protocol)} == connectors.literals(
        protocol
    )
    assert [name for name in connectors.LITERALS if hasattr(module, name)] == [
        name for name in connectors.LITERALS if name in connectors.literals(protocol)
    ]


def test_no_two_connectors_have_one_name():
    every = [*connectors.names()]
    for protocol in connectors.names():
        every += connectors.literals(protocol).get("ALIASES", ())
    assert sorted(every) == sorted(set(every))


def test_listing_connectors_imports_none_of_them_and_no_driver():
    code = (
        "import sys; from dwcli import connectors as c\n"
        "for name in c.names(): c.title(name), c.extra(name), c.missing_packages(name)\n"
        "print([m for m in sys.modules if m.startswith('dwcli.connectors.')], 'pymysql' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] False\n"


def test_a_driver_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    def nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", nothing)
    assert connectors.extra("mysql") == "mysql" and connectors.extra("sqlite") is None
    assert "pymysql" in connectors.missing_packages("mysql")
    assert connectors.missing_packages("sqlite") == []


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(NameUnknown, match="Did you mean 'postgres'"):
        connectors.resolve_name("postgress")
