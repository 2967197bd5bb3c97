"""Passes: a traced program in, an equivalent one out, before it is compiled.

What a pass returns is compiled and nothing else: a Graph's picture, file and costs are those of
the program as the user wrote it.
"""

from __future__ import annotations

import functools
import logging
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from jgraph.graph._convolutions import compile_factor, fast_convolution
from jgraph.graph._jaxpr import aval_text

_LOG = logging.getLogger("jgraph")

Rule: TypeAlias = Callable[[JaxprEqn], Callable[..., Any] | None]

# Equations whose bodies are ordinary programs of the same inputs and outputs.
_REMAT = frozenset({"checkpoint", "remat", "remat2"})
_CALLS = frozenset({"jit", "pjit", "closed_call", "core_call"})
_LOOPS = frozenset({"scan", "while", "cond"})
_OTHERS = frozenset({"custom_jvp_call", "custom_vjp_call", "shard_map"})
_OFF = frozenset({"0", "false", "no", "off"})
_WITH_BODIES = _REMAT | _CALLS | _LOOPS | _OTHERS


def rewrite(program: ClosedJaxpr, rule: Rule) -> ClosedJaxpr:
    """Replace equations, also in the bodies of scan, while, cond, jit, remat and custom rules.

    Args:
        program: a traced program.
        rule: for each equation, a function of its inputs that returns the list of its outputs,
            of the same shapes and types, or None to leave the equation alone.

    Returns:
        A program of the same inputs and outputs; the very same one where no rule applies.

    Raises:
        ValueError: the rule's function returns another number of outputs or other types.
    """
    jaxpr, consts = _rewrite(program.jaxpr, program.consts, rule)
    return program if jaxpr is program.jaxpr else ClosedJaxpr(jaxpr, consts)


def drop_no_ops(program: ClosedJaxpr) -> ClosedJaxpr:
    """Drop equations that return what they are given: a reshape to the same shape and the like.

    Code that is general in shapes and types leaves many; XLA drops them too, but only after they
    were lowered.
    """
    return rewrite(program, _no_op)


def fast_convolutions(program: ClosedJaxpr, name: str = "a program") -> ClosedJaxpr:
    """Write convolutions, for CPUs alone, as what XLA compiles well there.

    `JGRAPH_FAST_CONV=0` in the environment leaves them as they are. Where that would take more than
    twice as long to compile, the log says so, once.

    Args:
        program: as traced.
        name: what the log calls it.
    """
    if os.environ.get("JGRAPH_FAST_CONV", "1").strip().lower() in _OFF:
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
    program: ClosedJaxpr, *, convolutions: bool = True, name: str = "a program"
) -> ClosedJaxpr:
    """Return the program that is compiled in the place of a traced one.

    Args:
        program: as traced, after differentiation.
        convolutions: whether `fast_convolutions` is among the passes.
        name: the function's, for the log.
    """
    program = drop_no_ops(program)
    return fast_convolutions(program, name) if convolutions else program


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


def _rewrite(jaxpr: Jaxpr, consts: Sequence[Any], rule: Rule) -> tuple[Jaxpr, Sequence[Any]]:
    """Return the jaxpr with its equations replaced; the same object where none is."""
    names: dict[Any, Any] = {}
    equations: list[JaxprEqn] = []
    new_vars: list[Any] = []
    new_consts: list[Any] = []
    for eqn in jaxpr.eqns:
        renamed = _rename_inputs(_rewrite_bodies(eqn, rule), names)
        replacement = rule(renamed)
        if replacement is None:
            equations.append(renamed)
            continue
        closed = _traced(replacement, renamed)
        inner = dict(zip(closed.jaxpr.invars, renamed.invars, strict=True))
        for step in closed.jaxpr.eqns:
            new = _rename_inputs(step, inner)
            equations.append(new.replace(source_info=renamed.source_info))
        new_vars += closed.jaxpr.constvars
        new_consts += closed.consts
        results = [_renamed(x, inner) for x in closed.jaxpr.outvars]
        names |= dict(zip(renamed.outvars, results, strict=True))
    same = len(equations) == len(jaxpr.eqns) and all(map(operator.is_, equations, jaxpr.eqns))
    if same and not names:
        return jaxpr, consts
    outputs = [_renamed(x, names) for x in jaxpr.outvars]
    new_jaxpr = jaxpr.replace(
        eqns=equations, outvars=outputs, constvars=[*jaxpr.constvars, *new_vars]
    )
    return new_jaxpr, [*consts, *new_consts]


def _traced(replacement: Callable[..., Any], eqn: JaxprEqn) -> ClosedJaxpr:
    # A function of its own: JAX gives one program, the same variables, for each use of one.
    def fresh(*inputs: Any) -> Any:
        return replacement(*inputs)

    closed = jax.make_jaxpr(fresh)(*[_abstract(x.aval) for x in eqn.invars])
    wanted, came = ([aval_text(x) for x in xs] for xs in (eqn.outvars, closed.jaxpr.outvars))
    if wanted != came:
        raise ValueError(
            f"a pass must replace {eqn.primitive.name} by a function that returns "
            f"[{', '.join(wanted)}], got [{', '.join(came)}]"
        )
    return closed


def _rewrite_bodies(eqn: JaxprEqn, rule: Rule) -> JaxprEqn:
    # Where JAX keeps count of what varies over devices, types hold more than a rule is shown.
    if eqn.primitive.name not in _WITH_BODIES or eqn.params.get("check_vma"):
        return eqn
    changed = {}
    for key, value in eqn.params.items():
        new = _rewrite_body(value, rule)
        # The body of jax.checkpoint has no place for constants.
        full = isinstance(new, ClosedJaxpr) and new.consts and eqn.primitive.name in _REMAT
        if new is not value and not full:
            changed[key] = new
    return eqn.replace(params={**eqn.params, **changed}) if changed else eqn


def _rewrite_body(value: Any, rule: Rule) -> Any:
    if isinstance(value, ClosedJaxpr):
        return rewrite(value, rule)
    if isinstance(value, Jaxpr):
        new, consts = _rewrite(value, (), rule)
        # An open body has no place for constants.
        return value if consts else new
    if isinstance(value, tuple) and any(isinstance(x, (ClosedJaxpr, Jaxpr)) for x in value):
        bodies = tuple(_rewrite_body(x, rule) for x in value)
        return value if all(a is b for a, b in zip(bodies, value, strict=True)) else bodies
    return value


def _rename_inputs(eqn: JaxprEqn, names: dict[Any, Any]) -> JaxprEqn:
    if not names:
        return eqn
    inputs = [_renamed(x, names) for x in eqn.invars]
    if all(a is b for a, b in zip(inputs, eqn.invars, strict=True)):
        return eqn
    return eqn.replace(invars=inputs)


def _renamed(x: Any, names: dict[Any, Any]) -> Any:
    return names.get(x, x) if isinstance(x, Var) else x


def _abstract(aval: Any) -> Any:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
