"""Stands before the pandas of a test server: pyarrow imports it where it is there, and dw has none."""

from __future__ import annotations

raise ImportError("dw is installed without pandas")
