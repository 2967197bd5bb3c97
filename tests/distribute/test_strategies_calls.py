"""Several microbatches in a step, several steps in a call: the numbers are those of one by one."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from jaxtyping import Array

import jgraph as jg
from jgraph.distribute import OneDevice, Strategy
from jgraph.losses import Mean, mean

pytestmark = pytest.mark.slow


def run(
    task: Any, strategy: Strategy, sizes: tuple[int, ...], loss: Any = None, **spec: Any
) -> tuple[Any, Any]:
    model, batches = task.model(), [task.batches(1, size)[0] for size in sizes]
    train = jg.TrainSpec(batches, len(batches), log_every=2, **spec)
    result = jg.train_and_evaluate(
        model, loss or task.loss, task.optimizer, train=train, strategy=strategy
    )
    return result.history, model


@functools.cache
def on_one_device(task: Any, sizes: tuple[int, ...], **options: Any) -> Any:
    return run(task, OneDevice(), sizes, **options)


@pytest.mark.parametrize("count", [2, 3, 16])
def test_microbatches_add_up_to_the_batch(
    count: int, tasks: Any, close: Any, same_rows: Any
) -> None:
    """3 doesn't divide 16; 16 are single examples."""
    task = tasks["mlp"]
    history, model = on_one_device(task, (16, 16), accumulate=count)
    want_history, want = on_one_device(task, (16, 16))
    same_rows(history, want_history)
    close(model, want)


@pytest.mark.parametrize("count", [2, 3])
def test_microbatches_under_a_strategy(
    count: int, strategy: Strategy, tasks: Any, close: Any, same_rows: Any
) -> None:
    task = tasks["mlp"]
    history, model = run(task, strategy, (16, 16), accumulate=count)
    want_history, want = on_one_device(task, (16, 16), accumulate=count)
    same_rows(history, want_history)
    close(model, want)


def two_terms(model: Any, batch: Any) -> dict[str, Mean]:
    """The rows that count in the first term are in other microbatches than those of the second."""
    values = jg.losses.sparse_softmax_cross_entropy(model(batch["x"]), batch["y"])
    first = (batch["y"] == 0).astype(np.float32)
    penalty = (model.head.kernel[...] ** 2).sum()
    return {"first": mean(values, first), "others": mean(values, 1 - first), "l2": Mean(penalty, 1)}


def test_microbatches_of_terms_with_weights(tasks: Any, close: Any, same_rows: Any) -> None:
    task = tasks["mlp"]
    history, model = on_one_device(task, (13, 13), loss=two_terms, accumulate=3)
    want_history, want = on_one_device(task, (13, 13), loss=two_terms)
    same_rows(history, want_history)
    close(model, want)


@pytest.mark.slow
def test_statistics_of_microbatches(strategy: Strategy, tasks: Any, close: Any) -> None:
    """BatchNorm sees the same 8 examples at a time, whoever holds them."""
    task = tasks["cnn"]
    _, model = run(task, strategy, (16, 16), accumulate=2)
    close(model, on_one_device(task, (16, 16), accumulate=2)[1])
    whole = on_one_device(task, (16, 16))[1]
    difference = np.array(model.norm.var[...]) - np.array(whole.norm.var[...])
    assert np.abs(difference).max() > 1e-4


def test_microbatches_of_arrays_of_different_lengths_are_refused(tasks: Any) -> None:
    task = tasks["mlp"]

    def loss(model: Any, batch: Any) -> Array:
        return task.loss(model, batch)[0]

    step = jg.train.make_step(task.model(), loss, task.optimizer, accumulate=2)
    message = (
        r"accumulate cuts a batch into microbatches, so every array of it must have the examples "
        r"as its first axis; got first axes of \[8, 16\]"
    )
    with pytest.raises(jg.InputError, match=message):
        step(task.batches(1, 16)[0] | {"table": np.ones(8, np.float32)})


def test_steps_per_call(
    strategy: Strategy,
    tasks: Any,
    close: Any,
    same_rows: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two to a call; the last two can't share one."""
    advance, calls = jg.train.Step.advance, []

    def counted(self: Any, batch: Any, *, stacked: bool = False) -> Any:
        calls.append((stacked, batch["x"].shape[: 1 + stacked]))
        return advance(self, batch, stacked=stacked)

    task, sizes = tasks["cnn"], (16, 16, 16, 13, 16, 16)
    want_history, want = on_one_device(task, sizes)
    monkeypatch.setattr(jg.train.Step, "advance", counted)
    history, model = run(task, strategy, sizes, steps_per_call=2)
    same_rows(history, want_history)
    close(model, want)
    assert calls == [(True, (2, 16)), (False, (16,)), (False, (13,)), (True, (2, 16))]
