"""`python -m dwcli` is `dw`."""

from __future__ import annotations

from dwcli._entry import main

main()
