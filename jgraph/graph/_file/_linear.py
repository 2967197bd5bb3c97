"""Products of arrays: matrix products, convolutions, transforms, and the algebra built on them."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax.extend.core import JaxprEqn

from jgraph.graph._file._kinds import (
    BOOL,
    DIMS,
    DTYPE,
    INT,
    INTS,
    PRECISION,
    choice,
    enum,
    listed,
    optional,
)
from jgraph.graph._file._table import operation

_PRECISIONS = optional(listed(PRECISION))
# One for both operands, or one algorithm for the whole product.
_ALGORITHMS = optional(
    listed(
        choice(
            {
                member.name: member
                for kind in (lax.DotAlgorithmPreset, lax.Precision)
                for member in kind
            },
            lambda value: value.name,
        )
    )
)


def _dot_params(eqn: JaxprEqn) -> dict[str, Any]:
    (contract, batch) = eqn.params["dimension_numbers"]
    precision = eqn.params["precision"]
    is_algorithm = isinstance(precision, lax.DotAlgorithmPreset)
    return {
        "contract": contract,
        "batch": batch,
        "precision": (precision,) if is_algorithm else _pair(precision),
        "preferred_element_type": eqn.params["preferred_element_type"],
    }


def _pair(precision: Any) -> Any:
    if precision is None or isinstance(precision, tuple):
        return precision
    if isinstance(precision, lax.Precision):
        return precision, precision
    raise NotImplementedError(f"the precision {precision}")


def _dot(
    a: jax.Array,
    b: jax.Array,
    contract: Any,
    batch: Any,
    precision: Any,
    preferred_element_type: Any,
) -> jax.Array:
    return lax.dot_general(
        a,
        b,
        (contract, batch),
        precision=precision[0] if precision and len(precision) == 1 else precision,
        preferred_element_type=preferred_element_type,
    )


def _conv_params(eqn: JaxprEqn) -> dict[str, Any]:
    numbers = eqn.params["dimension_numbers"]
    same = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "preferred_element_type")
    groups = ("feature_group_count", "batch_group_count")
    return {
        **{name: eqn.params[name] for name in (*same, *groups)},
        "dimension_numbers": (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec),
        "precision": _pair(eqn.params["precision"]),
    }


def _conv(a: jax.Array, b: jax.Array, dimension_numbers: Any, **params: Any) -> jax.Array:
    return lax.conv_general_dilated(
        a, b, dimension_numbers=lax.ConvDimensionNumbers(*dimension_numbers), **params
    )


operation(
    "dot_general",
    2,
    _dot,
    {
        "contract": listed(INTS),
        "batch": listed(INTS),
        "precision": _ALGORITHMS,
        "preferred_element_type": optional(DTYPE),
    },
    params=_dot_params,
    known=("dimension_numbers",),
)
operation(
    "conv_general_dilated",
    2,
    _conv,
    {
        "window_strides": INTS,
        "padding": listed(DIMS),
        "lhs_dilation": INTS,
        "rhs_dilation": INTS,
        "feature_group_count": INT,
        "batch_group_count": INT,
        "dimension_numbers": listed(INTS),
        "precision": _PRECISIONS,
        "preferred_element_type": optional(DTYPE),
    },
    params=_conv_params,
)
operation(
    "cholesky",
    1,
    lambda x: lax.linalg.cholesky(x, symmetrize_input=False),
    known=("symmetrize_input",),
)
operation(
    "triangular_solve",
    2,
    lambda a, b, **params: lax.linalg.triangular_solve(a, b, **params),
    {
        "left_side": BOOL,
        "lower": BOOL,
        "transpose_a": BOOL,
        "conjugate_a": BOOL,
        "unit_diagonal": BOOL,
    },
)
operation("lu", 1, lambda x: list(lax.linalg.lu(x)), outputs=3)
operation(
    "qr",
    1,
    lambda x, **params: list(lax.linalg.qr(x, **params)),
    {"full_matrices": BOOL, "pivoting": BOOL},
    known=("use_magma",),  # which library of a GPU computes it
    outputs=None,
)
operation(
    "fft",
    1,
    lambda x, fft_type, fft_lengths: lax.fft(x, fft_type, fft_lengths),
    {"fft_type": enum(lax.FftType), "fft_lengths": DIMS},
)
