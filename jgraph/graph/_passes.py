"""Passes: a traced program in, an equivalent one out, before it is compiled.

What a pass returns is compiled and nothing else: a Graph's picture, file and costs are those of
the program as the user wrote it.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from jgraph.graph._convolutions import compile_factor, fast_convolution
from jgraph.graph._folding import find_batch_norms
from jgraph.graph._rewrite import rewrite, rewrite_matches

_LOG = logging.getLogger("jgraph")

_OFF = frozenset({"0", "false", "no", "off"})


class Passes(NamedTuple):
    """Which passes run that can be switched off; see `jgraph.graph.function`."""

    fast_convolutions: bool = True
    fold_batch_norms: bool = True


EVERY = Passes()
NONE = Passes(fast_convolutions=False, fold_batch_norms=False)


def drop_no_ops(program: ClosedJaxpr) -> ClosedJaxpr:
    """Drop equations that return what they are given: a reshape to the same shape and the like.

    Code that is general in shapes and types leaves many; XLA drops them too, but only after they
    were lowered.
    """
    return rewrite(program, _no_op)


def fold_batch_norms(program: ClosedJaxpr) -> ClosedJaxpr:
    """Fold what scales and shifts channels, for CPUs alone, into the convolution before it.

    That is BatchNorm in evaluation mode; in training its statistics depend on the convolution, so
    it stays. `JGRAPH_FOLD_BATCH_NORMS=0` in the environment leaves all as it is.
    """
    if _is_off("JGRAPH_FOLD_BATCH_NORMS"):
        return program
    return rewrite_matches(program, find_batch_norms)


def fast_convolutions(program: ClosedJaxpr, name: str = "a program") -> ClosedJaxpr:
    """Write convolutions, for CPUs alone, as what XLA compiles well there.

    `JGRAPH_FAST_CONV=0` in the environment leaves them as they are. Where that would take more than
    twice as long to compile, the log says so, once.

    Args:
        program: as traced.
        name: what the log calls it.
    """
    if _is_off("JGRAPH_FAST_CONV"):
        return program
    if jax.default_backend() == "cpu" and (factor := compile_factor(program)) > 2:
        _say_it_compiles_long(name, round(factor))
    return rewrite(program, fast_convolution)


@functools.cache
def _say_it_compiles_long(name: str, factor: int) -> None:
    _LOG.warning(
        "%s compiles about %d times as long, since its convolutions are rewritten to run faster on "
        "a CPU; jg.enable_compilation_cache() keeps what was compiled for the next run, and "
        "jg.function(fast_convolutions=False) or JGRAPH_FAST_CONV=0 compiles them as XLA does",
        name,
        factor,
    )


def run_passes(
    program: ClosedJaxpr, passes: Passes = EVERY, *, name: str = "a program"
) -> ClosedJaxpr:
    """Return the program that is compiled in the place of a traced one.

    Args:
        program: as traced, after differentiation.
        passes: which of them.
        name: the function's, for the log.
    """
    program = drop_no_ops(program)
    if passes.fold_batch_norms:
        program = fold_batch_norms(program)
    return fast_convolutions(program, name) if passes.fast_convolutions else program


def _is_off(variable: str) -> bool:
    return os.environ.get(variable, "1").strip().lower() in _OFF


def _no_op(eqn: JaxprEqn) -> Callable[..., Any] | None:
    name, params = eqn.primitive.name, eqn.params
    if name not in ("reshape", "transpose", "convert_element_type", "broadcast_in_dim", "squeeze"):
        return None
    (out,), x = eqn.outvars, eqn.invars[0]
    if len(eqn.invars) != 1 or isinstance(x, Literal) or x.aval != out.aval:
        return None
    if name == "transpose" and tuple(params["permutation"]) != tuple(
        range(len(params["permutation"]))
    ):
        return None
    return lambda x: [x]
