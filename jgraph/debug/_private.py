"""JAX's private names: all of them are here.

`import` fails on a JAX that lacks one, and `_self_test` finds out whether they still mean the same;
`debug_mode` falls back on public means in either case.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend.core
from jax._src import ad_checkpoint, api, config, core
from jax._src.ad_util import SymbolicZero, Zero, instantiate
from jax._src.interpreters import batching
from jax._src.lax.control_flow import conditionals, loops

Trace = core.Trace
EvalTrace = core.EvalTrace
BatchTrace = batching.BatchTrace
set_current_trace = core.set_current_trace
eval_context = core.eval_context
remat_p = ad_checkpoint.remat_p
NO_AXIS_NAME = core.no_axis_name
ZEROS = (Zero, SymbolicZero)
_LEAST_SECONDS = 1.0  # JAX's default for what it keeps on disk

# What debug mode replaces, as (module, name); `jax.vjp` is the name that people call.
PATCHED = {
    "vjp": ((api, "vjp"), (jax, "vjp")),
    "jvp": ((api, "_jvp"),),
    "batch": ((batching, "batch"),),
    "remat": ((ad_checkpoint, "_trace_to_jaxpr"),),
    "remat3": ((ad_checkpoint, "remat3"),),
    "scan": ((loops, "scan"), (jax.lax, "scan")),
    "while_loop": ((loops, "while_loop"), (jax.lax, "while_loop")),
    "cond": ((conditionals, "cond"), (jax.lax, "cond")),
    "switch": ((conditionals, "switch"), (jax.lax, "switch")),
    "trace_state": ((jax.extend.core, "get_opaque_trace_state"),),
}

vjp = api.vjp
jvp = api._jvp
batch = batching.batch
trace_to_jaxpr = ad_checkpoint._trace_to_jaxpr
remat3 = ad_checkpoint.remat3
scan, while_loop = loops.scan, loops.while_loop
cond, switch = conditionals.cond, conditionals.switch
trace_state = jax.extend.core.get_opaque_trace_state


def current_trace() -> Any:
    """Return what processes this thread's operations just now."""
    return core.trace_ctx.trace


def bind(trace: Any, primitive: Any, args: Any, params: Any) -> list[Any]:
    """Apply an operation under a trace, and return a list of its outputs."""
    with set_current_trace(trace):
        outputs = primitive.bind(*args, **params)
    return list(outputs) if primitive.multiple_results else [outputs]


def hand_on(trace: Any, primitive: Any, args: Any, params: Any) -> list[Any]:
    """Do the same from within a trace that was handed the operation: its arguments are checked."""
    if "is_high" in vars(primitive) or type(primitive).is_high is not core.Primitive.is_high:
        return bind(trace, primitive, args, params)
    outputs = trace.process_primitive(primitive, args, params)
    return list(outputs) if primitive.multiple_results else [outputs]


def bind_custom(trace: Any, primitive: Any, args: Any, params: Any) -> Any:
    """Hand a function with a derivative of its own to a trace."""
    with set_current_trace(trace):
        types = [core.typeof(x) for x in args]
        return primitive.bind_with_trace(trace, tuple(args), types, params)


def parents(trace: Any) -> Iterator[Any]:
    """Yield a trace and those that its operations are handed on to."""
    while trace is not None:
        yield trace
        # debug's traces and JAX's own say it differently
        trace = getattr(trace, "parent", None) or getattr(trace, "parent_trace", None)


def call_again(function: Any) -> Any:
    """Return a wrapped function that may be called once more: its side outputs are emptied."""
    for store in function.stores:
        if store is not None:
            store.reset()
    return function


def trace_state_of(trace: Any) -> Any:
    """Return the level of a trace, as Flax asks for it to know where an object was made."""
    return core.OpaqueTraceState(trace._weakref)


def is_eager(trace: Any) -> bool:
    """Return whether a trace is the one that runs operations outside of all transformations."""
    return isinstance(trace, EvalTrace)


def no_tangent(x: Any, *, symbolic: bool) -> Any:
    """Return the tangent of what isn't differentiated, as rules of jax.custom_jvp want it."""
    aval = core.typeof(x).to_tangent_aval()
    return SymbolicZero(aval) if symbolic else instantiate(Zero(aval))


def cotangents_of(found: Any) -> Any:
    """Return the cotangents of a custom_vjp's backward; from JAX 0.12 on it returns more."""
    pair = isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], list)
    return found[0] if pair else found


def keep_compiled() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which all that this thread compiles is kept on disk, if anything is.

    A program of one operation compiles faster than JAX's least time, and debug mode has hundreds.
    """
    least, folder = config.persistent_cache_min_compile_time_secs, config.compilation_cache_dir
    # Who chose another least time keeps it; where nothing can be written JAX would warn each time.
    if least.value != _LEAST_SECONDS or not folder.value or not os.access(folder.value, os.W_OK):
        return contextlib.nullcontext()
    return least(0.0)
