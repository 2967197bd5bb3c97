from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.train import EvalSpec, TrainSpec, train_and_evaluate
from jgraph.train._loop import check_arguments

Batch = dict[str, np.ndarray]


def squared_error(model: Any, batch: Any) -> Array:
    return ((model(batch["x"]) - batch["y"]) ** 2)[:, 0]


def line_batches() -> list[Batch]:
    rng = np.random.default_rng(1)
    x = [rng.standard_normal((n, 2)).astype(np.float32) for n in (5, 3, 4)]
    return [{"x": a, "y": a @ np.array([[2.0], [-1.0]], np.float32) + 0.5} for a in x]


@pytest.mark.parametrize("data", [[], iter(line_batches())], ids=["empty", "iterator"])
def test_data_that_runs_dry(data: Any) -> None:
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"its epoch \d gave none, after \d of 5 steps; pass a"):
        train_and_evaluate(model, squared_error, optax.sgd(0.1), train=TrainSpec(data, 5))


class Cached(nnx.Module):
    def __init__(self) -> None:
        self.linear = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        self.cache = nnx.Cache(jnp.zeros(1))

    def __call__(self, x: Array) -> Array:
        return self.linear(x)


def shrink(model: Any, batch: Any) -> Array:
    model.cache.set_value(jnp.zeros(2))
    return squared_error(model, batch)


def remove(model: Any, batch: Any) -> Array:
    del model.cache
    return squared_error(model, batch)


def scalar(model: Any, batch: Any) -> Array:
    return squared_error(model, batch).mean()


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (shrink, r"keep the shapes .* changed cache from \(1,\) to \(2,\)"),
        (remove, "leave the model's Variables in place, it removed cache"),
        (scalar, r"the objective must be per-example values or a Mean, got a scalar: return"),
        (lambda m, b: {}, "at least one term, got none"),
        (lambda m, b: (1.0, {}, {}), r"\(objective, metrics\), got a tuple of 3"),
        (lambda m, b: (squared_error(m, b), [1]), "dict of Means or per-example .* got list"),
        (lambda m, b: (squared_error(m, b), {"loss": jnp.ones(3)}), "own, 'loss' is the name"),
        (lambda m, b: (squared_error(m, b), {"step": jnp.ones(3)}), "own, 'step' is the name"),
        (
            lambda m, b: {"loss": squared_error(m, b), "other": squared_error(m, b)},
            "must not call one 'loss', the name of their sum; got loss, other",
        ),
        (
            lambda m, b: squared_error(m, b)[:2],
            r"the objective must start with the shape of batch\['weight'\], \(3,\), got \(2,\)",
        ),
    ],
)
def test_what_a_loss_function_may_not_do(loss_fn: Callable[..., Any], message: str) -> None:
    batch = {**line_batches()[1], "weight": np.ones(3, np.float32)}
    with pytest.raises(InputError, match=message):
        train_and_evaluate(Cached(), loss_fn, optax.sgd(0.1), train=TrainSpec([batch], 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evals": {"train": EvalSpec([])}}, "must not be named 'train'"),
        ({"trainable": nnx.PathContains("heed")}, "at least one .* none of bias, kernel$"),
        ({"trainable": nnx.BatchStat}, "at least one"),
        ({"evals": {"val": EvalSpec([])}}, "evaluation data must give at least one batch"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "model": nnx.Linear(2, 1, rngs=nnx.Rngs(0)),
        "loss_fn": squared_error,
        "optimizer": optax.sgd(0.1),
        "train": TrainSpec(line_batches(), 1),
    }
    with pytest.raises(InputError, match=message):
        train_and_evaluate(**{**arguments, **change})


def test_arguments_of_another_type() -> None:
    # Asked directly, since under pytest the annotations are checked before.
    model, train = nnx.Linear(2, 1, rngs=nnx.Rngs(0)), TrainSpec(line_batches(), 1)
    with pytest.raises(InputError, match=r"model must be an nnx\.Module, got function"):
        check_arguments(lambda x: x, optax.sgd(0.1), train, {})
    with pytest.raises(InputError, match=r"such as optax\.adam\(1e-3\), got float"):
        check_arguments(model, 0.1, train, {})


def test_a_param_of_several_arrays_is_refused_as_trainable() -> None:
    class Paired(nnx.Module):
        def __init__(self) -> None:
            self.linear = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
            self.pair = nnx.Param({"a": jnp.zeros(1), "b": jnp.zeros(1)})

    model = Paired()
    with pytest.raises(InputError, match=r"hold one array, the 3 selected hold 4"):
        train_and_evaluate(model, squared_error, optax.sgd(0.1), train=TrainSpec(line_batches(), 1))
