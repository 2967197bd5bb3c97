from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jgraph._errors import InputError
from jgraph.train import EvalSpec, TrainResult, TrainSpec


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainSpec([], 0), "max_steps must be at least 1, got 0"),
        (lambda: TrainSpec([], 1, log_every=0), "log_every must be at least 1, got 0"),
        (lambda: EvalSpec([], every_steps=0), "every_steps must be at least 1, got 0"),
    ],
)
def test_specs_check_their_numbers(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_best_row() -> None:
    accuracies = [0.5, 0.9, 0.9]
    rows = [{"step": i, "set": "val", "accuracy": a} for i, a in enumerate(accuracies)]
    result = TrainResult([*rows, {"step": 9, "set": "train", "loss": 1.0}], 9)
    assert result.best("val/accuracy", "max")["step"] == 1
    assert result.best("val/accuracy", "min")["step"] == 0
    with pytest.raises(InputError, match="one of the history's, val/accuracy, train/loss, got 'x'"):
        result.best("x", "min")
