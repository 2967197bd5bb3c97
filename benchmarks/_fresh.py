"""Scripts in new processes, and the CPU seconds they report."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def seconds(script: str, variables: Mapping[str, str] | None = None) -> tuple[float, ...]:
    """Return the numbers that a Python script prints, run by a new process of this Python.

    Raises:
        RuntimeError: it failed; its last words are the error's.
    """
    shown = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if shown.returncode:
        raise RuntimeError(f"the script must run to its end, it said:\n{shown.stderr[-2000:]}")
    return tuple(float(word) for word in shown.stdout.split())


def spread(values: list[float]) -> str:
    """Return the median of some seconds and what they lie between."""
    return f"{statistics.median(values):.2f} s ({min(values):.2f}-{max(values):.2f})"
