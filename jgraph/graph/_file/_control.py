"""Operations with functions inside: calls, loops, branches and derivatives of one's own."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jgraph.graph._file._kinds import BOOL, COUNT, FUNCTION, NAME, listed, optional
from jgraph.graph._file._table import operation
from jgraph.graph._jaxpr import bodies_of, shape_of

_Function = Callable[..., list[Any]]


def _call(*args: Any, function: _Function) -> list[Any]:
    return jax.jit(function)(*args)


def _remat(*args: Any, function: _Function, prevent_cse: bool) -> list[Any]:
    return jax.checkpoint(function, prevent_cse=prevent_cse)(*args)


def _scan(
    *args: Any,
    function: _Function,
    consts: int,
    carry: int,
    length: int,
    reverse: bool,
    unroll: int,
) -> list[Any]:
    _check_inputs(args, consts + carry)
    fixed, first, rows = args[:consts], args[consts : consts + carry], args[consts + carry :]

    def step(state: list[Any], row: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        found = function(*fixed, *state, *row)
        return found[:carry], found[carry:]

    last, stacked = lax.scan(step, list(first), rows, length=length, reverse=reverse, unroll=unroll)
    return [*last, *stacked]


def _check_inputs(args: Sequence[Any], least: int) -> None:
    if len(args) < least:
        raise ValueError(f"it must have at least {least} inputs, got {len(args)}")


def _scan_params(eqn: JaxprEqn) -> dict[str, Any]:
    (body,) = bodies_of(eqn)
    pairs = zip(eqn.invars, body.jaxpr.invars, strict=True)
    rows = sum(len(shape_of(x)) > len(shape_of(inner)) for x, inner in pairs)
    return {
        "function": eqn.params["jaxpr"],
        "consts": len(eqn.invars) - body.carried - rows,
        "carry": body.carried,
        **{name: eqn.params[name] for name in ("length", "reverse", "unroll")},
    }


def _while(
    *args: Any, test: _Function, function: _Function, test_consts: int, consts: int
) -> list[Any]:
    _check_inputs(args, test_consts + consts)
    of_test = args[:test_consts]
    fixed = args[test_consts : test_consts + consts]
    return lax.while_loop(
        lambda state: test(*of_test, *state)[0],
        lambda state: function(*fixed, *state),
        list(args[test_consts + consts :]),
    )


def _while_params(eqn: JaxprEqn) -> dict[str, Any]:
    return {
        "test": eqn.params["cond_jaxpr"],
        "function": eqn.params["body_jaxpr"],
        "test_consts": eqn.params["cond_nconsts"],
        "consts": eqn.params["body_nconsts"],
    }


def _expansion(eqn: JaxprEqn) -> dict[str, Any]:
    """Return what one of JAX's compound operations, such as searchsorted, is made of."""
    made = eqn.params["_prim"]
    if any(jnp.issubdtype(x.aval.dtype, jnp.inexact) for x in eqn.outvars):  # pyright: ignore[reportAttributeAccessIssue]
        raise NotImplementedError(f"{type(made).__name__}, which may have its own derivative")
    return {"function": jax.make_jaxpr(made.expand)(*(x.aval for x in eqn.invars))}


_PARTS = ("matvec", "vecmat", "solve", "transpose_solve")


def _linear_solve(
    *args: Any,
    matvec: _Function,
    solve: _Function,
    transpose_solve: _Function | None,
    consts: tuple[int, ...],
    symmetric: bool,
) -> list[Any]:
    _check_inputs(args, sum(consts))
    ends = list(itertools.accumulate(consts))
    of_matvec, _, of_solve, of_transpose = (
        args[end - count : end] for end, count in zip(ends, consts, strict=True)
    )
    backward = None
    if transpose_solve is not None:
        backward = lambda _, b: transpose_solve(*of_transpose, *b)  # noqa: E731
    return lax.custom_linear_solve(
        lambda x: matvec(*of_matvec, *x),
        list(args[ends[-1] :]),
        lambda _, b: solve(*of_solve, *b),
        backward,
        symmetric=symmetric,
    )


