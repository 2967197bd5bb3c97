"""A type to compute in: that of the products, and not of the state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import Array

import jgraph as jg
from jgraph.distribute import OneDevice, Strategy
from jgraph.train import make_step

RATE = 0.1


def labels(model: Any, batch: Any) -> Array:
    return jg.losses.sparse_softmax_cross_entropy(model(batch["x"]), batch["y"])


def batches() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 4)).astype(np.float32)
    return [{"x": x, "y": rng.integers(0, 2, 8, dtype=np.int32)}]


@pytest.fixture
def _standard_promotion() -> Iterator[None]:
    """Flax's BatchNorm promotes bfloat16 to float32 by JAX's ordinary rules."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Mixed(nnx.Module):
    """One layer has a type of its own."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(4, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.precise = nnx.Linear(16, 8, dtype=jnp.float32, rngs=rngs)
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.last(nnx.relu(self.precise(nnx.relu(self.norm(self.first(x))))))


def types_of_products(step: Any, batch: Any) -> dict[str, set[str]]:
    """By module, the types of what its matrix products take."""
    found: dict[str, set[str]] = {}

    def walk(jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                scope = str(eqn.source_info.name_stack)
                (module,) = (n for n in ("first", "precise", "last") if n in scope)
                found.setdefault(module, set()).update(str(x.aval.dtype) for x in eqn.invars)
            for value in eqn.params.values():
                if hasattr(value, "jaxpr"):
                    walk(value.jaxpr)

    walk(step.graph(batch).jaxpr.jaxpr)
    return found


@pytest.mark.usefixtures("_standard_promotion")
@pytest.mark.slow
def test_compute_dtype_is_that_of_products_and_not_of_the_state() -> None:
    model: Any
    model, (batch,) = Mixed(), batches()
    step = make_step(model, labels, optax.adam(RATE), compute_dtype=jnp.bfloat16)
    plain = make_step(Mixed(), labels, optax.adam(RATE))
    # What a module was told when it was made stands.
    bfloat16 = {"first": {"bfloat16"}, "precise": {"float32"}, "last": {"bfloat16"}}
    assert types_of_products(step, batch) == bfloat16
    assert types_of_products(plain, batch) == {name: {"float32"} for name in bfloat16}
    losses = [[float(s(batch)["loss"]) for _ in range(3)] for s in (step, plain)]
    # bfloat16 has 8 bits: 0.4 % a rounding.
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02)
    assert losses[0][0] != losses[1][0]
    carry: Any = step._carry
    floats = [x for x in carry.get_raw_value().values() if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {str(x.dtype) for x in floats} == {"float32"}
    assert step.model is model
    assert model.first.dtype is None  # the caller's module is as it was
    assert model.first.kernel[...].dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.usefixtures("_standard_promotion")
def test_compute_dtype_under_strategies(strategy: Strategy) -> None:
    (batch,) = batches()
    losses = []
    for s in (OneDevice(), strategy):
        step = make_step(Mixed(), labels, optax.sgd(RATE), strategy=s, compute_dtype=jnp.bfloat16)
        losses.append([float(step(s.put_batch(batch))["loss"]) for _ in range(2)])
    # Sums of bfloat16 in another order.
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("_standard_promotion")
def test_evaluations_compute_in_the_type_too() -> None:
    seen = set()

    def watched(model: Any, batch: Any) -> Array:
        logits = model(batch["x"])
        seen.add(str(logits.dtype))
        return jg.losses.sparse_softmax_cross_entropy(logits, batch["y"])

    data = batches()
    result = jg.train_and_evaluate(
        Mixed(),
        watched,
        optax.sgd(RATE),
        train=jg.TrainSpec(data, 1),
        evals={"val": jg.EvalSpec(data)},
        compute_dtype=jnp.bfloat16,
    )
    assert seen == {"bfloat16"}
    loss = jg.evaluate(Mixed(), watched, data, compute_dtype=jnp.bfloat16)["loss"]
    found = jg.predict(Mixed(), lambda m, b: m(b["x"]), data, compute_dtype=jnp.bfloat16)
    assert seen == {"bfloat16"}
    assert (found.dtype, found.shape) == (jnp.bfloat16, (8, 2))
    assert loss == pytest.approx(result.rows("val")[0]["loss"], rel=0.5)
