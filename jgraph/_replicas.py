"""Whether code runs once for the whole batch or once per replica, on its part of the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TypeVar

import jax
import jax.numpy as jnp

_T = TypeVar("_T")

_AXIS: ContextVar[str | None] = ContextVar("jgraph_replica_axis", default=None)


def replica_axis() -> str | None:
    """Return the name of the axis over which a strategy runs replicas, None for the whole batch."""
    return _AXIS.get()


@contextlib.contextmanager
def replicas(axis: str | None) -> Iterator[None]:
    """Trace code that sees one replica's part of the batch.

    Args:
        axis: the mapped axis; None for code that sees the whole batch.
    """
    token = _AXIS.set(axis)
    try:
        yield
    finally:
        _AXIS.reset(token)


def over_replicas(tree: _T) -> _T:
    """Add up the replicas' arrays; where there is but the whole batch, they are the sums."""
    axis = replica_axis()
    return tree if axis is None else jax.lax.psum(tree, axis)


def num_replicas() -> int:
    """Return how many replicas there are, 1 for the whole batch."""
    axis = replica_axis()
    return 1 if axis is None else jax.lax.psum(1, axis)  # a plain number where it is one before


def replica_key(x: jax.Array) -> jax.Array:
    """Give each replica random keys of its own; other arrays, and the whole batch's, stay."""
    axis = replica_axis()
    if axis is None or not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    index = jax.lax.axis_index(axis)
    return jax.vmap(lambda key: jax.random.fold_in(key, index))(x.reshape(-1)).reshape(x.shape)
