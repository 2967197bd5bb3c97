"""Several processes of this machine: the numbers of one, and one end for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jgraph as jg

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parent / "programs" / "train.py"
ROOT = Path(jg.__file__).parents[1]
# An end is seen within this, on a machine that does other things too.
SECONDS = 5.0


def environment(place: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
    }


def launch(
    place: Path, processes: int, *arguments: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
    command = ["launch", "--processes", str(processes), str(PROGRAM), *arguments]
    found = subprocess.run(
        [sys.executable, "-m", "jgraph._cli", *command],
        capture_output=True,
        text=True,
        timeout=150,
        env=environment(place),
        check=False,
    )
    assert found.returncode == code, found.stdout + found.stderr
    return found


def curve(folder: Path, count: int) -> list[dict[str, float]]:
    return json.loads((folder / f"result-{count}.json").read_text())


def assert_close(found: list[dict[str, float]], want: list[dict[str, float]]) -> None:
    assert [(row["step"], row["set"]) for row in found] == [(r["step"], r["set"]) for r in want]
    for row, other in zip(found, want, strict=True):
        np.testing.assert_allclose(row["loss"], other["loss"], rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The curve of one process."""
    place = tmp_path_factory.mktemp("alone")
    launch(place, 1, "one", str(place / "run"), "12")
    return curve(place / "run", 1)


def test_two_processes_equal_one_and_each_other(
    tmp_path: Path, alone: list[dict[str, float]]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    launch(tmp_path, 2, "data_parallel", str(first), "12")
    launch(tmp_path, 2, "data_parallel", str(second), "12")
    assert curve(first, 2) == curve(second, 2)
    assert_close(curve(first, 2), alone)


def test_a_run_goes_on_with_another_number_of_processes(
    tmp_path: Path, alone: list[dict[str, float]]
) -> None:
    launch(tmp_path, 2, "fsdp", str(tmp_path), "6")
    launch(tmp_path, 1, "one", str(tmp_path), "12")
    assert_close(curve(tmp_path, 1), alone)


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        ("raise", 1, "RuntimeError: a bug of one process"),
        ("exit", 3, "process 1 failed with exit code 3"),
        ("kill", 137, "process 1 failed by SIGKILL"),
    ],
)
def test_one_that_fails_ends_all(tmp_path: Path, failure: str, code: int, words: str) -> None:
    run = tmp_path / "run"
    found = launch(tmp_path, 2, "data_parallel", str(run), "500", failure, code=code)
    ended = time.time()
    assert ended - float((run / "failed").read_text()) < SECONDS
    assert words in "\n".join(found.stderr.splitlines()[-3:])


def test_sigterm_to_one_saves_the_same_step_in_all(tmp_path: Path) -> None:
    run = tmp_path / "run"
    found = launch(tmp_path, 2, "data_parallel", str(run), "500", "term", code=42)
    said = [line for line in found.stderr.splitlines() if "stopped by SIGTERM" in line]
    assert len(said) == 2
    assert len({line.partition("saved after step ")[2].split()[0] for line in said}) == 1
    step = jg.Checkpoint(run / "checkpoints").steps()[-1]
    assert f"saved after step {step} in" in said[0]


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import jgraph as jg\njg.distribute.initialize(num_processes=3)\n")
    alone = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        check=False,
    )
    assert alone.returncode == 1
    assert "must be 3 processes" in alone.stderr
    assert "jgraph launch --processes 3" in alone.stderr
