"""Whether the user is debugging: the one question the loop asks about it."""

from __future__ import annotations

import jax


def jit_is_off() -> bool:
    """Return whether `jax.disable_jit` holds, so that every value is to be a concrete one."""
    # jax documents this attribute and adds it at run time, where no type checker sees it.
    return bool(jax.config.jax_disable_jit)  # pyright: ignore[reportAttributeAccessIssue]
