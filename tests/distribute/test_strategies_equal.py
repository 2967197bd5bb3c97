"""Every strategy computes what one device does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flax import nnx

import jgraph as jg
from jgraph.distribute import OneDevice, Strategy

STEPS, SIZE = 5, 16


def by_the_loop(task: Any, strategy: Strategy) -> tuple[list[float], nnx.Module]:
    model = task.model()
    spec = jg.TrainSpec(task.batches(STEPS, SIZE), STEPS, log_every=1)
    result = jg.train_and_evaluate(model, task.loss, task.optimizer, train=spec, strategy=strategy)
    return [row["loss"] for row in result.history], model


def by_steps(task: Any, strategy: Strategy) -> tuple[list[float], nnx.Module]:
    step = jg.train.make_step(task.model(), task.loss, task.optimizer, strategy=strategy)
    batches = strategy.batches(task.batches(STEPS, SIZE))
    losses = [float(step(batch)["loss"]) for batch in batches]
    return losses, step.model


@functools.cache
def on_one_device(task: Any, train: Callable[..., Any]) -> Any:
    return train(task, OneDevice())


@pytest.mark.parametrize("train", [pytest.param(by_the_loop, marks=pytest.mark.slow), by_steps])
@pytest.mark.parametrize("name", ["mlp", "cnn", pytest.param("gpt", marks=pytest.mark.slow)])
def test_five_steps(name: str, train: Any, strategy: Strategy, tasks: Any, close: Any) -> None:
    losses, model = train(tasks[name], strategy)
    want_losses, want = on_one_device(tasks[name], train)
    np.testing.assert_allclose(losses, want_losses, rtol=0, atol=2e-6)
    close(model, want)  # running statistics too


@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt"])
def test_the_steps_go_far_compared_to_what_counts_as_equal(
    name: str, tasks: Any, values: Any
) -> None:
    losses, model = on_one_device(tasks[name], by_the_loop)
    first = values(tasks[name].model())
    moved = {path: np.abs(x - first[path]).max() for path, x in values(model).items()}
    # The gradients of the others are zero but for rounding.
    still = {"cnn": {"['conv']['bias']"}, "gpt": {"['attention']['key']['bias']"}}.get(name, set())
    assert {path for path, distance in moved.items() if distance < 1e-3} == still
    assert 0.5 < min(losses) < max(losses) < 5
    assert max(losses) - min(losses) > 0.1
