from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.losses import Mean, mean
from jgraph.train import evaluate

BATCHES = [
    {"x": np.arange(n * 2, dtype=np.float32).reshape(n, 2), "y": np.ones((n, 1), np.float32)}
    for n in (4, 1, 3)
]


class Noisy(nnx.Module):
    def __init__(self) -> None:
        self.norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.linear = nnx.Linear(2, 1, rngs=nnx.Rngs(0))

    def __call__(self, x: Array) -> Array:
        return self.linear(self.dropout(self.norm(x)))


def error(model: Any, batch: Any) -> Array:
    return jnp.abs(model(batch["x"]) - batch["y"])[:, 0]


def expected(model: nnx.Linear) -> float:
    kernel = np.asarray(model.kernel.get_value(), np.float64)
    return float(np.concatenate([np.abs(b["x"] @ kernel - 1)[:, 0] for b in BATCHES]).mean())


def test_uneven_batches_give_the_mean_over_all_examples() -> None:
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    want = expected(model)
    assert evaluate(model, error, BATCHES) == {"loss": pytest.approx(want, rel=1e-6)}
    as_metrics = evaluate(model, lambda m, b: {"error": mean(error(m, b))}, BATCHES)
    assert as_metrics == {"error": pytest.approx(want, rel=1e-6)}


def test_without_jit() -> None:
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    with jax.disable_jit():
        found = evaluate(model, error, BATCHES)
    assert found == {"loss": pytest.approx(expected(model), rel=1e-6)}


def test_a_loss_function_gives_its_terms_and_metrics() -> None:
    def fn(model: Any, batch: Any) -> Any:
        terms = {"error": error(model, batch), "penalty": Mean(jnp.float32(2), 1)}
        return terms, {"positive": model(batch["x"])[:, 0] > -1e9}

    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    want = expected(model)
    assert evaluate(model, fn, BATCHES) == {
        "loss": pytest.approx(want + 2, rel=1e-6),
        "error": pytest.approx(want, rel=1e-6),
        "penalty": 2.0,
        "positive": 1.0,
    }


def test_runs_in_evaluation_mode_and_changes_nothing() -> None:
    model = Noisy()
    before = [np.array(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Not(nnx.RngKey)))]
    # At the start the running statistics are mean 0 and variance 1: BatchNorm does nothing.
    want = [np.abs(model.linear(jnp.asarray(b["x"]) / np.sqrt(1 + 1e-5)) - 1) for b in BATCHES]
    found = evaluate(model, error, BATCHES)
    np.testing.assert_allclose(found["loss"], np.concatenate(want).mean(), rtol=1e-5)
    after = jax.tree.leaves(nnx.state(model, nnx.Not(nnx.RngKey)))
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert not model.norm.use_running_average
    assert not model.dropout.deterministic


def test_compiles_once_per_shape_for_all_calls() -> None:
    traces = []

    def traced(model: Any, batch: Any) -> Array:
        traces.append(len(batch["x"]))
        return error(model, batch)

    for seed in range(3):
        evaluate(nnx.Linear(2, 1, rngs=nnx.Rngs(seed)), traced, BATCHES)
    assert traces == [4, 1, 3]


def test_long_sums_are_float64() -> None:
    # One part in 2^24 of 2^24 is lost by a float32 sum.
    values = [{"x": np.array([v], np.float32)} for v in (2.0**24, 1.0, 1.0, 1.0)]
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    assert evaluate(model, lambda m, b: b["x"], values) == {"loss": (2**24 + 3) / 4}


def test_weight_zero_everywhere_is_zero() -> None:
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    batch = BATCHES[0] | {"weight": np.zeros(4, np.float32)}
    assert evaluate(model, error, [batch]) == {"loss": 0.0}


def test_no_batch() -> None:
    with pytest.raises(InputError, match="must give at least one batch, got none"):
        evaluate(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), error, [])
