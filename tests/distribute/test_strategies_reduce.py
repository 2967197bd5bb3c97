"""Whatever counts how much, in whichever part of a batch: the sums are one device's."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jgraph as jg
from jgraph.distribute import OneDevice, Strategy
from jgraph.losses import Mean, mean

# The third is the uneven last batch of an epoch.
SIZES = (16, 16, 13, 16, 13)


def weighted_batches(task: Any, sizes: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    """Batches whose first rows count nothing in one of the terms: some replicas have no weight."""
    found = []
    for size in sizes:
        batch = task.batches(1, size)[0]
        rows = np.arange(size, dtype=np.float32)
        counted = (rows >= size / 4).astype(np.float32)
        found.append(batch | {"weight": rows % 3, "counted": counted * (1 + rows % 2)})
    return found


def terms(model: Any, batch: Any) -> tuple[dict[str, Mean], dict[str, Any]]:
    logits = model(batch["x"])
    values = jg.losses.sparse_softmax_cross_entropy(logits, batch["y"])
    squares = [(x**2).sum() for x in jax.tree.leaves(nnx.state(model, nnx.Param))]
    objective = {
        "class": mean(values, batch["counted"]),
        "size": mean((logits**2).sum(-1) / 4),
        "penalty": Mean(0.01 * jnp.stack(squares).sum(), 1),
    }
    metrics = {
        "accuracy": logits.argmax(-1) == batch["y"],  # weighed by batch["weight"]
        "margin": mean(logits.max(-1), batch["counted"]),
        "scale": Mean(jnp.abs(model.head.kernel[...]).mean(), 1),
    }
    return objective, metrics


def run(task: Any, strategy: Strategy) -> tuple[Any, Any]:
    model = task.model()
    result = jg.train_and_evaluate(
        model,
        terms,
        task.optimizer,
        train=jg.TrainSpec(weighted_batches(task, SIZES), len(SIZES), log_every=2),
        evals={
            "val": jg.EvalSpec(weighted_batches(task, (16, 13)), every_steps=2),
            "small": jg.EvalSpec(weighted_batches(task, (13,))),
        },
        strategy=strategy,
    )
    return result.history, model


@functools.cache
def on_one_device(task: Any) -> Any:
    return run(task, OneDevice())


@pytest.mark.slow
def test_terms_weights_and_uneven_batches(
    strategy: Strategy, tasks: Any, close: Any, same_rows: Any
) -> None:
    task = tasks["mlp"]
    history, model = run(task, strategy)
    want_history, want = on_one_device(task)
    same_rows(history, want_history)
    close(model, want)


def test_the_rows_of_one_device_are_those_of_numpy(tasks: Any) -> None:
    """The reference itself: windows, terms and weights by hand, in float64."""
    task = tasks["mlp"]
    history, model = on_one_device(task)
    assert [(row["step"], row["set"]) for row in history] == [
        (2, "train"),
        (2, "val"),
        (4, "train"),
        (4, "val"),
        (5, "train"),
        (5, "val"),
        (5, "small"),
    ]
    # Of the end, where the model stands still.
    (small,) = [row for row in history if row["set"] == "small"]
    (batch,) = weighted_batches(task, (13,))
    logits = np.asarray(model(batch["x"]), np.float64)
    rows = np.arange(13)
    counted = np.where(rows < 13 / 4, 0, 1 + rows % 2)
    values = np.log(np.exp(logits).sum(-1)) - logits[rows, batch["y"]]
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    want = {
        "class": np.average(values, weights=counted),
        "size": (logits**2).sum(-1).mean() / 4,
        "penalty": 0.01 * sum((np.asarray(p, np.float64) ** 2).sum() for p in params),
        "accuracy": np.average(logits.argmax(-1) == batch["y"], weights=rows % 3),
        "margin": np.average(logits.max(-1), weights=counted),
    }
    for name, value in want.items():
        np.testing.assert_allclose(small[name], value, rtol=2e-6, err_msg=name)
    np.testing.assert_allclose(small["loss"], sum(list(want.values())[:3]), rtol=2e-6)


def test_a_batch_without_any_weight_moves_nothing(strategy: Strategy, tasks: Any) -> None:
    task, model = tasks["mlp"], tasks["mlp"].model()
    before = np.array(model.head.kernel[...])
    batch = task.batches(1, 16)[0] | {"weight": np.zeros(16, np.float32)}
    step = jg.train.make_step(model, task.loss, optax.sgd(1.0), strategy=strategy)
    assert float(step(strategy.put_batch(batch))["loss"]) == 0.0
    assert step.model is model
    np.testing.assert_array_equal(model.head.kernel[...], before)
