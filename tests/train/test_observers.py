from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jgraph import InputError
from jgraph.losses import Mean
from jgraph.train import (
    Callback,
    EvalSpec,
    Profiler,
    StopTraining,
    TensorBoard,
    TrainResult,
    TrainSpec,
    train_and_evaluate,
)

BATCH = {"x": np.ones((2, 1), np.float32)}


def output(model: Any, batch: Any) -> Any:
    return model(batch["x"])[:, 0], {"half": Mean(jax.numpy.float32(1), 2)}


def run(*callbacks: Callback, steps: int = 5, steps_per_call: int = 1) -> TrainResult:
    model = nnx.Linear(1, 1, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
    return train_and_evaluate(
        model,
        output,
        optax.sgd(0.25),
        train=TrainSpec([BATCH], steps, log_every=2, steps_per_call=steps_per_call),
        evals={"val": EvalSpec([BATCH], every_steps=4)},
        callbacks=callbacks,
    )


class FailsAt(Callback):
    def __init__(self, step: int, error: Exception) -> None:
        self._step, self._error = step, error

    def on_step(self, step: int) -> None:
        if step == self._step:
            raise self._error


# TensorBoard


def records(file: Path) -> Iterator[bytes]:
    """Read the TFRecord format: length, its checksum, the data, their checksum."""
    left = file.read_bytes()
    while left:
        (size,) = struct.unpack("<Q", left[:8])
        yield left[12 : 12 + size]
        left = left[16 + size :]


def scalars(file: Path) -> list[tuple[str, int, float]]:
    from tensorboardX.proto.event_pb2 import Event

    events = [Event.FromString(data) for data in records(file)]
    assert events[0].file_version == "brain.Event:2"
    return [(value.tag, e.step, value.simple_value) for e in events for value in e.summary.value]


def test_every_number_of_the_history_is_a_scalar(tmp_path: Path) -> None:
    result = run(TensorBoard(tmp_path / "new" / "folder"))
    (file,) = (tmp_path / "new" / "folder").iterdir()
    assert "tfevents" in file.name  # what TensorBoard looks for
    # Each step takes 0.25 from the kernel and the bias, whose sum was 1.
    expected = [
        ("train/loss", 2, 0.75),
        ("train/half", 2, 0.5),
        ("train/loss", 4, -0.25),
        ("train/half", 4, 0.5),
        ("val/loss", 4, -1.0),
        ("val/half", 4, 0.5),
        ("train/loss", 5, -1.0),
        ("train/half", 5, 0.5),
        ("val/loss", 5, -1.5),
        ("val/half", 5, 0.5),
    ]
    assert scalars(file) == expected
    assert len(result.history) * 2 == len(expected)


def test_the_file_is_whole_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"):
        run(FailsAt(5, OSError("full")), TensorBoard(tmp_path))
    (file,) = tmp_path.iterdir()
    assert [(tag, step) for tag, step, _ in scalars(file) if tag.endswith("loss")] == [
        ("train/loss", 2),
        ("train/loss", 4),
        ("val/loss", 4),
    ]


def test_two_runs_leave_two_files(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    run(board, steps=2)
    run(board, steps=2)
    first, second = tmp_path.iterdir()
    assert scalars(first) == scalars(second)
    assert len(scalars(first)) == 4


def test_a_run_that_never_started_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="first must be"):
        run(Profiler(tmp_path, first=6), TensorBoard(tmp_path), steps=5)
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(
        InputError, match=r"tensorboardX is not installed; run pip install 'jgraph\[tensorboard\]'"
    ):
        TensorBoard(tmp_path)


# Profiler


def traced_steps(folder: Path, name: str = "train_step") -> int:
    """Return how many runs of the program the one trace in a folder holds."""
    (file,) = folder.glob("plugins/profile/*/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    lines = [line for plane in planes for line in plane.lines if line.name == "python"]
    events = [e.name for line in lines for e in line.events]
    # A call of a compiled program runs the executable once.
    return events.count(f"PjitFunction({name})") and sum("train_step" in e for e in events)


@pytest.fixture
def no_trace_goes_on() -> Iterator[None]:
    yield
    with pytest.raises(RuntimeError, match="No profile started"):
        jax.profiler.stop_trace()
