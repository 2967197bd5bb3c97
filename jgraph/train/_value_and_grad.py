"""Gradients for steps that people write themselves: right under every strategy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jgraph._replicas import num_replicas, over_replicas
from jgraph.graph import synchronised
from jgraph.train._gradients import share
from jgraph.train._objective import Measured, measured


def value_and_grad(
    loss_fn: Callable[..., Any], wrt: nnx.filterlib.Filter = nnx.Param
) -> Callable[..., tuple[Any, Any]]:
    """Differentiate an objective with respect to a model.

    It is `flax.nnx.value_and_grad` for objectives: the number that is differentiated is reduced by
    the objective's own weights, over all replicas where a strategy runs the step once per device.

    Args:
        loss_fn: `loss_fn(model, *args)` returns `objective` or `(objective, metrics)` as for
            `train_and_evaluate`: per-example values, a `jgraph.losses.Mean`, or a dict of these.
            Where the first of `args` is a dict, its `weight` weighs per-example values.
        wrt: NNX filter of the Variables to differentiate with respect to.

    Returns:
        `f(model, *args)`, which returns `(loss, gradients)`, or `((loss, metrics), gradients)`
        where `loss_fn` returns metrics: the loss a scalar, the metrics a dict of scalars, the
        gradients an `nnx.State`. What `loss_fn` changes in the model (BatchNorm statistics, random
        counts) is changed.

    Raises:
        InputError: (when called) `loss_fn` returns a scalar or something else.

    Source:
        `flax.nnx.value_and_grad`.

    Example:
        >>> import jax.numpy as jnp
        >>> model = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0))
        >>> model.kernel[...] = jnp.ones((1, 1))
        >>> loss_fn = lambda model, x: (model(x) ** 2)[:, 0]
        >>> loss, gradients = value_and_grad(loss_fn)(model, jnp.ones((4, 1)))
        >>> print(loss, gradients["kernel"][...])
        1.0 [[2.]]
    """

    @functools.wraps(loss_fn)
    def run(model: nnx.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        has_metrics: list[bool] = []

        # Through the transformation, since other NNX objects among them may be changed as well.
        def objective(
            model: nnx.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[jax.Array, Measured]:
            with synchronised((model, args, kwargs)):
                result = loss_fn(model, *args, **kwargs)
            has_metrics.append(isinstance(result, tuple))
            sums = measured(result, args[0] if args else None).as_part(num_replicas())
            first, *others = map(share, sums.terms.values())
            return sum(others, first), sums

        transform = nnx.value_and_grad(objective, argnums=nnx.DiffState(0, wrt), has_aux=True)
        (loss, sums), gradients = transform(model, args, kwargs)
        loss, sums, gradients = over_replicas((loss, sums, gradients))
        metrics = Measured({}, sums.metrics).numbers()
        return ((loss, metrics) if has_metrics[-1] else loss), gradients

    return run
