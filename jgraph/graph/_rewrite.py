"""Replace equations of a traced program, also in the bodies of loops, branches and calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from jgraph.graph._jaxpr import aval_text

# Equations whose bodies are ordinary programs of the same inputs and outputs.
_REMAT = frozenset({"checkpoint", "remat", "remat2"})
_CALLS = frozenset({"jit", "pjit", "closed_call", "core_call"})
_LOOPS = frozenset({"scan", "while", "cond"})
_OTHERS = frozenset({"custom_jvp_call", "custom_vjp_call", "shard_map"})
_WITH_BODIES = _REMAT | _CALLS | _LOOPS | _OTHERS


@dataclasses.dataclass(frozen=True)
class Match:
    """Equations of one body that a function takes the place of.

    Args:
        equations: in their order. The last one's outputs are the function's; those of the others
            must be used by these equations only.
        inputs: what the function is given, known before the last equation.
        compute: returns the list of the last equation's outputs, of the same shapes and types.
    """

    equations: tuple[JaxprEqn, ...]
    inputs: tuple[Var | Literal, ...]
    compute: Callable[..., Any]


Rule: TypeAlias = Callable[[JaxprEqn], Callable[..., Any] | None]
Find: TypeAlias = Callable[[Jaxpr], Sequence[Match]]


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

    def find(jaxpr: Jaxpr) -> list[Match]:
        found = ((eqn, rule(eqn)) for eqn in jaxpr.eqns)
        return [Match((eqn,), tuple(eqn.invars), new) for eqn, new in found if new is not None]

    return rewrite_matches(program, find)


def rewrite_matches(program: ClosedJaxpr, find: Find) -> ClosedJaxpr:
    """Replace several equations at once by a function, also in bodies.

    Args:
        program: a traced program.
        find: returns what to replace in one body, of which no equation may be in two matches; the
            bodies in it have been rewritten.

    Returns:
        A program of the same inputs and outputs; the very same one where nothing is found.

    Raises:
        ValueError: a function returns another number of outputs or other types.
    """
    jaxpr, consts = _rewrite(program.jaxpr, program.consts, find)
    return program if jaxpr is program.jaxpr else ClosedJaxpr(jaxpr, consts)


def _rewrite(jaxpr: Jaxpr, consts: Sequence[Any], find: Find) -> tuple[Jaxpr, Sequence[Any]]:
    """Return the jaxpr with its equations replaced; the same object where none is."""
    inside = [_rewrite_bodies(eqn, find) for eqn in jaxpr.eqns]
    if any(new is not old for new, old in zip(inside, jaxpr.eqns, strict=True)):
        jaxpr = jaxpr.replace(eqns=inside)
    matches = find(jaxpr)
    return _replaced(jaxpr, consts, matches) if matches else (jaxpr, consts)


def _replaced(
    jaxpr: Jaxpr, consts: Sequence[Any], matches: Sequence[Match]
) -> tuple[Jaxpr, Sequence[Any]]:
    last = {id(match.equations[-1]): match for match in matches}
    gone = {id(eqn) for match in matches for eqn in match.equations}
    names: dict[Any, Any] = {}
    equations: list[JaxprEqn] = []
    new_vars: list[Any] = []
    new_consts: list[Any] = []
    for eqn in jaxpr.eqns:
        if id(eqn) not in gone:
            equations.append(_rename_inputs(eqn, names))
        if id(eqn) not in last:
            continue
        match = last[id(eqn)]
        closed = _traced(match)
        inputs = [_renamed(x, names) for x in match.inputs]
        inner = dict(zip(closed.jaxpr.invars, inputs, strict=True))
        for step in closed.jaxpr.eqns:
            new = _rename_inputs(step, inner)
            equations.append(new.replace(source_info=match.equations[0].source_info))
        new_vars += closed.jaxpr.constvars
        new_consts += closed.consts
        results = [_renamed(x, inner) for x in closed.jaxpr.outvars]
        names |= dict(zip(eqn.outvars, results, strict=True))
    outputs = [_renamed(x, names) for x in jaxpr.outvars]
    new_jaxpr = jaxpr.replace(
        eqns=equations, outvars=outputs, constvars=[*jaxpr.constvars, *new_vars]
    )
    return new_jaxpr, [*consts, *new_consts]


def _traced(match: Match) -> ClosedJaxpr:
    # A function of its own: JAX gives one program, the same variables, for each use of one.
    def fresh(*inputs: Any) -> Any:
        return match.compute(*inputs)

    closed = jax.make_jaxpr(fresh)(*[_abstract(x.aval) for x in match.inputs])
    eqn = match.equations[-1]
    wanted, came = ([aval_text(x) for x in xs] for xs in (eqn.outvars, closed.jaxpr.outvars))
    if wanted != came:
        raise ValueError(
            f"a pass must replace {eqn.primitive.name} by a function that returns "
            f"[{', '.join(wanted)}], got [{', '.join(came)}]"
        )
    return closed


def _rewrite_bodies(eqn: JaxprEqn, find: Find) -> JaxprEqn:
    # Where JAX keeps count of what varies over devices, types hold more than a rule is shown.
    if eqn.primitive.name not in _WITH_BODIES or eqn.params.get("check_vma"):
        return eqn
    changed = {}
    for key, value in eqn.params.items():
        new = _rewrite_body(value, find)
        # The body of jax.checkpoint has no place for constants.
        full = isinstance(new, ClosedJaxpr) and new.consts and eqn.primitive.name in _REMAT
        if new is not value and not full:
            changed[key] = new
    return eqn.replace(params={**eqn.params, **changed}) if changed else eqn


def _rewrite_body(value: Any, find: Find) -> Any:
    if isinstance(value, ClosedJaxpr):
        return rewrite_matches(value, find)
    if isinstance(value, Jaxpr):
        new, consts = _rewrite(value, (), find)
        # An open body has no place for constants.
        return value if consts else new
    if isinstance(value, tuple) and any(isinstance(x, (ClosedJaxpr, Jaxpr)) for x in value):
        bodies = tuple(_rewrite_body(x, find) for x in value)
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
