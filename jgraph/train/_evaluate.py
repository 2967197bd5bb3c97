"""Evaluation: one pass over data, the model in evaluation mode, sums reduced like the trainer's."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import nnx

from jgraph._errors import InputError
from jgraph.graph import function, module_scopes
from jgraph.train._batches import Prefetch
from jgraph.train._objective import LossFn, Measured, measure
from jgraph.train._state import Binding, Leaves, bind

# Per function, per structure of the model: evaluating again compiles nothing. Weak, so that a
# function's closure, often a data set, isn't kept alive.
_COMPILED: weakref.WeakKeyDictionary[Any, dict[Any, Callable[..., Measured]]] = (
    weakref.WeakKeyDictionary()
)


def evaluate(model: nnx.Module, fn: LossFn, data: Iterable[Any]) -> dict[str, float]:
    """Measure a model on data.

    The model is used in evaluation mode (dropout off, BatchNorm by its running statistics) and
    not changed, whatever `fn` does to it.

    Args:
        model: an NNX module.
        fn: a loss function as in `train_and_evaluate`, or a metric function
            `fn(model, batch) -> {"name": Mean or per-example values}`. Per-example values are
            weighed by the batch's `weight` where it has one.
        data: an iterable of batches (dicts of arrays, or any pytree), iterated once.

    Returns:
        Each number over all examples; for a loss function `loss`, its terms where there are
        several, and its metrics.

    Raises:
        InputError: the data has no batch, or `fn` returns something else.

    Example:
        >>> import jax.numpy as jnp
        >>> model = nnx.Linear(1, 1, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
        >>> error = lambda model, batch: {"error": jnp.abs(model(batch["x"]) - batch["y"])[:, 0]}
        >>> full = {"x": jnp.array([[1.0], [2.0]]), "y": jnp.array([[1.0], [1.0]])}
        >>> rest = {"x": jnp.array([[9.0]]), "y": jnp.array([[4.0]])}
        >>> evaluate(model, error, [full, rest])
        {'error': 2.0}
    """
    binding, params, rest = bind(model)
    return evaluate_leaves(fn, measure, binding, params, rest, data)


def evaluate_leaves(
    fn: LossFn,
    measure_fn: Callable[[LossFn, Any, Any], Measured],
    binding: Binding,
    params: Leaves,
    rest: Leaves,
    data: Iterable[Any],
) -> dict[str, float]:
    """Evaluate a model given as leaves; see `evaluate`."""
    run = _compiled(fn, measure_fn, binding)
    total, waiting = Measured({}, {}), None
    with Prefetch(data) as batches:
        for batch in batches:
            # Fetched one batch late: the device works on this one meanwhile.
            fetched, waiting = waiting, run(params, rest, batch)
            if fetched is not None:
                total = total.add(_fetch(fetched))
    if waiting is None:
        raise InputError("evaluation data must give at least one batch, got none")
    return total.add(_fetch(waiting)).row()


def _fetch(measured: Measured) -> Measured:
    # Python floats are float64, so long sums lose no examples.
    return jax.tree.map(float, jax.device_get(measured))


def _compiled(
    fn: LossFn, measure_fn: Callable[[LossFn, Any, Any], Measured], binding: Binding
) -> Callable[..., Measured]:
    programs = _COMPILED.setdefault(fn, {})
    key = measure_fn, binding.eval_graphdef, binding.params, binding.rest
    if key not in programs:
        alive = weakref.ref(fn)

        def evaluate(params: Leaves, rest: Leaves, batch: Any) -> Measured:
            fn = alive()
            assert fn is not None, "the caller holds the function while it runs"
            model = binding.merge(params, rest, train=False)
            with module_scopes([("model", model)]):
                return measure_fn(fn, model, batch)

        programs[key] = function(evaluate)
    return programs[key]
