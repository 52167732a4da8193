"""`run_pipeline` as the library offers it, on SQLite with a source made of Python values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text

from dwcli.connectors import Connector
from dwcli.contract import Cursor, IngestedItem, IngestionResult
from dwcli.errors import SourceError
from dwcli.pipeline import run_pipeline, runner


def connector_of(answer: IngestionResult | Exception) -> Connector:
    """A connector whose source gives this answer."""

    def read(client: Any, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
        if isinstance(answer, Exception):
            raise answer
        yield from answer.items

    module = SimpleNamespace(connect=lambda config: object(), read=read, close=lambda client: None)
    return Connector("values", SimpleNamespace(), module)  # type: ignore[arg-type]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return create_engine(f"sqlite:///{tmp_path / 'warehouse.db'}")


def run(engine: Engine, lake: Path, monkeypatch: pytest.MonkeyPatch, answer: Any) -> dict[str, Any]:
    monkeypatch.setattr(runner, "create_connector", lambda config: connector_of(answer))
    return run_pipeline({"protocol": "values"}, "q", "orders", "dw_orders", str(lake), engine)


def audit(engine: Engine) -> Any:
    with engine.connect() as connection:
        return connection.execute(text("SELECT * FROM etl_audit_log")).mappings().one()


def test_rows_arrive_and_the_run_is_audited(engine: Engine, tmp_path: Path, monkeypatch: Any) -> None:
    items = [IngestedItem(payload=[{"id": 1}, {"id": 2}]), IngestedItem(payload={"id": 3})]
    result = run(engine, tmp_path / "lake", monkeypatch, IngestionResult(True, "values", items))

    assert {"run_id", "status", "rows_loaded", "parquet_files", "duration_seconds"} <= set(result)
    assert (result["status"], result["rows_loaded"], result["parquet_files"]) == ("success", 3, 2)
    row = audit(engine)
    assert (row["run_id"], row["status"], row["rows_loaded"]) == (result["run_id"], "success", 3)
    assert row["pipeline_name"] == "default"


def test_a_source_without_success_is_a_failure_that_is_returned(
    engine: Engine, tmp_path: Path, monkeypatch: Any
) -> None:
    source = connector_of(IngestionResult(True))
    source.fetch_data = lambda query: IngestionResult(False, "values", error="quota exceeded")  # type: ignore[method-assign,assignment,misc]
    monkeypatch.setattr(runner, "create_connector", lambda config: source)
    result = run_pipeline({"protocol": "values"}, "q", "orders", "dw_orders", str(tmp_path), engine)

    assert (result["status"], result["rows_loaded"]) == ("failure", 0)
    assert (audit(engine)["status"], audit(engine)["error_message"]) == ("failure", "quota exceeded")


def test_an_error_is_audited_and_raised(engine: Engine, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(SourceError, match="the tap is dry"):
        run(engine, tmp_path / "lake", monkeypatch, SourceError("the tap is dry"))

    assert (audit(engine)["status"], audit(engine)["error_message"]) == ("failure", "the tap is dry")
