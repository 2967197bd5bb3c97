"""The reduction: a weighted mean whose total and weight are kept apart until the end."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jgraph._errors import InputError
from jgraph._replicas import over_replicas
from jgraph.losses._precision import widen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A weighted mean that can still be added to: `total / weight`.

    A mean of means weighs a small batch like a large one. Two `Mean`s add their totals and their
    weights, so that batches, microbatches and replicas of any size give the mean over all
    examples.

    Args:
        total: the weighted sum Σwl, a float scalar; an array for several means side by side, as
            the precisions of K classes.
        weight: the sum of the weights Σw, of the same shape; `Mean(x, 1)` is a plain scalar term.

    Source:
        `kauldron.metrics`, `clu.metrics.Average`.

    Example:
        >>> first, second = Mean.of(jnp.array([1.0, 3.0])), Mean.of(jnp.array([8.0]))
        >>> float((first + second).value())
        4.0
    """

    # Any, since tree transformations put more than arrays here: None, shardings, shapes.
    total: Any
    weight: Any

    @classmethod
    def of(cls, values: ArrayLike, weights: ArrayLike | None = None) -> Mean:
        """Reduce per-example values; the same as `jgraph.losses.mean`."""
        return mean(values, weights)

    def __add__(self, other: Mean) -> Mean:
        if not isinstance(other, Mean):
            return NotImplemented
        return Mean(self.total + other.total, self.weight + other.weight)

    def __mul__(self, factor: ArrayLike) -> Mean:
        """Return the mean times a factor: `0.5 * mean` weighs one term of an objective."""
        return Mean(self.total * jnp.asarray(factor, jnp.result_type(self.total)), self.weight)

    __rmul__ = __mul__

    def psum(self, axis_name: str | tuple[str, ...]) -> Mean:
        """Add up the replicas' totals and weights.

        Args:
            axis_name: the mapped axis or axes, as in `jax.lax.psum`.

        Returns:
            The `Mean` over all replicas, the same on each.

        Example:
            >>> f = jax.vmap(lambda x, w: mean(x, w).psum("replica").value(), axis_name="replica")
            >>> f(jnp.array([[1.0, 2.0], [6.0, 0.0]]), jnp.array([[1.0, 1.0], [1.0, 0.0]]))
            Array([3., 3.], dtype=float32)
        """
        return Mean(*jax.lax.psum((self.total, self.weight), axis_name))

    def value(self) -> Float[Array, "*shape"]:
        """Return `total / weight`, and 0 where the weight is 0: nothing counted, nothing lost.

        In a step that a strategy runs once per replica, it is the mean over all replicas.

        Example:
            >>> float(Mean.of(jnp.array([5.0]), jnp.array([0.0])).value())
            0.0
        """
        total, weight = over_replicas((self.total, self.weight))
        total = widen(total)
        weight = jnp.asarray(weight, total.dtype)
        return total / jnp.where(weight == 0, jnp.ones_like(weight), weight)


def mean(values: ArrayLike, weights: ArrayLike | None = None) -> Mean:
    """Sum per-example values and their weights.

    A value of weight 0 is left out whatever it is, NaN and infinity included.

    Args:
        values: one value per example, float, integer or bool, any shape.
        weights: of the same shape, float, integer or bool; None means 1 each. Nothing is
            broadcast.

    Returns:
        `Mean(Σwl, Σw)`, in float32, or float64 where the values are.

    Raises:
        InputError: values and weights differ in shape.

    Example:
        >>> float(mean(jnp.array([2.0, 4.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0])).value())
        3.0
    """
    x = widen(values)
    if weights is None:
        return Mean(x.sum(), jnp.asarray(x.size, x.dtype))
    w = jnp.asarray(weights)
    if w.shape != x.shape:
        raise InputError(
            f"weights must have the shape of the values, got weights {w.shape} and values "
            f"{x.shape}; broadcast them by hand where that is meant"
        )
    w = w.astype(x.dtype)
    # The inner where keeps a masked NaN out of the sum and, in reverse mode, out of w's gradient.
    return Mean((w * jnp.where(w == 0, jnp.zeros_like(x), x)).sum(), w.sum())
