"""Operations that move elements: shapes, slices, sorting; and those that reduce them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jgraph.graph._file._kinds import (
    BOOL,
    DIM,
    DIMS,
    DTYPE,
    INT,
    INTS,
    listed,
    optional,
)
from jgraph.graph._file._table import operation


def _type_made(aval: Any) -> dict[str, Any]:
    return {"shape": aval.shape, "dtype": aval.dtype}


def _unstack(x: jax.Array, axis: int) -> list[jax.Array]:
    if x.shape[axis] > 4096:
        raise ValueError(f"an axis of {x.shape[axis]} is too long")
    return list(jnp.unstack(x, axis=axis))


def _cumulative(fn: Any) -> Any:
    return lambda x, axis, reverse: fn(x, axis, reverse)


operation(
    "broadcast_in_dim",
    1,
    lambda x, shape, broadcast_dimensions: lax.broadcast_in_dim(x, shape, broadcast_dimensions),
    {"shape": DIMS, "broadcast_dimensions": INTS},
    params=lambda eqn: {k: eqn.params[k] for k in ("shape", "broadcast_dimensions")},
)
operation(
    "reshape",
    1,
    lambda x, new_sizes, dimensions: lax.reshape(x, new_sizes, dimensions),
    {"new_sizes": DIMS, "dimensions": optional(INTS)},
)
operation(
    "transpose", 1, lambda x, permutation: lax.transpose(x, permutation), {"permutation": INTS}
)
operation("squeeze", 1, lambda x, dimensions: lax.squeeze(x, dimensions), {"dimensions": INTS})
operation(
    "expand_dims", 1, lambda x, dimensions: lax.expand_dims(x, dimensions), {"dimensions": INTS}
)
operation("rev", 1, lambda x, dimensions: lax.rev(x, dimensions), {"dimensions": INTS})
operation(
    "concatenate", None, lambda *xs, dimension: lax.concatenate(xs, dimension), {"dimension": INT}
)
operation("tile", 1, lambda x, reps: lax.tile(x, reps), {"reps": DIMS})
operation("stack", None, lambda *xs, axis: lax.stack(xs, axis), {"axis": INT})
operation(
    "split",
    1,
    lambda x, sizes, axis: lax.split(x, sizes, axis),
    {"sizes": DIMS, "axis": INT},
    outputs=None,
)
operation("unstack", 1, lambda x, axis: _unstack(x, axis), {"axis": INT}, outputs=None)
operation(
    "pad",
    2,
    lambda x, value, padding_config: lax.pad(x, value, padding_config),
    {"padding_config": listed(DIMS)},
)
operation(
    "iota",
    0,
    lambda dtype, shape, dimension: lax.broadcasted_iota(dtype, shape, dimension),
    {"dtype": DTYPE, "shape": DIMS, "dimension": INT},
)
operation(
    "empty",
    0,
    lambda shape, dtype: lax.full(shape, 0, dtype),
    {"shape": DIMS, "dtype": DTYPE},
    primitives=("empty", "empty2"),
    params=lambda eqn: _type_made(eqn.outvars[0].aval),
    known=("memory_space",),
)
operation("dim_as_value", 0, lambda dim: jnp.asarray(dim, jnp.int32), {"dim": DIM})
operation(
    "slice",
    1,
    lambda x, start_indices, limit_indices, strides: lax.slice(
        x, start_indices, limit_indices, strides
    ),
    {"start_indices": DIMS, "limit_indices": DIMS, "strides": optional(INTS)},
)
operation(
    "dynamic_slice",
    None,
    lambda x, *starts, slice_sizes: lax.dynamic_slice(
        x, starts, slice_sizes, allow_negative_indices=False
    ),
    {"slice_sizes": DIMS},
)
operation(
    "dynamic_update_slice",
    None,
    lambda x, update, *starts: lax.dynamic_update_slice(
        x, update, starts, allow_negative_indices=False
    ),
)
operation(
    "sort",
    None,
    lambda *xs, dimension, is_stable, num_keys: list(
        lax.sort(xs, dimension=dimension, is_stable=is_stable, num_keys=num_keys)
    ),
    {"dimension": INT, "is_stable": BOOL, "num_keys": INT},
    outputs=None,
)
operation(
    "top_k",
    1,
    lambda x, k, axis: list(lax.top_k(x, k, axis=axis)),
    {"k": INT, "axis": INT},
    known=("is_stable",),
    outputs=2,
)
for _name, _fn in (
    ("cumsum", lax.cumsum),
    ("cumprod", lax.cumprod),
    ("cummax", lax.cummax),
    ("cummin", lax.cummin),
    ("cumlogsumexp", lax.cumlogsumexp),
):
    operation(_name, 1, _cumulative(_fn), {"axis": INT, "reverse": BOOL})


def _lowest(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.floating):
        return -jnp.inf
    return False if dtype == jnp.bool_ else jnp.iinfo(dtype).min


def _highest(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.inf
    return True if dtype == jnp.bool_ else jnp.iinfo(dtype).max


for _fn in (
    lax.reduce_sum,
    lax.reduce_prod,
    lax.reduce_max,
    lax.reduce_min,
    lax.reduce_and,
    lax.reduce_or,
    lax.reduce_xor,
):
    operation(_fn.__name__, 1, lambda x, axes, fn=_fn: fn(x, axes), {"axes": INTS})
for _name, _fn in (("argmax", lax.argmax), ("argmin", lax.argmin)):
    operation(
        _name,
        1,
        lambda x, axes, index_dtype, fn=_fn: fn(x, axes[0], index_dtype),
        {"axes": INTS, "index_dtype": DTYPE},
    )
_WINDOW = {
    "window_dimensions": DIMS,
    "window_strides": INTS,
    "padding": listed(DIMS),
    "base_dilation": INTS,
    "window_dilation": INTS,
}


def _window(start: Any, combine: Any) -> Any:
    def replay(
        x: jax.Array,
        window_dimensions: Any,
        window_strides: Any,
        padding: Any,
        base_dilation: Any,
        window_dilation: Any,
    ) -> jax.Array:
        first = start(x.dtype) if callable(start) else start
        return lax.reduce_window(
            x,
            np.asarray(first, x.dtype),  # a constant, by which JAX knows sum and max
            combine,
            window_dimensions,
            window_strides,
            padding,
            base_dilation,
            window_dilation,
        )

    return replay


operation("reduce_window_sum", 1, _window(0, lax.add), _WINDOW)
operation("reduce_window_max", 1, _window(_lowest, lax.max), _WINDOW)
operation("reduce_window_min", 1, _window(_highest, lax.min), _WINDOW)
