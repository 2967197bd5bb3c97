from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jgraph.losses import Mean
from jgraph.train import (
    Callback,
    CSVLog,
    EvalSpec,
    ProgressBar,
    TrainResult,
    TrainSpec,
    train_and_evaluate,
)

BATCH = {"x": np.ones((2, 1), np.float32)}


def output(model: Any, batch: Any) -> Any:
    return {"output": model(batch["x"])[:, 0]}, {"half": Mean(jnp.float32(1), 2)}


def run(*callbacks: Callback, loss_fn: Any = output, steps: int = 5) -> TrainResult:
    model = nnx.Linear(1, 1, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
    return train_and_evaluate(
        model,
        loss_fn,
        optax.sgd(0.0),
        train=TrainSpec([BATCH], steps, log_every=2),
        evals={"val": EvalSpec([BATCH], every_steps=3), "test": EvalSpec([BATCH])},
        callbacks=callbacks,
    )


class Recorder(Callback):
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.result: TrainResult | None = None

    def on_start(self, max_steps: int) -> None:
        self.events.append(("start", max_steps))

    def on_step(self, step: int) -> None:
        self.events.append(("step", step))

    def on_log(self, step: int, row: dict[str, Any]) -> None:
        assert row["step"] == step
        self.events.append(("log", step))

    def on_eval(self, step: int, name: str, row: dict[str, Any]) -> None:
        assert (row["step"], row["set"]) == (step, name)
        self.events.append(("eval", step, name))

    def on_end(self, result: TrainResult) -> None:
        self.result = result
        self.events.append(("end",))

    def close(self) -> None:
        self.events.append(("close",))


def test_order() -> None:
    recorder = Recorder()
    result = run(recorder)
    assert recorder.events == [
        ("start", 5),
        ("step", 1),
        ("step", 2),
        ("step", 3),
        ("log", 2),  # fetched late, but before an evaluation
        ("eval", 3, "val"),
        ("step", 4),
        ("step", 5),
        ("log", 4),
        ("log", 5),
        ("eval", 5, "val"),
        ("eval", 5, "test"),
        ("end",),
        ("close",),
    ]
    assert recorder.result == result
    assert [(row["step"], row["set"]) for row in result.history] == [
        (2, "train"),
        (3, "val"),
        (4, "train"),
        (5, "train"),
        (5, "val"),
        (5, "test"),
    ]


def test_an_error_closes_and_does_not_end() -> None:
    class Failing(Recorder):
        def on_step(self, step: int) -> None:
            raise OSError("full")

    failing, other = Failing(), Recorder()
    with pytest.raises(OSError, match="full"):
        run(failing, other)
    assert failing.events == other.events == [("start", 5), ("close",)]


def test_csv_holds_the_history(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("an earlier run")
    result = run(CSVLog(path))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "set", "loss", "output", "half"]
    assert len(rows) == len(result.history)
    for row, want in zip(rows, result.history, strict=True):
        assert row == {key: str(value) for key, value in want.items()}
        assert (row["loss"], row["half"]) == ("1.0", "0.5")


def test_csv_is_complete_after_every_row(tmp_path: Path) -> None:
    path, lines = tmp_path / "metrics.csv", []

    class Reader(Callback):
        def on_log(self, step: int, row: dict[str, Any]) -> None:
            lines.append(path.read_text().splitlines())

    run(CSVLog(path), Reader())
    assert [len(found) for found in lines] == [2, 4, 5]


def test_csv_takes_columns_that_come_late(tmp_path: Path) -> None:
    log = CSVLog(tmp_path / "metrics.csv")
    log.on_start(2)
    log.on_log(1, {"step": 1, "set": "train", "loss": 0.5})
    log.on_eval(1, "val", {"step": 1, "set": "val", "recall": 0.25})
    log.on_log(2, {"step": 2, "set": "train", "loss": 0.1})
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,set,loss,recall",
        "1,train,0.5,",
        "1,val,,0.25",
        "2,train,0.1,",
    ]


def test_progress_is_plain_lines_without_a_terminal() -> None:
    file = io.StringIO()
    run(ProgressBar("pets", file))
    assert file.getvalue().splitlines() == [
        "step 2/5  pets: loss 1 output 1 half 0.5",
        "step 3/5  val: loss 1 output 1 half 0.5",
        "step 4/5  pets: loss 1 output 1 half 0.5",
        "step 5/5  pets: loss 1 output 1 half 0.5",
        "step 5/5  val: loss 1 output 1 half 0.5",
        "step 5/5  test: loss 1 output 1 half 0.5",
    ]


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    run(ProgressBar())
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 5/5  test: loss 1" in err


def test_progress_is_a_bar_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file = Terminal()
    run(ProgressBar("pets", file))
    text = file.getvalue()
    assert "pets:   0%" in text
    assert "5/5 [" in text
    assert "loss 1 output 1 half 0.5]" in text
    assert "\nstep 3/5  val: loss 1" in text.replace("\r", "\n")
