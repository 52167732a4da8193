from __future__ import annotations

import socket

import pytest

from tests.services import required


def test_a_service_that_answers_is_used():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"postgresql://127.0.0.1:{server.getsockname()[1]}/test"
        assert required("PostgreSQL", url) == url


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_missing_service_skips_the_test_with_a_reason(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"MariaDB does not answer at 127\.0\.0\.1:"):
        required("MariaDB", f"mysql://127.0.0.1:{closed_port()}/test")


def test_a_missing_service_fails_the_test_on_ci(monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="MariaDB does not answer"):
        required("MariaDB", f"mysql://127.0.0.1:{closed_port()}/test")
