"""Tracers that show the values behind them, in bodies of vmap and shard_map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import numpy as np

from jgraph._eager import THREAD


def value(x: Any) -> Any:
    """Return the concrete array behind a tracer, None where there is none.

    Inside `jax.grad` and `jax.jvp` that is the value itself, without debug mode too. In a body of
    `jax.vmap` it is the whole batch, with the axis of examples, and in one of `jax.shard_map` it is
    the parts of all devices. While `jax.jit` traces, there are no values.

    Args:
        x: a tracer or an array.

    Returns:
        The array, x itself where it is one; None for anything without a value.

    Example:
        >>> def loss(x):
        ...     print(value(x))
        ...     return x.sum()
        >>> _ = jax.grad(loss)(np.ones(2, np.float32))
        [1. 1.]
        >>> _ = jax.jit(loss)(np.ones(2, np.float32))
        None
    """
    while isinstance(x, jax.core.Tracer):
        x = x.primal if hasattr(x, "primal") else getattr(x, "val", None)
    return x if hasattr(x, "dtype") else None


def _own_value(x: Any) -> Any:
    """Return the value of a tracer that stands for one array, None in a body of vmap."""
    found = value(x)
    return found if found is not None and np.shape(found) == x.shape else None


def _repr(x: Any) -> str | None:
    found = value(x)
    if found is None:
        return None
    if np.shape(found) == x.shape:
        return repr(found)
    return f"{found!r} <the whole batch; here each example's {x.aval.str_short()}>"


def _str(x: Any) -> str | None:
    found = value(x)
    return None if found is None else str(found)


def _format(x: Any, spec: str) -> str | None:
    found = value(x)
    if found is None:
        return None
    if spec and np.ndim(found):  # numbers are formatted, arrays aren't
        return np.array2string(np.asarray(found), formatter={"all": lambda v: format(v, spec)})
    return format(found, spec)


def _array(x: Any, *args: Any, **kwargs: Any) -> Any:
    found = value(x)
    return None if found is None else np.asarray(found, *args, **kwargs)


def _tolist(x: Any) -> Any:
    found = value(x)
    return None if found is None else np.asarray(found).tolist()


def _item(x: Any, *args: Any) -> Any:
    found = value(x)
    return None if found is None else np.asarray(found).item(*args)


def _number(kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def convert(x: Any) -> Any:
        found = _own_value(x)
        return None if found is None else kind(found)

    return convert


FRIENDLY: dict[str, Callable[..., Any]] = {
    "__repr__": _repr,
    "__str__": _str,
    "__format__": _format,
    "__array__": _array,
    "__bool__": _number(bool),
    "__float__": _number(float),
    "__int__": _number(int),
    "tolist": _tolist,
    "item": _item,
}


def friendly(original: Callable[..., Any], shown: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of tracers that in debug mode answers with the value where there is one."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if THREAD.mode is not None:
            found = shown(self, *args, **kwargs)
            if found is not None:
                return found
        return original(self, *args, **kwargs)

    return method