def _linear_solve_params(eqn: JaxprEqn) -> dict[str, Any]:
    programs = {name: getattr(eqn.params["jaxprs"], name) for name in _PARTS}
    vecmat = programs.pop("vecmat")
    if len(programs["solve"].out_avals) != len(programs["matvec"].out_avals):
        raise NotImplementedError("a linear solver that returns more than the solution")
    return {
        **programs,
        "consts": [getattr(eqn.params["const_lengths"], name) for name in _PARTS],
        "symmetric": vecmat is programs["matvec"],
    }


def _platform_index(platforms: tuple[tuple[str, ...] | None, ...]) -> jax.Array:
    """Return the number of the group that the machine belongs to; None is every other one."""
    numbers = {
        name: functools.partial(jnp.int32, i) for i, x in enumerate(platforms) for name in x or ()
    }
    others = platforms.index(None) if None in platforms else None
    default = None if others is None else functools.partial(jnp.int32, others)
    return lax.platform_dependent(**numbers, default=default)


def _cond(index: Any, *args: Any, branches: tuple[_Function, ...]) -> list[Any]:
    if len(branches) == 1:
        return branches[0](*args)
    return lax.switch(lax.convert_element_type(index, "int32"), branches, *args)


operation(
    "call",
    None,
    _call,
    {"function": FUNCTION},
    primitives=("jit", "pjit", "closed_call", "core_call"),
    params=lambda eqn: {"function": eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))},
    known=(
        "jaxpr",
        "call_jaxpr",
        "name",
        *("donated_invars", "inline", "keep_unused", "compiler_options_kvs"),
        *("in_layouts", "out_layouts", "in_shardings", "out_shardings"),
    ),
    outputs=None,
)
operation(
    "expanded",
    None,
    lambda *args, function: function(*args),
    {"function": FUNCTION},
    primitives=("call_hi_primitive",),
    params=_expansion,
    known=("_prim",),
    outputs=None,
)
operation(
    "remat",
    None,
    _remat,
    {"function": FUNCTION, "prevent_cse": BOOL},
    primitives=("remat", "remat2", "remat3", "checkpoint"),
    params=lambda eqn: {
        "function": eqn.params["jaxpr"],
        "prevent_cse": bool(eqn.params["prevent_cse"]),
    },
    # What a policy keeps is a matter of memory.
    known=("jaxpr", "policy", "differentiated", "name"),
    outputs=None,
)
operation(
    "scan",
    None,
    _scan,
    {
        "function": FUNCTION,
        "consts": COUNT,
        "carry": COUNT,
        "length": COUNT,
        "reverse": BOOL,
        "unroll": COUNT,
    },
    params=_scan_params,
    known=("jaxpr", "num_consts", "num_carry", "ft_in", "ft_out", "linear", "_split_transpose"),
    outputs=None,
)
operation(
    "while",
    None,
    _while,
    {"test": FUNCTION, "function": FUNCTION, "test_consts": COUNT, "consts": COUNT},
    params=_while_params,
    known=("cond_jaxpr", "body_jaxpr", "cond_nconsts", "body_nconsts"),
    outputs=None,
)
operation(
    "cond",
    None,
    _cond,
    {"branches": listed(FUNCTION)},
    known=("branches_platforms",),  # its index is that of the platform
    outputs=None,
)
operation(
    "custom_linear_solve",
    None,
    _linear_solve,
    {
        "matvec": FUNCTION,
        "solve": FUNCTION,
        "transpose_solve": optional(FUNCTION),
        "consts": listed(COUNT),
        "symmetric": BOOL,
    },
    params=_linear_solve_params,
    known=("jaxprs", "const_lengths"),
    outputs=None,
)
operation(
    "platform_index",
    0,
    _platform_index,
    {"platforms": listed(optional(listed(NAME)))},
)
