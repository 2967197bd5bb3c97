"""All that debug mode does to JAX, and a test that it does it right on this version."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jgraph._eager import THREAD
from jgraph.debug import _control as control
from jgraph.debug import _private as private
from jgraph.debug import _transforms as transforms
from jgraph.debug._forward import jvp
from jgraph.debug._reverse import vjp
from jgraph.debug._trace import Eager, Watch, is_plain

__all__ = ["is_plain", "private", "replacements", "self_test", "unwatched", "watch"]

_NEW = {
    "batch": transforms.batch,
    "cond": control.cond,
    "jvp": jvp,
    "remat": transforms.trace_to_jaxpr,
    "remat3": transforms.remat3,
    "scan": control.scan,
    "switch": control.switch,
    "trace_state": transforms.trace_state,
    "vjp": vjp,
    "while_loop": control.while_loop,
}


def replacements() -> list[tuple[Any, str, Any]]:
    """Return (owner, name, what debug mode puts there)."""
    return [(owner, name, _NEW[key]) for key, at in private.PATCHED.items() for owner, name in at]


def watch() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which every operation is looked at; in a transformation there is none."""
    trace = private.current_trace()
    if isinstance(trace, Eager) or not private.is_eager(trace):
        return contextlib.nullcontext()
    return private.set_current_trace(Watch(trace))


def unwatched() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which operations aren't looked at; what is differentiated stays so."""
    trace = private.current_trace()
    if not isinstance(trace, Watch):
        return contextlib.nullcontext()
    return private.set_current_trace(trace.parent)


class _SelfTestMode:
    check, vmap, compile_after = ("nan",), "batch", None


def self_test() -> None:
    """Differentiate a small program on plain arrays.

    Raises:
        Exception: of any kind, where this version of JAX works otherwise.
    """
    kinds: list[type] = []

    def see(x: Any) -> Any:
        kinds.append(type(x))
        return x

    @jax.checkpoint
    def body(x: Any) -> Any:
        return jax.lax.mul(see(x), x)

    before, THREAD.mode = THREAD.mode, _SelfTestMode
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements()]
    try:
        for owner, name, new in replacements():
            setattr(owner, name, new)
        # Outside of whatever trace asks: the first question may come from within one.
        with private.eval_context(), jax.disable_jit(), watch():
            x = jnp.arange(1.0, 3.0)
            gradient = jax.grad(lambda x: jax.lax.dot(body(x), x))(x)
    finally:
        for owner, name, old in originals:
            setattr(owner, name, old)
        THREAD.mode = before
    if not np.array_equal(np.asarray(gradient), [3.0, 12.0]):
        raise AssertionError(f"the gradient of a cube came out as {gradient}")
    if kinds != [type(x)]:
        raise AssertionError(f"a function under jax.checkpoint was given {kinds}")
