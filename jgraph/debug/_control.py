"""Control flow that runs in Python hands arrays to its bodies, as compiled control flow does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jgraph._eager import THREAD, as_array
from jgraph.debug import _private as private


def scan(f: Callable[..., Any], init: Any, *args: Any, **kwargs: Any) -> Any:
    """`jax.lax.scan`, of which no step sees a Python number."""
    if not _is_python():
        return private.scan(f, init, *args, **kwargs)
    if _is_empty(*args, **kwargs):  # which Python's loop can't know the result's type of
        with jax.disable_jit(False):
            return private.scan(f, _arrays(init), *args, **kwargs)
    return private.scan(lambda c, x: _arrays(f(c, x)), _arrays(init), *args, **kwargs)


def while_loop(
    cond_fun: Callable[..., Any], body_fun: Callable[..., Any], init_val: Any, **kwargs: Any
) -> Any:
    """`jax.lax.while_loop`, of which no step sees a Python number."""
    if not _is_python():
        return private.while_loop(cond_fun, body_fun, init_val, **kwargs)
    body = lambda carry: _arrays(body_fun(carry))  # noqa: E731
    return private.while_loop(cond_fun, body, _arrays(init_val), **kwargs)


def cond(pred: Any, *args: Any, **kwargs: Any) -> Any:
    """`jax.lax.cond`, whose branches are given arrays and return them."""
    if not _is_python():
        return private.cond(pred, *args, **kwargs)
    functions, operands = args[:2], args[2:]
    return _arrays(private.cond(pred, *functions, *_arrays(operands), **kwargs))


def switch(
    index: Any, branches: Sequence[Callable[..., Any]], *operands: Any, **kwargs: Any
) -> Any:
    """`jax.lax.switch`, whose branches are given arrays and return them."""
    if not _is_python():
        return private.switch(index, branches, *operands, **kwargs)
    return _arrays(private.switch(index, branches, *_arrays(operands), **kwargs))


def _is_python() -> bool:
    # jax documents this attribute and adds it at run time, where no type checker sees it.
    is_off: bool = jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
    return THREAD.mode is not None and is_off


def _is_empty(xs: Any = None, length: Any = None, *_: Any, **__: Any) -> bool:
    sizes = [length] if length is not None else []
    return 0 in (*sizes, *(x.shape[0] for x in jax.tree.leaves(xs)[:1]))


def _arrays(tree: Any) -> Any:
    return jax.tree.map(as_array, tree)
