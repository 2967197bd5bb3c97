"""The precision that losses and sums are computed in."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def widen(x: ArrayLike) -> Float[Array, "*shape"]:
    """Return x as float64 if it is, else as float32: half precision stops counting at 256."""
    array = jnp.asarray(x)
    return array.astype(jnp.float64 if array.dtype == jnp.float64 else jnp.float32)
