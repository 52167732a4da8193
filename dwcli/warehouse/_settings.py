"""The settings of the warehouse's own server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

MB = 1024 * 1024
GB = 1024 * MB


def settings(memory: int, free_disk: int, shared_memory: int) -> dict[str, str]:
    """Settings for loading from a machine's memory, free disk and /dev/shm, each in bytes.

    The server is a guest: on a machine of 2 GB it takes 256 MB for itself, and the log that a load
    writes ahead never takes more than a tenth of the disk that is free.
    """
    log_size = _between(256 * MB, free_disk // 10, 8 * GB)
    return {
        "listen_addresses": "127.0.0.1",
        "unix_socket_permissions": "0700",
        "max_connections": "100",
        "shared_buffers": _mb(_between(64 * MB, memory // 8, GB)),
        "effective_cache_size": _mb(memory // 2),
        "work_mem": _mb(_between(4 * MB, memory // 64, 64 * MB)),
        "maintenance_work_mem": _mb(_between(32 * MB, memory // 16, 512 * MB)),
        # Containers have 64 MB of /dev/shm, too little for a parallel hash join.
        "dynamic_shared_memory_type": "posix" if shared_memory >= GB // 4 else "sysv",
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "max_wal_size": _mb(log_size),
        "min_wal_size": _mb(_between(80 * MB, log_size // 8, GB)),
        "checkpoint_timeout": "15min",
        "checkpoint_completion_target": "0.9",
        "fsync": "on",
        "synchronous_commit": "on",
        "random_page_cost": "1.1",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "lc_messages": "C",
        "logging_collector": "on",
        "log_directory": "log",
        "log_filename": "postgresql-%a.log",
        "log_truncate_on_rotation": "on",
        "log_rotation_age": "1d",
        "log_rotation_size": "0",
        # The log must hold neither rows (they stand in DETAIL) nor statements (a password may).
        "log_error_verbosity": "terse",
        "log_min_error_statement": "panic",
    }


def as_conf(values: Mapping[str, str]) -> str:
    quoted = {name: value.replace("\\", "\\\\").replace("'", "''") for name, value in values.items()}
    return "".join(f"{name} = '{value}'\n" for name, value in quoted.items())


def machine_memory() -> int:
    """The machine's memory in bytes, or the container's where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text("ascii").strip()
        except OSError:
            continue
        total = min(total, int(text)) if text.isdigit() else total
    return total


def shared_memory_folder() -> int:
    shm = Path("/dev/shm")
    return shutil.disk_usage(shm).total if shm.exists() else GB


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))


def _mb(size: int) -> str:
    return f"{size // MB}MB"
