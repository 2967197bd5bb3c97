"""Evaluation: one pass over data, the model in evaluation mode, sums reduced like the trainer's."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jgraph._errors import InputError
from jgraph._replicas import num_replicas, over_replicas
from jgraph.debug import debuggable
from jgraph.distribute import Prefetch, Strategy
from jgraph.graph import function, module_scopes, synchronised
from jgraph.train._batches import put
from jgraph.train._objective import LossFn, Measured, measure
from jgraph.train._per_host import is_joined
from jgraph.train._state import Binding, Leaves, bind

# Per function, per structure of the model: evaluating again compiles nothing. Weak, so that a
# function's closure, often a data set, isn't kept alive.
_COMPILED: weakref.WeakKeyDictionary[Any, dict[Any, Callable[..., Measured]]] = (
    weakref.WeakKeyDictionary()
)


@debuggable
def evaluate(
    model: nnx.Module,
    fn: LossFn,
    data: Iterable[Any],
    *,
    strategy: Strategy | None = None,
    compute_dtype: DTypeLike | None = None,
) -> dict[str, float]:
    """Measure a model on data.

    The model is used in evaluation mode (dropout off, BatchNorm by its running statistics) and
    not changed, whatever `fn` does to it.

    Args:
        model: an NNX module.
        fn: a loss function as in `train_and_evaluate`, or a metric function
            `fn(model, batch) -> {"name": Mean or per-example values}`. Per-example values are
            weighed by the batch's `weight` where it has one.
        data: an iterable of batches (dicts of arrays, or any pytree), iterated once.
        strategy: where it runs, from `jgraph.distribute`; None for where the model is.
        compute_dtype: as for `make_step`.

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
    binding, params, rest = bind(model, compute_dtype=compute_dtype)
    params, rest = _put(binding, params, rest, strategy)
    return evaluate_leaves(fn, measure, binding, params, rest, data, strategy)


@debuggable
def predict(
    model: nnx.Module,
    fn: Callable[[Any, Any], Any],
    data: Iterable[Any],
    *,
    strategy: Strategy | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Any:
    """Run a model over data and collect what it returns.

    The model is used in evaluation mode and not changed.

    Args:
        model: an NNX module.
        fn: `fn(model, batch)` returns an array of one row per example, or a pytree of them.
        data: an iterable of batches, iterated once.
        strategy: where it runs, from `jgraph.distribute`; None for where the model is.
        compute_dtype: as for `make_step`.

    Returns:
        What `fn` returns, numpy arrays with the rows of all batches in order.

    Raises:
        InputError: the data has no batch, or `fn` returns a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> model = nnx.Linear(1, 1, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
        >>> batches = [jnp.array([[1.0], [2.0]]), jnp.array([[9.0]])]
        >>> predict(model, lambda model, x: model(x)[:, 0], batches)
        array([1., 2., 9.], dtype=float32)
    """
    binding, params, rest = bind(model, compute_dtype=compute_dtype)
    params, rest = _put(binding, params, rest, strategy)
    run = _compiled(fn, _returned, binding, strategy)
    found = [jax.tree.map(_rows, result) for result in _run(run, params, rest, data, strategy)]
    if not found:
        raise InputError("data must give at least one batch, got none")
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _returned(fn: LossFn, model: Any, batch: Any) -> Any:
    return fn(model, batch)


def _rows(x: Any) -> np.ndarray:
    array = np.asarray(x)
    if array.ndim == 0:
        raise InputError(
            "fn must return arrays of one row per example, got a scalar; numbers about all "
            "examples are what jgraph.evaluate is for"
        )
    return array


def evaluate_leaves(
    fn: LossFn,
    measure_fn: Callable[[LossFn, Any, Any], Measured],
    binding: Binding,
    params: Leaves,
    rest: Leaves,
    data: Iterable[Any],
    strategy: Strategy | None = None,
) -> dict[str, float]:
    """Evaluate a model given as leaves; see `evaluate`."""
    run = _compiled(fn, measure_fn, binding, strategy)
    total: Measured | None = None
    for sums in _run(run, params, rest, data, strategy):
        # Python floats are float64, so long sums lose no examples.
        numbers = jax.tree.map(float, sums)
        total = numbers if total is None else total.add(numbers)
    if total is None:
        raise InputError("evaluation data must give at least one batch, got none")
    return total.row()


def _run(
    run: Callable[..., Any],
    params: Leaves,
    rest: Leaves,
    data: Iterable[Any],
    strategy: Strategy | None,
) -> Iterator[Any]:
    """Yield the fetched result for each batch, one batch late: the device works on the next."""
    waiting: list[Any] = []
    place, threaded = partial(put, strategy=strategy), not is_joined(data)
    with Prefetch(data, place, threaded=threaded) as batches:
        for batch in batches:
            waiting.append(run(params, rest, batch))
            if len(waiting) > 1:
                yield jax.device_get(waiting.pop(0))
    yield from map(jax.device_get, waiting)


def _put(
    binding: Binding, params: Leaves, rest: Leaves, strategy: Strategy | None
) -> tuple[Leaves, Leaves]:
    if strategy is None:
        return params, rest

    def put_by_name(names: tuple[str, ...], leaves: Leaves) -> Leaves:
        placed = strategy.put(dict(zip(names, leaves, strict=True)))
        return tuple(placed[name] for name in names)  # a pytree's dict comes back sorted

    return put_by_name(binding.params.names, params), put_by_name(binding.rest.names, rest)


def _compiled(
    fn: LossFn,
    run_fn: Callable[[LossFn, Any, Any], Any],
    binding: Binding,
    strategy: Strategy | None,
) -> Callable[..., Any]:
    programs = _COMPILED.setdefault(fn, {})
    key = run_fn, binding.eval_graphdef, binding.params, binding.rest, strategy
    if key not in programs:
        alive = weakref.ref(fn)

        def evaluate(params: Leaves, rest: Leaves, batch: Any) -> Any:
            fn = alive()
            assert fn is not None, "the caller holds the function while it runs"
            model = binding.merge(params, rest, train=False)
            with module_scopes([("model", model)]), synchronised(model):
                return _all_sums(run_fn(fn, model, batch))

        programs[key] = function(evaluate, strategy=strategy)
    return programs[key]


def _all_sums(result: Any) -> Any:
    """Add up what replicas measured; what they return row by row is put together as it is."""
    if not isinstance(result, Measured):
        return result
    return over_replicas(result.as_part(num_replicas()))
