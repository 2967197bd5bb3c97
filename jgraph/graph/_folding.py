"""What scales and shifts the channels of a convolution's result, folded into the convolution.

BatchNorm in evaluation mode is `(conv(x, k) - mean) * scale + bias`, with numbers for each channel
that the convolution has no part in. That is `conv(x, k * scale) + (bias - mean * scale)`: one
addition is what is left to do for each number of the result.

Source:
    Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, section 3.2 (arXiv:1712.05877).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Primitive, Var

from jgraph.graph._jaxpr import is_split, shape_of
from jgraph.graph._rewrite import Match

_DTYPES = frozenset({jnp.dtype("float32"), jnp.dtype("float64")})
_SCALES, _SHIFTS = frozenset({"mul", "div"}), frozenset({"add", "sub"})
# The kernel is scaled in every call, and XLA adds BatchNorm to what comes next anyway. Measured on
# one core, in EfficientNet-Lite0, MobileNetV2 and ResNet-50: without a bound a picture takes 1.17
# to 1.4 times as long as it did before, with this one 1.00 to 1.02.
_LEAST_RESULTS = 32

_Value: TypeAlias = Var | Literal


class _Step(NamedTuple):
    """`y op value` or `value op y`, with a value for each channel or for all."""

    op: Primitive
    params: tuple[tuple[str, Any], ...]
    value_first: bool


@dataclasses.dataclass(frozen=True)
class _Uses:
    """By variable of a body: what makes it, and what takes it (None: the body's result)."""

    made: dict[Var, JaxprEqn]
    taken: dict[Var, list[JaxprEqn | None]]

    @classmethod
    def of(cls, jaxpr: Jaxpr) -> _Uses:
        made: dict[Var, JaxprEqn] = {}
        taken: dict[Var, list[JaxprEqn | None]] = {}
        for eqn in jaxpr.eqns:
            made |= dict.fromkeys(eqn.outvars, eqn)
            for x in eqn.invars:
                if isinstance(x, Var):
                    taken.setdefault(x, []).append(eqn)
        for x in jaxpr.outvars:
            if isinstance(x, Var):
                taken.setdefault(x, []).append(None)
        return cls(made, taken)


def find_batch_norms(jaxpr: Jaxpr) -> list[Match]:
    """Find what can be folded into the convolutions of one body.

    After a convolution, sums, differences, products and quotients with a value for each channel,
    whatever wrote them; not where anything else takes a result in between, as the statistics do in
    training, and gradients. All must be of one type, float32 or float64, so that nothing is rounded
    elsewhere; and the result must be large beside the kernel. Which platform the program is for is
    known only when it is lowered: others than CPUs get it as it was, since nothing was measured
    there.

    The order of rounding changes. A scale of 0 or infinity, or one so large that the kernel
    overflows, may exchange infinity, NaN and, where the convolution overflows, 0.

    Args:
        jaxpr: a body, without those in its equations.

    Returns:
        The matches.
    """
    convolutions = [eqn for eqn in jaxpr.eqns if _folds(eqn)]
    uses = _Uses.of(jaxpr) if convolutions else None
    return [found for eqn in convolutions if uses and (found := _match(eqn, uses))]


def _folds(eqn: JaxprEqn) -> bool:
    if eqn.primitive.name != "conv_general_dilated":
        return False
    (_, kernel), (y,), params = eqn.invars, eqn.outvars, eqn.params
    highest = (lax.Precision.HIGHEST,) * 2
    avals = [v.aval for v in (*eqn.invars, y)]
    dtypes = {getattr(aval, "dtype", None) for aval in avals}
    if len(dtypes) > 1 or not dtypes <= _DTYPES or any(map(is_split, (*eqn.invars, y))):
        return False
    if params["precision"] not in (None, highest) or params.get("out_sharding") is not None:
        return False
    sizes = shape_of(y) + shape_of(kernel)
    if not all(isinstance(size, int) for size in sizes):
        return False
    return math.prod(shape_of(y)) >= _LEAST_RESULTS * math.prod(shape_of(kernel)) > 0


def _match(conv: JaxprEqn, uses: _Uses) -> Match | None:
    found = list(_chain(conv, uses))
    scales = (eqn.primitive.name in _SCALES and shape_of(value) for eqn, _, value in found)
    if not any(scales):
        return None
    return Match(
        (conv, *(eqn for eqn, _, _ in found)),
        (*conv.invars, *(value for _, _, value in found)),
        _folded(conv.primitive, tuple(conv.params.items()), tuple(step for _, step, _ in found)),
    )


def _chain(conv: JaxprEqn, uses: _Uses) -> Iterator[tuple[JaxprEqn, _Step, _Value]]:
    """Yield what follows a convolution: equations, what they do, and with which value.

    What alone takes a result can't be given a value that depends on it.
    """
    (y,), axis = conv.outvars, conv.params["dimension_numbers"].out_spec[1]
    while len(takers := uses.taken.get(y, [])) == 1 and (eqn := takers[0]) is not None:
        if eqn.primitive.name not in _SCALES | _SHIFTS or eqn.outvars[0].aval != y.aval:
            return
        value_first = eqn.invars[1] is y
        if value_first and eqn.primitive.name == "div":
            return
        value = _of_channels(eqn.invars[0 if value_first else 1], y, axis, uses)
        if value is None:
            return
        yield eqn, _Step(eqn.primitive, tuple(eqn.params.items()), value_first), value
        (y,) = eqn.outvars


def _of_channels(value: _Value, y: Var, axis: int, uses: _Uses) -> _Value | None:
    """Return what is the same at all places of a channel, before it was repeated; else None."""
    others = [size for i, size in enumerate(shape_of(value)) if i != axis]
    if not shape_of(value) or (len(others) + 1 == len(shape_of(y)) and set(others) <= {1}):
        return value
    eqn = uses.made.get(value) if isinstance(value, Var) else None
    if eqn is None or eqn.primitive.name != "broadcast_in_dim" or len(eqn.invars) > 1:
        return None
    (source,) = eqn.invars
    at = zip(shape_of(source), eqn.params["broadcast_dimensions"], strict=True)
    return source if all(size == 1 or i == axis for size, i in at) else None


@functools.lru_cache(maxsize=1024)
def _folded(conv: Primitive, params: tuple[tuple[str, Any], ...], steps: tuple[_Step, ...]) -> Any:
    """Return the function of x, the kernel and the steps' values; equal layers share one."""
    numbers = dict(params)["dimension_numbers"]

    def folded(x: jax.Array, kernel: jax.Array, *values: jax.Array) -> jax.Array:
        scale, shift = _scale_and_shift(steps, kernel.shape[numbers.rhs_spec[0]], values)
        kernel = kernel * _along(numbers.rhs_spec[0], kernel.ndim, scale)
        # Or XLA might scale the kernel anew wherever it is read.
        kernel, shift = lax.optimization_barrier((kernel, shift))
        y = conv.bind(x, kernel, **dict(params))
        return y + _along(numbers.out_spec[1], y.ndim, shift)

    def plain(x: jax.Array, kernel: jax.Array, *values: jax.Array) -> jax.Array:
        y = conv.bind(x, kernel, **dict(params))
        for step, value in zip(steps, values, strict=True):
            value = _along(numbers.out_spec[1], y.ndim, value.reshape(-1))
            operands = (value, y) if step.value_first else (y, value)
            y = step.op.bind(*operands, **dict(step.params))
        return y

    def convolution(*inputs: jax.Array) -> list[jax.Array]:
        return [lax.platform_dependent(*inputs, cpu=folded, default=plain)]

    return jax.jit(convolution)


def _along(axis: int, ndim: int, values: jax.Array) -> jax.Array:
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _scale_and_shift(
    steps: tuple[_Step, ...], channels: int, values: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    """Return the numbers, one for each channel, of `y * scale + shift`."""
    scale = jnp.ones(channels, values[0].dtype)
    shift = jnp.zeros(channels, values[0].dtype)
    for step, value in zip(steps, values, strict=True):
        v = value.reshape(-1)
        if step.op.name == "mul":
            scale, shift = scale * v, shift * v
        elif step.op.name == "div":
            scale, shift = scale / v, shift / v
        elif step.op.name == "add":
            shift = shift + v
        elif step.value_first:
            scale, shift = -scale, v - shift
        else:
            shift = shift - v
    return scale, shift
