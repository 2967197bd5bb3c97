"""Operations that read and write by index: gather, scatter, and the gradient of max pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from jgraph._errors import GraphFormatError
from jgraph.graph._file._kinds import BOOL, DIMS, INTS, Kind, enum, listed, optional
from jgraph.graph._file._table import operation
from jgraph.graph._file._values import NUMBER

_GATHER = (
    "offset_dims",
    "collapsed_slice_dims",
    "start_index_map",
    "operand_batching_dims",
    "start_indices_batching_dims",
)
_SCATTER = (
    "update_window_dims",
    "inserted_window_dims",
    "scatter_dims_to_operand_dims",
    "operand_batching_dims",
    "scatter_indices_batching_dims",
)
_HOW: dict[str, Kind] = {
    "indices_are_sorted": BOOL,
    "unique_indices": BOOL,
    "mode": enum(lax.GatherScatterMode),
}


def _numbers(eqn: JaxprEqn, names: tuple[str, ...]) -> dict[str, Any]:
    numbers = eqn.params["dimension_numbers"]
    return {name: getattr(numbers, name) for name in names}


def _gather(
    x: jax.Array,
    indices: jax.Array,
    slice_sizes: Any,
    indices_are_sorted: bool,
    unique_indices: bool,
    mode: Any,
    fill_value: Any,
    **numbers: Any,
) -> jax.Array:
    return lax.gather(
        x,
        indices,
        lax.GatherDimensionNumbers(**numbers),
        slice_sizes,
        indices_are_sorted=indices_are_sorted,
        unique_indices=unique_indices,
        mode=mode,
        fill_value=fill_value,
    )


def _scatter(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def replay(
        x: jax.Array,
        indices: jax.Array,
        updates: jax.Array,
        indices_are_sorted: bool,
        unique_indices: bool,
        mode: Any,
        **numbers: Any,
    ) -> jax.Array:
        return fn(
            x,
            indices,
            updates,
            lax.ScatterDimensionNumbers(**numbers),
            indices_are_sorted=indices_are_sorted,
            unique_indices=unique_indices,
            mode=mode,
        )

    return replay


operation(
    "gather",
    2,
    _gather,
    {
        **dict.fromkeys(_GATHER, INTS),
        "slice_sizes": DIMS,
        **_HOW,
        "fill_value": optional(NUMBER),
    },
    params=lambda eqn: {
        **_numbers(eqn, _GATHER),
        **{k: eqn.params[k] for k in ("slice_sizes", *_HOW, "fill_value")},
    },
    known=("dimension_numbers",),
)
for _name, _fn in (
    ("scatter", lax.scatter),
    ("scatter-add", lax.scatter_add),
    ("scatter-sub", lax.scatter_sub),
    ("scatter-mul", lax.scatter_mul),
    ("scatter-min", lax.scatter_min),
    ("scatter-max", lax.scatter_max),
):
    operation(
        _name,
        3,
        _scatter(_fn),
        {**dict.fromkeys(_SCATTER, INTS), **_HOW},
        params=lambda eqn: {
            **_numbers(eqn, _SCATTER),
            **{k: eqn.params[k] for k in _HOW},
        },
        # The function that combines is the name's.
        known=("dimension_numbers", "update_jaxpr", "update_consts"),
    )


def _pool(select: str, window_dimensions: Any, window_strides: Any, padding: Any) -> Any:
    """Return max or min pooling, whose derivatives select."""
    combine, start = (lax.max, -jnp.inf) if select == "ge" else (lax.min, jnp.inf)

    def pool(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise GraphFormatError(f"a pooling gradient must be of floats, got {x.dtype}")
        first = np.asarray(start, x.dtype)  # a constant, by which JAX knows max and min
        return lax.reduce_window(x, first, combine, window_dimensions, window_strides, padding)

    return pool


def _select_params(eqn: JaxprEqn) -> dict[str, Any]:
    same = ("window_dimensions", "window_strides", "padding")
    return {**{k: eqn.params[k] for k in same}, "select": eqn.params["select_prim"].name}


_SELECT = Kind(
    lambda value, _: value,
    lambda value, where: _check_select(value, where),
    lambda value, _: value,
)


def _check_select(value: Any, where: str) -> None:
    if value not in ("ge", "le"):
        raise GraphFormatError(f"{where} must be 'ge' or 'le', got {value!r:.40}")


_WINDOW = {
    "select": _SELECT,
    "window_dimensions": DIMS,
    "window_strides": INTS,
    "padding": listed(DIMS),
}
operation(
    "select_and_scatter_add",
    2,
    lambda source, x, select, **window: jax.vjp(_pool(select, **window), x)[1](source)[0],
    _WINDOW,
    params=_select_params,
    known=("select_prim",),
)
operation(
    "select_and_gather_add",
    2,
    lambda tangents, x, select, **window: jax.jvp(_pool(select, **window), (x,), (tangents,))[1],
    _WINDOW,
    params=_select_params,
    known=("select_prim", "base_dilation", "window_dilation"),
)
