# httpx2, page by page
from __future__ import annotations

import os
from collections.abc import Iterator

import httpx2
from _copy import load


def rows() -> Iterator[tuple[object, ...]]:
    with httpx2.Client() as client:
        url = os.environ["API"]
        while url:
            page = client.get(url).raise_for_status().json()
            for row in page["data"]:
                yield tuple(row.values())
            url = page.get("next")


load(rows())
