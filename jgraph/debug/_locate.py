"""Finds out, by running a program again, where its first NaN or infinity comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jgraph._eager import THREAD
from jgraph.debug._mode import compiled_mode, debug_mode


def describe_bad(tree: Any, name: str) -> str | None:
    """Say which array of a pytree isn't finite, and in which rows.

    Args:
        tree: a pytree of arrays, such as a batch.
        name: what it is called.

    Returns:
        A sentence; None where everything is finite.

    Example:
        >>> import numpy as np
        >>> describe_bad({"x": np.array([[1.0, 2.0], [np.nan, 4.0]])}, "the batch")
        "the batch['x'] holds NaN (1 of 4 values, in row 1 and no other)"
    """
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.asarray(leaf)
        if not jnp.issubdtype(array.dtype, np.floating):
            continue
        for what, test in (("NaN", np.isnan), ("inf", np.isinf)):
            bad = test(array)
            if bad.any():
                rows = np.flatnonzero(bad.reshape(len(bad), -1).any(1)) if bad.ndim else [0]
                others = f"and {len(rows) - 1} others" if len(rows) > 1 else "and no other"
                return (
                    f"{name}{jax.tree_util.keystr(path)} holds {what} ({bad.sum()} of {bad.size} "
                    f"values, in row {rows[0]} {others})"
                )
    return None


def locate(fn: Callable[..., Any], *args: Any) -> str | None:
    """Run a function again in debug mode, and say which operation made something not finite.

    An infinity counts only where no NaN comes up, since programs also mask with it. A NaN that no
    operation made, since it was in the arguments or in what the function closes over, is named by
    the first operation that was given it.

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
            # Leaves the debug mode around it, if any: what that was given isn't this function's.
            with compiled_mode(), debug_mode(check=check):
                given = THREAD.mode.given
                fn(*args)
        except FloatingPointError as error:
            return str(error)
        if given:
            return given[0]
    return None
