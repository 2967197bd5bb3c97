"""What an equation costs: floating-point operations, counted from shapes.

A multiplication and an addition count as 2. Products and convolutions are exact, and as XLA's own
analysis counts them: a convolution's padding and the holes of a dilation cost nothing. Elementwise
arithmetic and transcendental functions cost 1 per output element, reductions 1 per input element,
moving data, converting it and drawing random bits nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jgraph.graph._jaxpr import call_body, control_bodies, open_jaxpr, shape_of

_ELEMENTWISE_WORDS = """
abs add add_any and atan2 cbrt ceil clamp cos cosh acos acosh asin asinh atan atanh digamma
    div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac integer_pow is_finite le
    lgamma log log1p logistic lt max min mul ne neg nextafter not one_minus_square or pow
    population_count regularized_incomplete_beta rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan tanh xor bessel_i0e
    bessel_i1e conj polygamma zeta"""
_ELEMENTWISE = frozenset(_ELEMENTWISE_WORDS.split())
_REDUCTIONS_WORDS = """
reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin
    cumsum cumprod cummax cummin cumlogsumexp reduce top_k psum psum_invariant pmax pmin
    reduce_scatter"""
_REDUCTIONS = frozenset(_REDUCTIONS_WORDS.split())
_SCATTERS = frozenset({"scatter-add", "scatter-mul", "scatter-min", "scatter-max", "scatter_add"})
_WINDOWS_WORDS = """
reduce_window reduce_window_sum reduce_window_max reduce_window_min
    select_and_scatter_add select_and_gather_add"""
_WINDOWS = frozenset(_WINDOWS_WORDS.split())


def _product(sizes: Iterable[Any]) -> int:
    # A symbolic size has no number yet: `Graph.flops` refuses it, tables say that it counts as 1.
    return math.prod(int(size) if isinstance(size, int) else 1 for size in sizes)


def _size(value: Any) -> int:
    return _product(shape_of(value))


def _dot(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = shape_of(eqn.invars[0])
    return 2 * _size(eqn.outvars[0]) * _product(shape[axis] for axis in contracted)


def _ragged_dot(eqn: JaxprEqn) -> int:
    # Each row meets one group's matrix only.
    return 2 * _size(eqn.outvars[0]) * _product(shape_of(eqn.invars[0])[-1:])


def _valid_positions(
    inputs: int, outputs: int, kernel: int, stride: int, low: int, holes: int, spacing: int
) -> int:
    """Return how many pairs (output, kernel tap) along one axis meet a real input element."""
    count = 0
    width = (inputs - 1) * holes + 1
    for tap in range(kernel):
        offset = tap * spacing - low
        if holes == 1:
            first = max(0, -(offset // stride))
            last = min(outputs - 1, (width - 1 - offset) // stride)
            count += max(0, last - first + 1)
            continue
        positions = range(offset, offset + outputs * stride, stride)
        count += sum(0 <= at < width and at % holes == 0 for at in positions)
    return count


def _convolution(eqn: JaxprEqn) -> int:
    params = eqn.params
    numbers = params["dimension_numbers"]
    left, right, out = (shape_of(v) for v in (*eqn.invars[:2], eqn.outvars[0]))
    positions = 1
    for axis, ((low, _), stride, holes, spacing) in enumerate(
        zip(
            params["padding"],
            params["window_strides"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    ):
        sizes = (
            left[numbers.lhs_spec[2 + axis]],
            out[numbers.out_spec[2 + axis]],
            right[numbers.rhs_spec[2 + axis]],
        )
        if all(isinstance(size, int) for size in (*sizes, low)):
            positions *= _valid_positions(*sizes, stride, low, holes, spacing)
        else:
            positions *= _product(sizes[1:])
    batch = _product(left[numbers.lhs_spec[0] :][:1]) // params["batch_group_count"]
    features = _product(right[axis] for axis in numbers.rhs_spec[:2])
    return 2 * positions * batch * features


def _window(eqn: JaxprEqn) -> int:
    return _size(eqn.outvars[0]) * _product(eqn.params["window_dimensions"])


def _sort(eqn: JaxprEqn) -> int:
    size = _size(eqn.invars[0])
    axis = shape_of(eqn.invars[0])[eqn.params["dimension"]]
    return size * max(1, math.ceil(math.log2(max(2, _product([axis])))))


def _cholesky(eqn: JaxprEqn) -> int:
    return _size(eqn.invars[0]) * _product(shape_of(eqn.invars[0])[-1:]) // 3


def _triangular_solve(eqn: JaxprEqn) -> int:
    return _size(eqn.outvars[0]) * _product(shape_of(eqn.invars[0])[-1:])


def _fft(eqn: JaxprEqn) -> int:
    length = _product(eqn.params["fft_lengths"])
    size = max(_size(eqn.invars[0]), _size(eqn.outvars[0]))
    return 5 * size * max(1, math.ceil(math.log2(max(2, length))))


_RULES: dict[str, Callable[[JaxprEqn], int]] = {
    "dot_general": _dot,
    "ragged_dot": _ragged_dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
    "sort": _sort,
    "cholesky": _cholesky,
    "triangular_solve": _triangular_solve,
    "fft": _fft,
}


def own_flops(eqn: JaxprEqn) -> int:
    """Return what one equation costs by itself, without the bodies inside it."""
    name = eqn.primitive.name
    if name in _RULES:
        return _RULES[name](eqn)
    if name in _ELEMENTWISE:
        return _size(eqn.outvars[0])
    if name in _REDUCTIONS:
        return _size(eqn.invars[0])
    if name in _SCATTERS:
        return _size(eqn.invars[-1])
    if name in _WINDOWS:
        return _window(eqn)
    return 0


def flops(eqn: JaxprEqn) -> int:
    """Return the floating-point operations of one equation, those of its bodies included.

    A scan costs its body times its length, a cond its dearest branch, a shard_map its body on every
    device. A while costs one round: how many it takes isn't known before it runs.

    Args:
        eqn: an equation of a traced program.

    Returns:
        The count; symbolic sizes count as 1. Primitives jgraph doesn't know cost 0.

    Source:
        XLA's HloCostAnalysis, which `jax.jit(f).lower(...).cost_analysis()` reports.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> program = jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 3)), jnp.ones((3, 5)))
        >>> [flops(eqn) for eqn in program.eqns]
        [60]
    """
    call = call_body(eqn)
    if call is not None:
        return total_flops(call.jaxpr)
    bodies = control_bodies(eqn)
    if not bodies:
        return own_flops(eqn)
    costs = [body.repeat * total_flops(body.jaxpr) for body in bodies]
    return max(costs) if eqn.primitive.name == "cond" else sum(costs)


def total_flops(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Return the floating-point operations of a whole program.

    Args:
        jaxpr: the program, as `jax.make_jaxpr` returns it.

    Returns:
        The sum of `flops` over its equations.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> total_flops(jax.make_jaxpr(lambda x: jnp.sum(x * x))(jnp.ones(8)))
        16
    """
    return sum(flops(eqn) for eqn in open_jaxpr(jaxpr).eqns)
