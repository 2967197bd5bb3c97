"""Whether the user is debugging: the one question that the other parts ask about it."""

from __future__ import annotations

import os
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SAID = os.environ.get("JGRAPH_DEBUG", "").strip().lower()

ASKED = _SAID not in ("", "0", "false", "no", "off")
"""Whether `JGRAPH_DEBUG` asked for debug mode when jgraph was imported."""

ASKED_LEVEL = "functions" if _SAID == "functions" else "all"
"""The level that it asked for: `JGRAPH_DEBUG=functions` is the faster one."""


class _Thread(threading.local):
    """This thread's debug mode; the class attribute is what other threads see."""

    mode: Any = None


THREAD = _Thread()


def jit_is_off() -> bool:
    """Return whether debug mode or `jax.disable_jit` holds, so that values are concrete."""
    # jax documents this attribute and adds it at run time, where no type checker sees it.
    return THREAD.mode is not None or bool(
        jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
    )


def as_array(x: Any) -> Any:
    """Return a number or an array of NumPy's as an array of JAX's, anything else as it is.

    That is what a trace does to values of the program around it.
    """
    numbers = (np.ndarray, np.generic, bool, int, float, complex)
    if not isinstance(x, numbers) or getattr(x, "dtype", None) == jax.dtypes.float0:
        return x
    return jnp.asarray(x)
