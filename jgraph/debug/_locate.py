"""Finds out, by running a program again, where its first NaN or infinity comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jgraph.debug._mode import debug_mode


def locate(fn: Callable[..., Any], *args: Any) -> str | None:
    """Run a function again in debug mode, and say which operation made something not finite.

    An infinity counts only where no NaN comes up, since programs also mask with it.

    Args:
        fn: what to run; it is run up to twice, so it must not change its arguments.
        *args: its arguments.

    Returns:
        A sentence that names the operation, the line of the user's file, the module's path,
        forward or backward, and what went in; None where everything is finite. It may be None
        too where rounding differs from the compiled program's, or on a version of JAX whose inside
        jgraph doesn't know.

    Example:
        >>> import jax.numpy as jnp
        >>> print(locate(lambda x: jnp.log(x - 1.0), jnp.zeros(2)))
        log made NaN (2 of 2 values) at ..., forward; its inputs: float32[2] = -1
    """
    for check in (("nan",), ("nan", "inf")):
        try:
            with debug_mode(check=check):
                fn(*args)
        except FloatingPointError as error:
            return str(error)
    return None
