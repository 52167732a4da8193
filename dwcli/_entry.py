"""Where `dw` begins: TAB is answered from the standard library alone; all else imports the app."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Run `dw` with this process's arguments and exit with its code."""
    shell = os.environ.get("_DW_COMPLETE")
    if shell:
        gc.disable()
        from dwcli.cli._tab import answer

        sys.stdout.write(answer(shell, sys.argv[1:]))
        sys.stdout.flush()
        os._exit(0)  # to take the modules apart again would take longer than the answer
    # Importing and moving rows leave no cycles behind; looking for them is a tenth of the start.
    gc.set_threshold(100_000)
    # Arrow's allocator would take its memory in huge pages, half of them never used: some 60 MB.
    os.environ.setdefault("MIMALLOC_ARENA_EAGER_COMMIT", "0")
    try:
        from dwcli.cli.app import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
