"""What debug mode puts in the place of `jax.checkpoint`'s tracing and of vmap's batching."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jgraph._eager import THREAD
from jgraph.debug import _private as private
from jgraph.debug._trace import Body, Eager, Watch, is_plain


def trace_to_jaxpr(fun: Callable[..., Any], tree: Any, types: Any, info: Any) -> Any:
    """Return a body that runs the function where `jax.checkpoint` would trace it."""
    if THREAD.mode is None or not isinstance(private.current_trace(), Eager):
        return private.trace_to_jaxpr(fun, tree, types, info)
    # The body returns one thing: the function's result as it is.
    return Body(fun, tree), [], jax.tree.structure(0)


def remat3(fun: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """`jax.checkpoint` as newer versions of JAX have it."""
    if fun is None:
        return functools.partial(remat3, **options)
    compiled = private.remat3(fun, **options)

    @functools.wraps(fun)
    def call(*args: Any, **kwargs: Any) -> Any:
        eager = THREAD.mode is not None and isinstance(private.current_trace(), Eager)
        return (fun if eager else compiled)(*args, **kwargs)

    return call


def trace_state(**options: Any) -> Any:
    """Return the level of objects: that of the program around debug mode."""
    trace = private.current_trace()
    if isinstance(trace, Watch):
        return private.trace_state_of(trace.parent)
    return private.trace_state(**options)


def batch(fun: Any, axis_data: Any, in_dims: Any, out_dims: Any, **options: Any) -> Any:
    """Return a vmapped function: in debug mode on request one that runs example by example."""
    mode = THREAD.mode
    if (
        mode is None
        or mode.vmap != "loop"
        or not is_plain(private.current_trace())
        or any(options.values())
        or callable(in_dims)
        or not _are_axes(in_dims)
        or axis_data.name not in (None, private.NO_AXIS_NAME)
        or axis_data.spmd_name is not None
        or not axis_data.size
    ):
        return private.batch(fun, axis_data, in_dims, out_dims, **options)
    return _Loop(fun, axis_data.size, in_dims, out_dims)


class _Loop:
    """A function that is run once for each example."""

    def __init__(self, fun: Any, size: int, in_dims: Any, out_dims: Any) -> None:
        self._fun, self._size = fun, size
        self._in_dims, self._out_dims = in_dims, out_dims

    def call_wrapped(self, *values: Any) -> Any:
        rows = [
            private.call_again(self._fun).call_wrapped(
                *(_example(x, axis, i) for x, axis in zip(values, self._in_dims, strict=True))
            )
            for i in range(self._size)
        ]
        axes: Any = self._out_dims() if callable(self._out_dims) else self._out_dims
        columns = zip(zip(*rows, strict=True), axes, strict=True)
        return [x[0] if axis is None else jnp.stack(x, axis) for x, axis in columns], axes


def _example(x: Any, axis: int | None, i: int) -> Any:
    return x if axis is None else jax.lax.index_in_dim(x, i, axis, keepdims=False)


def _are_axes(dims: Any) -> bool:
    return all(axis is None or isinstance(axis, int) for axis in dims)
