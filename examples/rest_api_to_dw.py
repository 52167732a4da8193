"""A REST API into the warehouse: pages of nested JSON, read by the connector `http`.

    python examples/rest_api_to_dw.py

The API here is a small one that this script serves itself, so that it runs anywhere. Nothing says how it
pages or where its rows stand: that is found in the first answer. Numbers, texts and times become columns of
their types; nested objects and lists become jsonb, to be asked with ->>.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from sqlalchemy import text

from dwcli.pipeline import run_pipeline
from dwcli.warehouse import embedded, make_engine, resolve_url

TABLE = "api_orders"
PAGE_SIZE = 100


def main() -> None:
    with serve_orders(250) as base_url:
        rows = load_orders(base_url)
    print(f"{rows} orders loaded into {TABLE}")


def load_orders(base_url: str) -> int:
    """Read every page, keep it in the lake, load it, and write down that it happened."""
    engine = make_engine(warehouse_url())
    result = run_pipeline(
        {"protocol": "http", "base_url": base_url},
        query="/orders",
        source_name="orders_api",
        target_table=TABLE,
        lake_path=os.environ.get("DW_LAKE", "lake"),
        dw_engine=engine,
        pipeline_name="rest_api_example",
    )
    with engine.connect() as connection:
        by_city = text(
            f"SELECT customer->>'city', count(*), sum(total) FROM {TABLE} GROUP BY 1 ORDER BY 2 DESC, 1"  # noqa: S608
        )
        for city, count, total in connection.execute(by_city):
            print(f"{city:10} {count:6} {total:12}")
    return int(result["rows_loaded"])


def warehouse_url() -> str:
    """The warehouse that the environment names, else a PostgreSQL of dw's own in ./.dw."""
    url = resolve_url(None, os.environ, configured="embedded")
    return embedded.url(embedded.start(Path(".dw/postgres"))) if url == "embedded" else url


# -- the API -----------------------------------------------------------------------------------------


@contextmanager
def serve_orders(count: int) -> Iterator[str]:
    """A local HTTP server with `count` orders, in pages. Yields its URL."""

    class Orders(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = int(parse_qs(urlsplit(self.path).query).get("page", ["1"])[0])
            numbers = range((page - 1) * PAGE_SIZE + 1, min(page * PAGE_SIZE, count) + 1)
            more = page * PAGE_SIZE < count
            body = json.dumps(
                {"orders": [order(n) for n in numbers], "next_page": page + 1 if more else None}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: stdout and stderr are the example's."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Orders)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def order(number: int) -> dict[str, object]:
    return {
        "id": number,
        "ordered_at": f"2026-01-{1 + number % 28:02}T12:00:00Z",
        "total": number * 19.5,
        "customer": {"name": f"Customer {number % 7}", "city": ["Lisbon", "Oslo", "Quito"][number % 3]},
        "lines": [{"sku": f"A-{line}", "quantity": line} for line in range(1, 1 + number % 3)],
    }


if __name__ == "__main__":
    main()
