"""Whatever happens to a source and to runs, in whatever order: the table holds what a dict says it must."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.faults import forker, model
from tests.faults.forker import Forker

numbers = st.integers(0, 999)


@pytest.fixture(scope="module")
def process() -> Iterator[Forker]:
    with forker.forker() as running:
        yield running


@pytest.mark.parametrize("kind", model.KINDS, ids="-".join)
def test_the_table_is_what_a_dict_says(process: Forker, warehouse_url: str, kind: tuple[str, str]) -> None:
    class Machine(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            self.folder = tempfile.TemporaryDirectory(prefix="dw-model-")
            self.world = model.make_world(process, Path(self.folder.name) / "shop", warehouse_url, kind)

        def teardown(self) -> None:
            if hasattr(self, "folder"):
                self.folder.cleanup()

        @rule(count=st.integers(1, 9))
        def insert(self, count: int) -> None:
            model.insert(self.world, count)

        @rule(behind=st.integers(1, 12))
        def insert_late(self, behind: int) -> None:
            model.insert_late(self.world, behind)

        @rule(which=numbers)
        def update(self, which: int) -> None:
            model.update(self.world, which)

        @rule(which=numbers)
        def delete(self, which: int) -> None:
            model.delete(self.world, which)

        @rule(which=numbers)
        def bring_back(self, which: int) -> None:
            model.bring_back(self.world, which)

        @rule()
        def add_column(self) -> None:
            model.add_column(self.world)

        @rule()
        def run(self) -> None:
            assert model.run(self.world) == []

        @rule(point=numbers)
        def run_killed(self, point: int) -> None:
            assert model.run_killed(self.world, point) == []

        @rule()
        def refresh(self) -> None:
            assert model.refresh(self.world) == []

        @rule()
        def replay(self) -> None:
            assert model.replay(self.world) == []

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=4,
            stateful_step_count=10,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
