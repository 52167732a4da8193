"""`dw` in a process that has a stand-in inside: python -m tests.conformance.inside PROTOCOL FOLDER WORDS"""

from __future__ import annotations

import sys
from pathlib import Path

from dwcli._entry import main
from tests.conformance.case import case_of
from tests.conformance.test_conformance import rows_from


def run(protocol: str, folder: str, rows: str, *words: str) -> None:
    """The resource `orders` is there, with so many rows."""
    with case_of(protocol).place(Path(folder)) as place:
        place.put("orders", rows_from(1, int(rows)))
        sys.argv = ["dw", *words]
        main()


if __name__ == "__main__":
    run(*sys.argv[1:])
