"""What a killed process left beside a file is removed by the next that writes it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import jgraph as jg
from jgraph._unfinished import unfinished_beside

WRITES_AND_IS_KILLED = """
import os, signal, sys
from pathlib import Path
from jgraph._unfinished import unfinished_beside

with unfinished_beside(Path(sys.argv[1])) as unfinished:
    unfinished.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_writing(path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", WRITES_AND_IS_KILLED, str(path)],
        env={**os.environ, "PYTHONPATH": str(Path(jg.__file__).parents[1])},
        check=False,
    )


def write(path: Path, text: str) -> None:
    with unfinished_beside(path) as unfinished:
        unfinished.write_text(text)
        unfinished.replace(path)


def test_what_a_killed_process_left_goes_with_the_next_that_writes_there(tmp_path: Path) -> None:
    path = tmp_path / "a file"
    killed_while_writing(path)
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".a file.unfinished-")
    write(tmp_path / "a fil", "another")
    assert left in os.listdir(tmp_path)
    write(path, "whole")
    assert sorted(os.listdir(tmp_path)) == ["a fil", "a file"]


def test_what_somebody_writes_at_the_moment_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with unfinished_beside(path) as first:
        first.write_text("first")
        write(path, "second")
        assert first.read_text() == "first"


def test_what_another_machine_writes_stays(tmp_path: Path) -> None:
    other = tmp_path / ".file.unfinished-999999999-another-abcd"
    other.mkdir()
    write(tmp_path / "file", "whole")
    assert other.is_dir()


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with (
        contextlib.suppress(KeyboardInterrupt),
        unfinished_beside(tmp_path / "file") as unfinished,
    ):
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
