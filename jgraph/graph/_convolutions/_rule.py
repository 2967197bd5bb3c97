"""The rule that replaces a convolution in a traced program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn, Primitive

from jgraph.graph._convolutions._choice import formulation
from jgraph.graph._convolutions._shapes import Axes, Convolution, read
from jgraph.graph._jaxpr import is_split

_DTYPES = frozenset({jnp.dtype("float32"), jnp.dtype("float64")})


def fast_convolution(eqn: JaxprEqn) -> Callable[..., Any] | None:
    """Return what takes the place of a convolution: another formulation of it, on CPUs alone.

    Which platform a program is for is known only when it is lowered, so what is returned holds
    the convolution itself too, for any other. Equal convolutions get the same function, which
    is traced and lowered once.

    Args:
        eqn: any equation.

    Returns:
        A function of its inputs that returns its only output in a list, or None where nothing
        would be gained: the shape isn't known to, a size is symbolic, numbers are neither
        float32 nor float64 (XLA adds up half precision in float32), or types say how they are
        split over an explicit mesh.
    """
    if eqn.primitive.name != "conv_general_dilated":
        return None
    dtypes = {getattr(v.aval, "dtype", None) for v in (*eqn.invars, *eqn.outvars)}
    if len(dtypes) > 1 or not dtypes <= _DTYPES:
        return None
    if any(map(is_split, (*eqn.invars, *eqn.outvars))):
        return None
    found = read(eqn)
    if found is None or formulation(*found) is None:
        return None
    return _compiled(eqn.primitive, tuple(eqn.params.items()), found[0], found[1])


@functools.lru_cache(maxsize=1024)
def _compiled(
    primitive: Primitive, params: tuple[tuple[str, Any], ...], conv: Convolution, axes: Axes
) -> Callable[..., Any]:
    compute = formulation(conv, axes)
    assert compute is not None

    def fast(x: jax.Array, kernel: jax.Array) -> jax.Array:
        x, kernel = x.transpose(axes.x), kernel.transpose(axes.kernel)
        y = compute(conv, x.reshape(conv.x), kernel.reshape(conv.kernel))
        # Over one axis, the height of 1 goes again.
        y = y if x.ndim == 4 else y.squeeze(1)
        return y.transpose(axes.result)

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return primitive.bind(x, kernel, **dict(params))

    def convolution(x: jax.Array, kernel: jax.Array) -> list[jax.Array]:
        return [lax.platform_dependent(x, kernel, cpu=fast, default=plain)]

    return jax.jit(convolution)
