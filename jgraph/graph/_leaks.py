"""Finds Variables whose values would be frozen into a traced program as constants."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, jaxprs_in_params

from jgraph._errors import InputError
from jgraph.graph._owners import find_variable


def refuse_frozen_variables(
    name: str, fn: Callable[..., Any], program: ClosedJaxpr, meant: Callable[[], set[int]]
) -> None:
    """Raise where a Variable's array is a constant of the program.

    Args:
        name: the function's.
        fn: the function.
        program: the program.
        meant: returns the ids of arrays that may be constants, whoever else holds them.

    Raises:
        InputError: it says which Variable it is, and what to pass as an argument.
    """
    variables = _frozen_variables(program, meant)
    if not variables:
        return
    more = len(variables) - 1
    others = f" and {more} more Variable{'s' if more > 1 else ''}" if more else ""
    what = f"a {type(variables[0]).__name__} of type {jax.typeof(variables[0].get_raw_value())}"
    would = f"in a way that would freeze {'their values' if more else 'its value'} into the graph"
    found = find_variable(fn, variables[0])
    if found is not None:
        raise InputError(
            f"{name} reads {found.path} ({what}){others} {would}; pass {found.holder} as an "
            "argument"
        )
    raise InputError(
        f"{name} reads {what}{others} {would}, through a container or a function of another "
        "module; pass the object that holds it as an argument"
    )


def _frozen_variables(
    program: ClosedJaxpr, meant: Callable[[], set[int]]
) -> list[nnx.Variable[Any]]:
    """Return the Variables whose arrays are constants, in the order of the program."""
    constants = [x for x in _constants(program) if isinstance(x, jax.Array)]
    if constants:
        allowed = meant()
        constants = [x for x in constants if id(x) not in allowed]
    if not constants:
        return []
    order = {id(x): i for i, x in reversed(list(enumerate(constants)))}
    # One pass over what Python keeps track of, and only where a program has constants.
    holders = [x for x in gc.get_referrers(*constants) if isinstance(x, nnx.Variable)]
    frozen = [x for x in holders if id(x.get_raw_value()) in order]
    return sorted(frozen, key=lambda x: order[id(x.get_raw_value())])


def _constants(program: ClosedJaxpr) -> list[object]:
    found, waiting = list(program.consts), [program.jaxpr]
    while waiting:
        for eqn in waiting.pop().eqns:
            for value in eqn.params.values():
                inner = value if isinstance(value, (tuple, list)) else (value,)
                found += [c for x in inner if isinstance(x, ClosedJaxpr) for c in x.consts]
            waiting += jaxprs_in_params(eqn.params)
    return found
