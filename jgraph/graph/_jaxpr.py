"""What jgraph reads from a traced program beyond JAX's public attributes, in one place.

Scopes and tracebacks hang on `eqn.source_info`, whose classes are private: this file walks them by
their attributes, so that one file has to follow a new JAX.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from jgraph.debug import is_shown

# Entered by JAX itself: they say how a program was made, not where a module stands.
_MADE_BY_JAX = frozenset({"rematted_computation", "checkpoint", "remat", "jit", "while", "body"})

_NO_FORMULA = re.compile(r"[^A-Za-z,.]")

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "remat3": "jaxpr",
    "checkpoint": "jaxpr",
}
_PARTS = re.compile(r"(?:\[(?:'[^']*'|\"[^\"]*\"|[^\]])*\]|[^/\[])+")


class Body(NamedTuple):
    """A program inside an equation.

    Args:
        jaxpr: the program.
        inputs: for each input of `jaxpr`, the position among `eqn.invars` that feeds it.
        has_outputs: whether its outputs are the equation's, one by one; a while's test has others.
        repeat: how many times it runs: scan's length, the devices of a shard_map, else 1.
        carried: how many of its first outputs feed its next round.
    """

    jaxpr: Jaxpr
    inputs: tuple[int, ...]
    has_outputs: bool = True
    repeat: int = 1
    carried: int = 0


class Stack(NamedTuple):
    """The scopes and the transformations (outermost first) an equation was traced under."""

    scopes: tuple[str, ...]
    transforms: tuple[str, ...]


def symbolic_sizes(jaxpr: ClosedJaxpr) -> tuple[str, ...]:
    """Return the sizes of a program's inputs that have no number, `("batch", "2*h")`."""
    sizes = (size for aval in jaxpr.in_avals for size in getattr(aval, "shape", ()))
    return tuple(dict.fromkeys(str(size) for size in sizes if not isinstance(size, int)))


def split_scope(name: str) -> tuple[str, ...]:
    """Return the parts of a scope's name: split at each '/' outside brackets.

    Example:
        >>> split_scope("model/heads['cat/dog']/conv")
        ('model', "heads['cat/dog']", 'conv')
    """
    return tuple(_PARTS.findall(name))


def stack_of(eqn: JaxprEqn) -> Stack:
    """Return where `eqn` stands, relative to the equation whose body holds it."""
    scopes: list[str] = []
    transforms: list[str] = []
    inner: list[str] = []
    for entry in eqn.source_info.name_stack.stack:
        if type(entry).__name__ == "Transform":
            scopes, inner = _joined(scopes, inner), []
            transforms.append(entry.name)
        elif entry.name not in _MADE_BY_JAX and not _is_einsum(entry.name):
            inner.extend(split_scope(entry.name))
    scopes = _joined(scopes, inner)
    return Stack(tuple(scopes), tuple(transforms))


def _is_einsum(name: str) -> bool:
    """Return whether a scope is the formula that jnp.einsum runs under."""
    read, arrow, made = name.partition("->")
    return bool(arrow) and not _NO_FORMULA.search(read + made) and set(made) <= set(read)


def _joined(outer: list[str], inner: list[str]) -> list[str]:
    """Return a scope within a scope; jax.checkpoint writes the outer one again, backwards."""
    return inner if outer and inner[: len(outer)] == outer else outer + inner


def frame_of(eqn: JaxprEqn) -> tuple[str, int] | None:
    """Return file and line of the innermost frame that made `eqn`, outside of libraries.

    The networks and losses of jgraph are none here: their pictures name their lines.
    """
    traceback = eqn.source_info.traceback
    if traceback is None:
        return None
    for frame in traceback.frames:
        if is_shown(frame.file_name):
            return frame.file_name, int(frame.line_num)
    return None


def aval_text(value: Var | Literal | Any) -> str:
    """Return the short form of a value's type, as jaxprs print it: "f32[8,224,224,3]"."""
    aval = value.aval
    short = getattr(aval, "str_short", None)
    return str(aval) if short is None else str(short(short_dtypes=True))


