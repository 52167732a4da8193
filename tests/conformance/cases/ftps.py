"""FTP with TLS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.conformance.case import Place
from tests.conformance.cases import ftp
from tests.conformance.cases._files import writer
from tests.connectors.places import certificates, ftp_place


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    tls = certificates(folder)
    with ftp_place(folder, tls, auth_failed_timeout=0) as made:
        config = {name: value for name, value in made.config.items() if name != "protocol"}
        yield Place({**config, "ca_file": str(tls.authority)}, writer(made.write))


CASE = replace(ftp.CASE, place=place)
