"""The way of the data, told as one run."""

from __future__ import annotations

from dwcli.pipeline.project import job_of, run_project
from dwcli.pipeline.record import RunOptions
from dwcli.pipeline.runner import run_pipeline

__all__ = ["RunOptions", "job_of", "run_pipeline", "run_project"]
