"""`jgraph launch` without JAX: which process failed first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jgraph as jg

# Process 1 fails first and is gone last, as one whose threads the system still ends.
PROGRAM = """
import os, pathlib, signal, sys, time

failed = pathlib.Path(sys.argv[1])
if os.environ["JGRAPH_PROCESS_ID"] == "0":
    while not failed.exists():
        time.sleep(0.01)
    time.sleep(0.1)
    raise ConnectionError("the other one is gone")
leave = os._exit
os._exit = lambda code: (time.sleep(0.4), leave(code))
failed.touch()
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(3)
"""


def launched(place: Path, how: str) -> subprocess.CompletedProcess[str]:
    script = place / "script.py"
    script.write_text(PROGRAM)
    command = ["launch", "--processes", "2", str(script), str(place / "failed"), how]
    return subprocess.run(
        [sys.executable, "-m", "jgraph._cli", *command],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(jg.__file__).parents[1])},
        check=False,
    )


def test_the_process_that_failed_first_is_named_though_it_is_gone_last(tmp_path: Path) -> None:
    found = launched(tmp_path, "exits")
    assert found.returncode == 3, found.stderr
    assert "process 1 failed with exit code 3" in found.stderr


def test_a_killed_process_is_named_before_those_that_it_took_along(tmp_path: Path) -> None:
    found = launched(tmp_path, "killed")
    assert found.returncode == 137, found.stderr
    assert "process 1 failed by SIGKILL" in found.stderr


def test_a_process_ends_though_its_launcher_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise RuntimeError('a bug')")
    reading, pipe = os.pipe()
    os.close(reading)
    found = subprocess.run(
        [sys.executable, "-m", "jgraph._cli._rank", str(pipe), str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(jg.__file__).parents[1]),
            "JGRAPH_NUM_PROCESSES": "1",
        },
        pass_fds=(pipe,),
        check=False,
    )
    os.close(pipe)
    assert found.returncode == 1
    assert found.stderr.endswith("RuntimeError: a bug\n")