def literal_text(value: Any) -> str:
    """Return a scalar constant written into the program; nothing for any other value."""
    return str(float(value.val)) if isinstance(value, Literal) and not shape_of(value) else ""


def shape_of(value: Any) -> tuple[Any, ...]:
    """Return a value's shape; () for what has none, such as a token."""
    return tuple(getattr(value.aval, "shape", ()))


def is_split(value: Any) -> bool:
    """Return whether a value's type says how it is split, over an explicit mesh."""
    return any(getattr(getattr(value.aval, "sharding", None), "spec", ()))


def open_jaxpr(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    """Return the program without its constants; JAX 0.12 stores some so, 0.10 none."""
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def call_body(eqn: JaxprEqn) -> Body | None:
    """Return the body of an equation that only calls it (jit, custom_jvp_call, remat, ...)."""
    key = _CALLS.get(eqn.primitive.name)
    if key is None or key not in eqn.params:
        return None
    jaxpr = open_jaxpr(eqn.params[key])
    if len(jaxpr.invars) != len(eqn.invars) or len(jaxpr.outvars) != len(eqn.outvars):
        return None
    return Body(jaxpr, tuple(range(len(eqn.invars))))


def _carried(eqn: JaxprEqn, body: Jaxpr) -> int:
    """Return how many results of a scan are carried; JAX versions disagree on where they say so."""
    # What is stacked instead has an axis more outside than inside.
    pairs = zip(eqn.outvars, body.outvars, strict=True)
    return sum(len(shape_of(out)) == len(shape_of(inner)) for out, inner in pairs)


def _while_bodies(eqn: JaxprEqn) -> tuple[Body, ...]:
    for_test, for_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    count = len(eqn.invars)
    carry = range(for_test + for_body, count)
    test = (*range(for_test), *carry)
    body = (*range(for_test, for_test + for_body), *carry)
    return (
        Body(open_jaxpr(eqn.params["cond_jaxpr"]), test, has_outputs=False),
        Body(open_jaxpr(eqn.params["body_jaxpr"]), body, carried=len(carry)),
    )


def _devices(eqn: JaxprEqn) -> int:
    mesh = eqn.params["mesh"]
    manual = eqn.params.get("manual_axes") or mesh.axis_names
    size = 1
    for name in manual:
        size *= mesh.shape[name]
    return size


def control_bodies(eqn: JaxprEqn) -> tuple[Body, ...]:
    """Return the bodies of scan, while, cond, shard_map and pmap; none for any other equation."""
    name, everything = eqn.primitive.name, tuple(range(len(eqn.invars)))
    if name == "scan":
        body = open_jaxpr(eqn.params["jaxpr"])
        repeat = int(eqn.params["length"])
        return (Body(body, everything, repeat=repeat, carried=_carried(eqn, body)),)
    if name == "while":
        return _while_bodies(eqn)
    if name == "cond":
        branches = eqn.params["branches"]
        return tuple(Body(open_jaxpr(branch), everything[1:]) for branch in branches)
    if name == "shard_map":
        return (Body(open_jaxpr(eqn.params["jaxpr"]), everything, repeat=_devices(eqn)),)
    if name == "xla_pmap":
        repeat = int(eqn.params["global_axis_size"])
        return (Body(open_jaxpr(eqn.params["call_jaxpr"]), everything, repeat=repeat),)
    return ()


def bodies_of(eqn: JaxprEqn) -> tuple[Body, ...]:
    """Return the programs inside an equation: what it calls, or runs in a loop or by choice."""
    called = call_body(eqn)
    return control_bodies(eqn) if called is None else (called,)


def call_name(eqn: JaxprEqn) -> str | None:
    """Return the name of the function an equation calls, as its author wrote it."""
    name = eqn.params.get("name")
    return name.lstrip("_") if isinstance(name, str) and name.strip("_<>") else None
