"""What metrics share: sums that add up, checked arguments, weights that can poison."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from jgraph.losses import _checks

_S = TypeVar("_S", bound="Sums")


class Sums:
    """What metrics of several sums share: they add, and add up over replicas."""

    def __add__(self: _S, other: _S) -> _S:
        if type(other) is not type(self):
            return NotImplemented
        return jax.tree.map(jnp.add, self, other)

    def psum(self: _S, axis_name: str | tuple[str, ...]) -> _S:
        """Add up the replicas' sums.

        Args:
            axis_name: the mapped axis or axes, as in `jax.lax.psum`.

        Returns:
            The metric over all replicas, the same on each.
        """
        return jax.lax.psum(self, axis_name)


def classified(
    logits: ArrayLike, labels: ArrayLike
) -> tuple[Float[Array, "*batch k"], Integer[Array, "*batch"], Bool[Array, "*batch"]]:
    """Check logits and class ids; return them and where there is anything to be right about."""
    z = _checks.predictions("logits", logits)
    num_classes = _checks.class_axis("logits", z)
    ids = _checks.class_ids(labels, z.shape)
    ok = _checks.one_hot(ids, num_classes).any(-1)
    return z, ids, ok & ~jnp.isnan(z).any(-1) & (z > -jnp.inf).any(-1)


def yes_or_no(
    logits: ArrayLike, labels: ArrayLike
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"], Bool[Array, "*batch"]]:
    z = _checks.predictions("logits", logits)
    y = _checks.like("labels", labels, "logits", z)
    given = labels if isinstance(labels, np.ndarray) else y
    ok = _checks.check_values("labels", given, (y == 0) | (y == 1), "be 0 or 1")
    return z, y == 1, ok & ~jnp.isnan(z)


def counting_weights(
    weights: ArrayLike | None, ok: Bool[Array, "*batch"], like: Array
) -> Float[Array, "*batch"]:
    """Return the weights, NaN where an example that counts is no example."""
    good = _checks.nan_unless(ok, like.dtype)
    if weights is None:
        return good
    w = _checks.like("weights", weights, "labels", good)
    return jnp.where(w == 0, jnp.zeros_like(w), w * good)


def matmul(a: Float[Array, "n m"], b: Float[Array, "m k"]) -> Float[Array, "n k"]:
    # On accelerators the default is bfloat16, in which a weight of 0.1 is 0.1001.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def weighted(
    ids: Integer[Array, " n"], size: int, weights: Float[Array, " n"]
) -> Float[Array, "n k"]:
    """Return one-hot rows times their weights; one NaN weight makes all of it NaN."""
    rows = jnp.where(_checks.one_hot(ids, size), weights[:, None], jnp.zeros((), weights.dtype))
    # Added, not multiplied: XLA takes a bool times NaN for a choice between NaN and 0.
    return rows + jnp.where(jnp.isnan(weights).any(), jnp.nan, 0.0).astype(rows.dtype)
