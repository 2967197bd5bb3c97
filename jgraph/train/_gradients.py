"""Gradients of an objective over microbatches and replicas: each term Σtotal / Σweight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jgraph._eager import jit_is_off
from jgraph._errors import InputError
from jgraph._replicas import num_replicas, over_replicas, replicas
from jgraph.losses import Mean
from jgraph.train._objective import Measured
from jgraph.train._state import Leaves

Forward: TypeAlias = Callable[[Leaves, Leaves, Any], tuple[Measured, Leaves]]
"""`forward(params, rest, batch) -> (sums, rest after it)`."""


class Gradients(NamedTuple):
    """What one batch gives, over all its microbatches and replicas."""

    loss: Float[Array, ""]
    measured: Measured
    rest: Leaves
    params: Leaves


def gradients(
    forward: Forward, params: Leaves, rest: Leaves, batch: Any, accumulate: int = 1
) -> Gradients:
    """Differentiate a batch's objective.

    Args:
        forward: the model and the loss.
        params: differentiated.
        rest: everything else that the model holds.
        batch: pytree of arrays.
        accumulate: the number of microbatches, one after the other, each as large as the others
            but for the last. The weights come first: they are taken as constants, and cost
            nothing where they don't depend on the model.
    """
    stacked, tail = _microbatches(batch, accumulate)
    count = 1 if stacked is None else jax.tree.leaves(stacked)[0].shape[0] + (tail is not None)
    shares = count * num_replicas()

    def forward_part(params: Leaves, rest: Leaves, part: Any) -> tuple[Measured, Leaves]:
        measured, rest = forward(params, rest, part)
        return measured.as_part(shares), rest

    if stacked is None:
        return _reduced(_gradients(forward_part, params, rest, tail, weights=None))
    parts = [stacked] if tail is None else [stacked, jax.tree.map(lambda x: x[None], tail)]

    def weigh(carry: Any, part: Any) -> tuple[Any, Any]:
        terms = forward_part(params, rest, part)[0].terms
        return carry, {name: term.weight for name, term in terms.items()}

    def differentiate(rest: Leaves, part: Any) -> tuple[Leaves, Any]:
        found = _gradients(forward_part, params, rest, part, weights)
        return _like(found.rest, rest), (found.loss, found.measured, found.params)

    _, weights = _fold(weigh, (), parts)
    weights = over_replicas(weights)
    rest, (loss, measured, of_params) = _fold(differentiate, rest, parts)
    return _reduced(Gradients(loss, measured, rest, of_params))


def _gradients(
    forward: Forward, params: Leaves, rest: Leaves, batch: Any, weights: dict[str, Any] | None
) -> Gradients:
    """Differentiate this replica's part: totals of its own over the weights of all."""

    def objective(params: Leaves) -> tuple[Float[Array, ""], tuple[Measured, Leaves]]:
        measured, new_rest = forward(params, rest, batch)
        first, *others = (
            share(term, None if weights is None else weights[name])
            for name, term in measured.terms.items()
        )
        return sum(others, first), (measured, new_rest)

    (loss, (measured, new_rest)), found = jax.value_and_grad(objective, has_aux=True)(params)
    return Gradients(loss, measured, new_rest, found)


def share(term: Mean, weight: Any = None) -> Float[Array, ""]:
    """Return what a part contributes to a mean over all parts.

    Args:
        term: the part's total and weight.
        weight: of all parts; None adds up the replicas' own.
    """
    weight = over_replicas(term.weight) if weight is None else weight
    with replicas(None):
        return Mean(term.total, weight).value()


def _reduced(found: Gradients) -> Gradients:
    loss, measured, params = over_replicas((found.loss, found.measured, found.params))
    return Gradients(loss, measured, found.rest, params)


def _microbatches(batch: Any, count: int) -> tuple[Any, Any]:
    """Return the microbatches of equal size, stacked, and what is left over; None for neither."""
    if count == 1:
        return None, batch
    rows = {jnp.shape(x)[0] for x in jax.tree.leaves(batch) if jnp.ndim(x)}
    if len(rows) != 1:
        raise InputError(
            "accumulate cuts a batch into microbatches, so every array of it must have the "
            f"examples as its first axis; got first axes of {sorted(rows)}"
        )
    (total,) = rows
    size = -(-total // count)
    full = total // size
    if full == 1:
        return None, batch

    def stack(x: Any) -> Any:
        if not jnp.ndim(x):
            return jnp.broadcast_to(x, (full,))
        # Every full-th row: a batch that is split over devices stays where it is.
        x = jnp.asarray(x)[: full * size]
        return jnp.moveaxis(x.reshape(size, full, *x.shape[1:]), 1, 0)

    def left(x: Any) -> Any:
        return x[full * size :] if jnp.ndim(x) else x

    tail = jax.tree.map(left, batch) if total % size else None
    return jax.tree.map(stack, batch), tail


def _fold(
    fn: Callable[[Any, Any], tuple[Any, Any]], carry: Any, parts: list[Any]
) -> tuple[Any, Any]:
    """Run `fn(carry, microbatch) -> (carry, sums)` over all; return the carry and the sums."""
    sums: Any = None
    for part in parts:
        if jit_is_off() or jax.tree.leaves(part)[0].shape[0] == 1:
            for i in range(jax.tree.leaves(part)[0].shape[0]):
                carry, new = fn(carry, jax.tree.map(lambda x, i=i: x[i], part))
                sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
            continue
        first = jax.tree.map(lambda x: x[0], part)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, carry, first)[1]
        )

        def step(both: Any, one: Any) -> tuple[Any, None]:
            carry, sums = both
            carry, new = fn(carry, one)
            return (carry, jax.tree.map(jnp.add, sums, new)), None

        (carry, sums), _ = jax.lax.scan(step, (carry, zeros), part)
    return carry, sums


def _like(new: Leaves, old: Leaves) -> Leaves:
    """Return new leaves in the old ones' types, which a loop carries."""
    return tuple(
        a if a is b else jnp.asarray(a).astype(jnp.asarray(b).dtype)
        for a, b in zip(new, old, strict=True)
    )
