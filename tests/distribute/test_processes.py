"""Several processes of this machine: the numbers of one, and one end for all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jgraph as jg
from benchmarks import hosts

pytestmark = pytest.mark.slow

FAILURES = {failure.how: failure for failure in hosts.FAILURES}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> hosts.Curve:
    """The curve of one process."""
    return hosts.train(tmp_path_factory.mktemp("alone") / "run", 1, "one")


def test_two_processes_equal_one_and_each_other(tmp_path: Path, alone: hosts.Curve) -> None:
    first, second = (hosts.train(tmp_path / name, 2, "data_parallel") for name in "ab")
    assert first == second
    assert hosts.difference(first, alone) <= hosts.TOLERANCE


def test_a_run_goes_on_with_fewer_processes(tmp_path: Path, alone: hosts.Curve) -> None:
    run = tmp_path / "run"
    for processes, strategy, steps in ((4, "fsdp", 4), (2, "data_parallel", 8), (1, "one", 12)):
        end = hosts.launch(processes, strategy, str(run), str(steps))
        assert end.code == 0, end.text
    assert hosts.difference(hosts.curve(run, 1), alone) <= hosts.TOLERANCE


def test_data_of_their_own_counts_as_if_joined(tmp_path: Path) -> None:
    """4, 3 and 0 batches, and last ones of 13 and 9 rows; then one process goes on."""
    joined = hosts.train(tmp_path / "joined", 1, "one", "--hosts", "3")
    run = tmp_path / "run"
    end = hosts.launch(3, "data_parallel", str(run), "6", "--hosts", "3")
    assert end.code == 0, end.text
    end = hosts.launch(1, "one", str(run), str(hosts.STEPS), "--hosts", "3")
    assert "step 6 was saved by 3 processes, each with data of its own, and this run has 1" in (
        end.text
    )
    assert "goes on after batch 2 of epoch 1 of each" in end.text
    assert hosts.difference(hosts.curve(run, 1), joined) <= hosts.TOLERANCE


@pytest.mark.parametrize(("how", "process"), [("raise", 1), ("exit", 1), ("kill", 1), ("kill", 0)])
def test_one_that_fails_ends_all(tmp_path: Path, how: str, process: int) -> None:
    run = tmp_path / "run"
    asked = ("--fail", how, "--process", str(process))
    end = hosts.launch(2, "data_parallel", str(run), "500", *asked)
    assert end.code == FAILURES[how].code, end.text
    assert hosts.seconds_since_failure(run, end) < hosts.SECONDS
    assert FAILURES[how].words.format(process=process) in hosts.last_words(end)


def test_sigterm_to_one_saves_the_same_step_in_all(tmp_path: Path) -> None:
    run = tmp_path / "run"
    end = hosts.launch(2, "data_parallel", str(run), "500", "--fail", "term")
    assert end.code == 42, end.text
    said = [line for line in end.text.splitlines() if "stopped by SIGTERM" in line]
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
        env={**os.environ, "PYTHONPATH": str(hosts.ROOT)},
        check=False,
    )
    assert alone.returncode == 1
    assert "must be 3 processes" in alone.stderr
    assert "jgraph launch --processes 3" in alone.stderr
