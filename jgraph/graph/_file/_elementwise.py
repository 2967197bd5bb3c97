"""Operations on each element, and changes of type."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jgraph.graph._file._kinds import DTYPE, EXACT_DTYPE, INT, enum
from jgraph.graph._file._table import operation

for _name in (
    *("neg", "exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "sqrt", "rsqrt", "cbrt"),
    *("square", "abs", "sign", "floor", "ceil", "erf", "erfc", "erf_inv", "is_finite"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"),
    *("lgamma", "digamma", "real", "imag", "conj", "population_count", "clz", "stop_gradient"),
    *("bessel_i0e", "bessel_i1e"),
):
    operation(_name, 1, getattr(lax, _name), known=("input_dtype",))
for _name in (
    *("add", "sub", "mul", "div", "rem", "pow", "max", "min", "atan2", "nextafter", "complex"),
    *("polygamma", "zeta", "igamma_grad_a", "random_gamma_grad"),
    *("eq", "ne", "lt", "le", "gt", "ge", "igamma", "igammac", "shift_left"),
    *("shift_right_logical", "shift_right_arithmetic"),
):
    operation(_name, 2, getattr(lax, _name))
operation("add_any", 2, lax.add)
# jgraph.losses' mark on a derivative: without it, JAX refuses forward mode in its own words.
operation("reverse_only", 1, lambda x: x, known=("message",))
operation("and", 2, lax.bitwise_and)
operation("or", 2, lax.bitwise_or)
operation("xor", 2, lax.bitwise_xor)
operation("not", 1, lax.bitwise_not)
operation(
    "device_put",
    None,
    lambda *xs: list(xs),
    params=lambda eqn: _without_device(eqn),
    known=("devices", "srcs", "copy_semantics"),
    outputs=None,
)
operation("copy", 1, jnp.copy, primitives=("copy", "copy_p"))
operation("betainc", 3, lax.betainc, primitives=("regularized_incomplete_beta",))
operation("one_minus_square", 1, lambda x: _one_minus_square(x))
operation("integer_pow", 1, lambda x, y: lax.integer_pow(x, y), {"y": INT})
operation("polynomial", None, lambda x, *factors: _polynomial(x, *factors), known=("unroll",))
operation(
    "round",
    1,
    lambda x, rounding_method: lax.round(x, rounding_method),
    {"rounding_method": enum(lax.RoundingMethod)},
)
operation("clamp", 3, lax.clamp)
operation("select_n", None, lax.select_n)
operation(
    "convert_element_type",
    1,
    lambda x, new_dtype: _converted(x, new_dtype),
    {"new_dtype": DTYPE},
)
operation(
    "bitcast_convert_type",
    1,
    lambda x, new_dtype: lax.bitcast_convert_type(x, new_dtype),
    {"new_dtype": EXACT_DTYPE},
)
operation(
    "reduce_precision",
    1,
    lambda x, exponent_bits, mantissa_bits: lax.reduce_precision(x, exponent_bits, mantissa_bits),
    {"exponent_bits": INT, "mantissa_bits": INT},
)
# The order of sort and searchsorted, in which -0.0 is 0.0 and NaN comes last.
operation("lt_to", 2, lambda x, y: _in_order(x, y, strict=True))
operation("le_to", 2, lambda x, y: _in_order(x, y, strict=False))


def _in_order(x: jax.Array, y: jax.Array, *, strict: bool) -> jax.Array:
    comes_first = lax.lt(x, y) if strict else lax.le(x, y)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return comes_first
    after = lax.ne(y, y)
    return comes_first | (after & (lax.eq(x, x) if strict else jnp.ones_like(after)))


def _without_device(eqn: JaxprEqn) -> dict[str, Any]:
    if any(x is not None for x in eqn.params["devices"]):
        raise NotImplementedError("a device; a strategy places a loaded graph")
    return {}


def _converted(x: jax.Array, dtype: Any) -> jax.Array:
    is_real = not jnp.issubdtype(dtype, jnp.complexfloating)
    if jnp.iscomplexobj(x) and is_real:  # as derivatives are; JAX warns of a person's
        x = lax.real(x)
    return lax.convert_element_type(x, dtype)


def _one_minus_square(x: jax.Array) -> jax.Array:
    if hasattr(lax, "one_minus_square"):  # from jax 0.12 on
        return lax.one_minus_square(x)  # pyright: ignore[reportAttributeAccessIssue]
    return (jnp.ones_like(x) - x) * (jnp.ones_like(x) + x)


def _polynomial(x: jax.Array, *factors: jax.Array) -> jax.Array:
    """Return the polynomial with these factors, the constant first."""
    if hasattr(lax, "polynomial"):  # from jax 0.12 on
        return lax.polynomial(x, factors)  # pyright: ignore[reportAttributeAccessIssue]
    x, *parts = jnp.broadcast_arrays(x, *factors)
    return functools.reduce(lambda found, part: found * x + part, reversed(parts))
