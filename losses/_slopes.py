"""Losses whose slopes are written by hand, so that they are right at infinity and at 0 as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from jgraph.losses._checks import steer

Formula = Callable[..., tuple[Array, Sequence[Array | None]]]


def with_slopes(formula: Formula) -> Callable[..., Float[Array, "*batch"]]:
    """Turn values and slopes into a loss that every transformation of jax applies to.

    Differentiating the plain formula gives 0 * infinity = NaN where a limit exists: p log p at 0,
    a density at infinity. Here the slope is what the formula says, and a row whose weight is 0
    gets exactly 0, whatever its slope.

    Args:
        formula: from arrays `[*batch, *own]` to a value `[*batch]` and, for each array, the slope
            of the value, of the array's shape; None for an array without a gradient. Second
            derivatives come from differentiating the slopes.

    Returns:
        `loss(good, *arrays)`, where `good`, 1 or NaN of shape `[*batch]`, is the factor
        `jgraph.losses._checks.nan_unless` that poisons value and slopes.
    """

    def plain(good: Array, *arrays: Array) -> Array:
        return formula(*arrays)[0] * good

    loss = jax.custom_jvp(plain)

    def rule(primals: Any, tangents: Any) -> tuple[Array, Array]:
        good, *arrays = primals
        # The loss once more, not the formula: so its second derivative is by this rule, too.
        value = loss(good, *arrays)
        total = jnp.zeros_like(value)
        for slope, tangent in zip(formula(*arrays)[1], tangents[1:], strict=True):
            if slope is None or isinstance(tangent, SymbolicZero):
                continue
            own_axes = tuple(range(value.ndim, slope.ndim))
            total = total + steer(tangent, slope * jnp.expand_dims(good, own_axes)).sum(own_axes)
        return value, total

    loss.defjvp(rule, symbolic_zeros=True)
    return loss
