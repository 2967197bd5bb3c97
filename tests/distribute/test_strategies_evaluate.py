"""Evaluation and prediction give the numbers and rows of one device."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jgraph as jg
from jgraph.distribute import OneDevice, Pmap, Strategy
from jgraph.losses import Mean, mean

SIZES = 16, 13, 3  # the devices divide the first, and are more than the last has examples


def trained_statistics(task: Any) -> Any:
    model = task.model()
    model.norm.mean[...] = jnp.linspace(-1, 1, 16)
    model.norm.var[...] = jnp.linspace(0.5, 2, 16)
    return model


def data(task: Any) -> list[Any]:
    batches = [task.batches(1, size)[0] for size in SIZES]
    return [b | {"weight": np.arange(len(b["y"]), dtype=np.float32) % 3} for b in batches]


def numbers(model: Any, batch: Any) -> dict[str, Any]:
    logits = model(batch["x"])
    return {
        "right": logits.argmax(-1) == batch["y"],
        "size": mean((logits**2).sum(-1)),
        "scale": Mean(jnp.abs(model.head.kernel[...]).mean(), 1),
    }


@pytest.mark.parametrize("kind", ["loss", "metrics"])
def test_evaluate(kind: str, strategy: Strategy, tasks: Any, same_rows: Any) -> None:
    task = tasks["cnn"]
    fn = task.loss if kind == "loss" else numbers
    model = trained_statistics(task)
    found = jg.evaluate(model, fn, data(task), strategy=strategy)
    want = jg.evaluate(trained_statistics(task), fn, data(task))
    assert set(want) == ({"loss", "accuracy"} if kind == "loss" else {"right", "size", "scale"})
    row = {"step": 0, "set": "val"}
    same_rows([row | found], [row | want])


def test_evaluate_leaves_the_model_alone(strategy: Strategy, tasks: Any, values: Any) -> None:
    task = tasks["cnn"]
    model = trained_statistics(task)
    before, shardings = values(model), [x[...].sharding for x in (model.norm.mean, model.head.bias)]
    jg.evaluate(model, task.loss, data(task), strategy=strategy)
    after = values(model)
    assert all(np.array_equal(before[path], after[path]) for path in before)
    assert [x[...].sharding for x in (model.norm.mean, model.head.bias)] == shardings
    assert not model.norm.use_running_average


def test_predict_keeps_the_order_of_rows(strategy: Strategy, tasks: Any) -> None:
    task = tasks["cnn"]

    def outputs(model: Any, batch: Any) -> dict[str, Any]:
        logits = model(batch["x"])
        return {"logits": logits, "best": logits.argmax(-1), "given": batch["y"]}

    found = jg.predict(trained_statistics(task), outputs, data(task), strategy=strategy)
    want = jg.predict(trained_statistics(task), outputs, data(task))
    assert {k: x.shape for k, x in found.items()} == {
        "logits": (32, 4),
        "best": (32,),
        "given": (32,),
    }
    np.testing.assert_allclose(found["logits"], want["logits"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found["best"], want["best"])
    np.testing.assert_array_equal(found["given"], np.concatenate([b["y"] for b in data(task)]))


def test_a_model_that_lives_elsewhere_can_be_measured(strategy: Strategy, tasks: Any) -> None:
    """As it is after training under one strategy, and then under another."""
    task = tasks["mlp"]
    want = jg.evaluate(task.model(), task.loss, task.batches(1, 16))
    model = strategy.put(task.model())
    for other in (OneDevice(), Pmap(4), strategy):
        found = jg.evaluate(model, task.loss, task.batches(1, 16), strategy=other)
        assert found == pytest.approx(want, rel=1e-6)


def test_a_scalar_prediction_is_refused(strategy: Strategy) -> None:
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    message = (
        "under Pmap a result must be per example"
        if isinstance(strategy, Pmap)
        else "fn must return arrays of one row per example, got a scalar"
    )
    with pytest.raises(jg.InputError, match=message):
        jg.predict(
            model, lambda m, x: m(x).mean(), [np.ones((8, 2), np.float32)], strategy=strategy
        )


def test_each_of_many_parts_keeps_its_weights(strategy: Any) -> None:
    class Tower(nnx.Module):
        def __init__(self) -> None:
            constant = nnx.initializers.constant
            self.blocks = nnx.List(
                [
                    nnx.Linear(1, 1, kernel_init=constant(float(i)), rngs=nnx.Rngs(0))
                    for i in range(12)
                ]
            )

        def __call__(self, x: Any) -> Any:
            return jnp.stack([block(x)[:, 0] for block in self.blocks], axis=-1)

    rows = [np.ones((8, 1), np.float32)]
    found = jg.predict(Tower(), lambda model, x: model(x), rows, strategy=strategy)
    np.testing.assert_array_equal(found, np.tile(np.arange(12.0), (8, 1)))
