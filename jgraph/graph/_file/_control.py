"""Operations with functions inside: calls, loops, branches and derivatives of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import JaxprEqn

from jgraph.graph._file._kinds import BOOL, COUNT, FUNCTION, listed
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
    outputs=None,
)
