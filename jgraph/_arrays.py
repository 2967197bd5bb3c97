"""Arrays with memory of their own, made without compiling: jnp.asarray compiles for each shape."""

from __future__ import annotations

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

_ALIGNMENT = 64  # bytes; what XLA's CPU backend takes without copying


def from_numpy(x: np.ndarray, dtype: DTypeLike | None = None) -> jax.Array:
    """Return a device array of numpy's values, which numpy's memory no longer changes."""
    return jax.device_put(host_copy(np.asarray(x, dtype)))


def own(leaf: Any) -> jax.Array:
    """Copy an array, so that donating it can't take its earlier owner's away.

    A weak type is made strong: it would change after the first step, and compile twice.
    """
    if isinstance(leaf, np.ndarray):
        return from_numpy(leaf)
    array = jnp.asarray(leaf)
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    is_traced = isinstance(array, jax.core.Tracer)
    if is_traced or is_key or array.weak_type or not array.is_fully_addressable:
        return jnp.array(array, dtype=array.dtype, copy=True)
    return jax.device_put(array, may_alias=False)


def host_copy(x: Any) -> Any:
    """Copy what a pipeline may fill anew: device_put may alias numpy's memory on CPU.

    It does so even with may_alias=False, and a batch that is still in use would change. It aliases
    only what is aligned, so an aligned copy is the only one that is made.
    """
    if not isinstance(x, np.ndarray) or not x.dtype.isnative or x.dtype.hasobject:
        return x
    memory = np.empty(x.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    np.copyto(copy, x)
    return copy
