"""What a step does to leave the state alone where its loss or update isn't finite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jgraph.train._objective import Measured


def zeros(shapes: Measured) -> Measured:
    """Return empty sums under the same names."""
    return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), x.dtype), shapes)


def keep(good: Bool[Array, ""], new: Any, old: Any) -> Any:
    """Return new where the step was good; what the step left alone isn't copied."""
    return old if new is old else jnp.where(good, as_before(new, old), old)


def as_before(new: Any, old: Any) -> Array:
    """Return new in old's type: another one would compile a second program."""
    return jnp.asarray(new).astype(jnp.asarray(old).dtype)


def finite_part(x: Any) -> Any:
    """Return x with zeros in the place of what isn't finite."""
    is_float = jnp.issubdtype(x.dtype, jnp.inexact)
    return jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)) if is_float else x


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Return whether all floats are finite."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()
