from __future__ import annotations

import struct
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from tensorboardX.proto import event_pb2

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

pytestmark = pytest.mark.usefixtures("no_trace_is_left")


def output(model: Any, batch: Any) -> Any:
    return model(batch["x"])[:, 0], {"half": Mean(jax.numpy.float32(1), 2)}


def run(
    *callbacks: Callback, steps: int = 5, steps_per_call: int = 1, size: int = 1
) -> TrainResult:
    batch = {"x": np.ones((2 * size, size), np.float32)}
    model = nnx.Linear(size, size, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
    return train_and_evaluate(
        model,
        output,
        optax.sgd(0.25),
        train=TrainSpec([batch], steps, log_every=2, steps_per_call=steps_per_call),
        evals={"val": EvalSpec([batch], every_steps=4)},
        callbacks=callbacks,
    )


class FailsAt(Callback):
    def __init__(self, step: int, error: BaseException) -> None:
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
    event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]  protobuf makes it on import
    events = [event.FromString(data) for data in records(file)]
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

XPLANE = "plugins/profile/*/*.xplane.pb"


def traced_runs(folder: Path, program: str = "jit_train_step") -> int:
    """Return how often each operation of a program ran in the one trace in a folder."""
    (file,) = folder.glob(XPLANE)
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    events = (e for plane in planes for line in plane.lines for e in line.events)
    with warnings.catch_warnings():
        # On Python 3.12, jaxlib makes a type here without __module__, and aborts on the warning.
        warnings.simplefilter("ignore", DeprecationWarning)
        stats = [dict(event.stats) for event in events]
    counts = Counter(s["hlo_op"] for s in stats if s.get("hlo_module") == program)
    assert len(set(counts.values())) <= 1, counts  # a run that was cut would differ
    return max(counts.values(), default=0)


@pytest.fixture
def no_trace_is_left() -> Iterator[None]:
    yield
    with pytest.raises(RuntimeError, match="No profile started"):
        jax.profiler.stop_trace()


@pytest.mark.slow
@pytest.mark.parametrize(("first", "last", "steps"), [(2, 4, 3), (1, 1, 1), (4, 9, 3)])
def test_the_trace_holds_whole_steps(tmp_path: Path, first: int, last: int, steps: int) -> None:
    # Some milliseconds a step, so that steps are under way when their callbacks run.
    run(Profiler(tmp_path, first, last), steps=6, size=600)
    assert traced_runs(tmp_path) == steps


def test_several_steps_a_call(tmp_path: Path) -> None:
    run(Profiler(tmp_path, first=3, last=4), steps=6, steps_per_call=2)
    assert traced_runs(tmp_path, "jit_train_steps") == 1


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_an_error_ends_the_trace(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(Profiler(tmp_path, first=2, last=100), FailsAt(4, error))
    assert len(list(tmp_path.glob(XPLANE))) == 1


def test_a_run_that_stops_ends_the_trace(tmp_path: Path) -> None:
    run(Profiler(tmp_path, first=2, last=100), FailsAt(4, StopTraining()))
    assert traced_runs(tmp_path) == 3


@pytest.mark.slow
def test_the_trace_of_somebody_else_goes_on(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path / "mine", first=1, last=2)
    with jax.profiler.trace(tmp_path / "theirs"):
        with pytest.raises(RuntimeError, match="Only one profile"):
            run(profiler)
        run()
    assert traced_runs(tmp_path / "theirs") == 5
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(("first", "last"), [(0, 5), (3, 2)])
def test_the_steps_must_be_in_order(tmp_path: Path, first: int, last: int) -> None:
    with pytest.raises(InputError, match=f"got first={first}, last={last}"):
        Profiler(tmp_path, first, last)


def test_a_run_too_short_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"one of the run's 5 steps, .* got first=10"):
        run(Profiler(tmp_path), steps=5)
