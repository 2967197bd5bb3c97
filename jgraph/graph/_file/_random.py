"""Random numbers: keys, and the bits drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jgraph.graph._file._kinds import DIMS, DTYPE, INT
from jgraph.graph._file._table import operation


def _per_key(fn: Callable[..., jax.Array], keys: jax.Array, *others: jax.Array) -> jax.Array:
    """Apply a function of one key to an array of keys."""
    for _ in range(keys.ndim):
        fn = jax.vmap(fn)
    return fn(keys, *others)


def _bits(keys: jax.Array, shape: Any, bit_width: int) -> jax.Array:
    return _per_key(lambda key: jax.random.bits(key, shape, f"uint{bit_width}"), keys)


def _split(keys: jax.Array, shape: Any) -> jax.Array:
    return _per_key(lambda key: jax.random.split(key, shape), keys)


def _fold_in(keys: jax.Array, data: jax.Array) -> jax.Array:
    keys, data = jnp.broadcast_arrays(keys, data) if keys.shape != data.shape else (keys, data)
    return _per_key(jax.random.fold_in, keys, data)


def _seed(seeds: jax.Array, dtype: Any) -> jax.Array:
    return _per_key(lambda seed: jax.random.key(seed, impl=_impl(dtype)), seeds)


def _impl(dtype: Any) -> str:
    return {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}[str(dtype)]


def _key_type(eqn: JaxprEqn) -> dict[str, Any]:
    return {"dtype": eqn.outvars[0].aval.dtype}  # pyright: ignore[reportAttributeAccessIssue]


operation("random_bits", 1, _bits, {"shape": DIMS, "bit_width": INT})
operation("random_split", 1, _split, {"shape": DIMS})
operation("random_fold_in", 2, _fold_in)
operation("random_seed", 1, _seed, {"dtype": DTYPE}, params=_key_type, known=("impl",))
operation(
    "random_wrap",
    1,
    lambda x, dtype: jax.random.wrap_key_data(x, impl=_impl(dtype)),
    {"dtype": DTYPE},
    params=_key_type,
    known=("impl",),
)
operation("random_unwrap", 1, jax.random.key_data)
