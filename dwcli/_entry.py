"""Where `dw` begins: TAB is answered from the standard library alone; all else imports the app."""

from __future__ import annotations

import atexit
import contextlib
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
    # Importing and moving rows leave no cycles behind; looking for them is a tenth of the start. A run has
    # some 150,000 objects.
    gc.set_threshold(300_000)
    # Arrow's allocator would take its memory in huge pages, half of them never used: some 60 MB.
    os.environ.setdefault("MIMALLOC_ARENA_EAGER_COMMIT", "0")
    # Nothing here multiplies matrices: NumPy's threads for that would only wait, and keep a core warm.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # It would look through every installed package for plugins, which nobody has here.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    codes: list[int] = []
    atexit.register(_leave, codes)  # first in, last out: what others do at the end is done by then
    try:
        from dwcli.cli.app import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    codes.append(run(sys.argv[1:]))
    sys.exit(codes[0])


def _leave(codes: list[int]) -> None:
    """End the process here: to take every module apart takes Python half as long as a start."""
    if codes:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(codes[0])


if __name__ == "__main__":
    main()
