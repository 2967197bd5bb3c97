"""Which outputs of a program may differ between its replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from jgraph.graph import bodies_of, shape_of

# Their result is the same on all replicas of the axis they work over.
_REDUCTIONS = frozenset(
    {"psum", "psum_invariant", "psum2", "pmax", "pmin", "all_gather", "all_gather_invariant"}
)
# Their result differs even where their input doesn't.
_SCATTERS = frozenset(
    {
        *("axis_index", "psum_scatter", "reduce_scatter"),
        *("ppermute", "pshuffle", "all_to_all", "ragged_all_to_all"),
    }
)


def varying_outputs(jaxpr: Jaxpr, axis: str, varying: Sequence[bool]) -> list[bool]:
    """Return, per output, whether it may differ between replicas.

    It is exact about what is reduced over the axis, and else on the safe side: what is computed
    from something that differs counts as different.

    Args:
        jaxpr: a program traced for one replica.
        axis: the mapped axis.
        varying: whether each input differs.
    """
    differs = dict(zip(jaxpr.invars, varying, strict=True))

    def of(x: Any) -> bool:
        return not isinstance(x, Literal) and differs.get(x, False)

    for eqn in jaxpr.eqns:
        found = _outputs(eqn, axis, [of(x) for x in eqn.invars])
        differs.update(zip(eqn.outvars, found, strict=True))
    return [of(x) for x in jaxpr.outvars]


def _outputs(eqn: JaxprEqn, axis: str, varying: list[bool]) -> list[bool]:
    name, count = eqn.primitive.name, len(eqn.outvars)
    if axis in _axes(eqn):
        if name in _REDUCTIONS and eqn.params.get("axis_index_groups") is None:
            return [False] * count
        if name in _SCATTERS:
            return [True] * count
    if name == "scan":
        return _scan(eqn, axis, varying)
    if name == "while":
        return _while(eqn, axis, varying)
    bodies = bodies_of(eqn)
    if not bodies or any(not body.has_outputs for body in bodies):
        return [any(varying)] * count
    chosen_by = varying[0] if name == "cond" else False
    found = [
        varying_outputs(body.jaxpr, axis, [varying[i] for i in body.inputs]) for body in bodies
    ]
    return [chosen_by or any(outputs) for outputs in zip(*found, strict=True)]


def _axes(eqn: JaxprEqn) -> tuple[Any, ...]:
    axes = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    return tuple(axes) if isinstance(axes, (tuple, list)) else (axes,)


def _scan(eqn: JaxprEqn, axis: str, varying: list[bool]) -> list[bool]:
    (body,) = bodies_of(eqn)
    consts = len(varying) - body.carried - _scanned(eqn, body.carried)
    while True:
        found = varying_outputs(body.jaxpr, axis, varying)
        carry = varying[consts : consts + body.carried]
        grown = [a or b for a, b in zip(carry, found[: body.carried], strict=True)]
        if grown == carry:
            return found
        varying = [*varying[:consts], *grown, *varying[consts + body.carried :]]


def _scanned(eqn: JaxprEqn, carried: int) -> int:
    """Return how many inputs of a scan are taken apart, row by row."""
    (body,) = bodies_of(eqn)
    pairs = zip(eqn.invars, body.jaxpr.invars, strict=True)
    return sum(len(shape_of(x)) > len(shape_of(inner)) for x, inner in pairs)


def _while(eqn: JaxprEqn, axis: str, varying: list[bool]) -> list[bool]:
    test, body = bodies_of(eqn)
    first = len(varying) - body.carried
    while True:
        carry = varying[first:]
        (stops,) = varying_outputs(test.jaxpr, axis, [varying[i] for i in test.inputs])
        found = varying_outputs(body.jaxpr, axis, [varying[i] for i in body.inputs])
        grown = [stops or a or b for a, b in zip(carry, found, strict=True)]
        if grown == carry:
            return grown
        varying = [*varying[:first], *grown]
