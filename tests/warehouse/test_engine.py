from __future__ import annotations

import psycopg


def test_every_session_has_the_same_settings(warehouse: psycopg.Connection) -> None:
    row = warehouse.execute(
        "SELECT current_setting('TimeZone'), current_setting('client_connection_check_interval')"
    ).fetchone()
    assert row == ("UTC", "1s")
