"""Finds Variables whose values would be frozen into a traced program as constants."""

from __future__ import annotations

import gc
from collections.abc import Callable

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, jaxprs_in_params

from jgraph._errors import InputError


def refuse_frozen_variables(name: str, program: ClosedJaxpr, meant: Callable[[], set[int]]) -> None:
    """Raise where a Variable's array is a constant of the program.

    Args:
        name: the function's.
        program: the program.
        meant: returns the ids of arrays that may be constants, whoever else holds them.

    Raises:
        InputError: it says what kind of Variable it is.
    """
    variable = _frozen_variable(program, meant)
    if variable is not None:
        raise InputError(
            f"{name} reads a {type(variable).__name__} of type "
            f"{jax.typeof(variable.get_raw_value())} in a way that would freeze its value into the "
            "graph, through a container or a function of another module; pass the object that "
            "holds it as an argument"
        )


def _frozen_variable(program: ClosedJaxpr, meant: Callable[[], set[int]]) -> nnx.Variable | None:
    constants = [x for x in _constants(program) if isinstance(x, jax.Array)]
    if constants:
        allowed = meant()
        constants = [x for x in constants if id(x) not in allowed]
    if not constants:
        return None
    held = {id(x) for x in constants}
    # One pass over what Python keeps track of, and only where a program has constants.
    for holder in gc.get_referrers(*constants):
        if isinstance(holder, nnx.Variable) and id(holder.get_raw_value()) in held:
            return holder
    return None


def _constants(program: ClosedJaxpr) -> list[object]:
    found, waiting = list(program.consts), [program.jaxpr]
    while waiting:
        for eqn in waiting.pop().eqns:
            for value in eqn.params.values():
                inner = value if isinstance(value, (tuple, list)) else (value,)
                found += [c for x in inner if isinstance(x, ClosedJaxpr) for c in x.consts]
            waiting += jaxprs_in_params(eqn.params)
    return found
