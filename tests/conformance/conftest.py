"""Each case, its place, and the end of its servers, for every module of scenarios."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.case import SERVERS, Case, Place, case_of, protocols, scenario


@pytest.fixture(params=protocols())
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(protocol: str, request: pytest.FixtureRequest) -> Case:
    """The case; the test is skipped where the case says that it has no meaning."""
    found = case_of(protocol)
    reason = found.absent.get(scenario(request.function))
    if reason:
        pytest.skip(reason)
    return found


@pytest.fixture(scope="package", autouse=True)
def servers() -> Iterator[None]:
    """Ends the servers of the cases, after the last module of them."""
    with SERVERS:
        yield


@pytest.fixture
def place(case: Case, tmp_path: Path) -> Iterator[Place]:
    folder = tmp_path / "place"
    folder.mkdir()
    with case.place(folder) as made:
        yield made
