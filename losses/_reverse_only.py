"""A function that has reverse mode alone says so in its own words when forward mode is asked.

`jax.custom_vjp` answers forward mode with a message that names neither the function nor a way
out, and under jit it does so far from the call. Here the tangent passes through a marker that
reverse mode transposes away, and that raises when anything tries to compute it.
"""

from __future__ import annotations

from typing import Any, Never

import jax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from jgraph._errors import InputError


def reverse_only(message: str, *arrays: Array) -> tuple[Array, ...]:
    """Return the arrays; in forward mode raise an `InputError` with this message.

    Reverse mode passes, and so does any mode around it: a Hessian-vector product as the forward
    derivative of a gradient never computes the tangents that are marked here.

    Args:
        message: what can't work, and what to call in its place.
        arrays: all that have a derivative, in one call: of two nested derivatives the inner one
            is marked, also where it moves one array and the outer one moves another.

    Returns:
        The arrays themselves.
    """
    same = jax.custom_jvp(_same)

    def rule(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        marked = [
            t if isinstance(t, SymbolicZero) else _marked.bind(t, message=message) for t in tangents
        ]
        return primals, tuple(marked)

    same.defjvp(rule, symbolic_zeros=True)
    return same(*arrays)


def _same(*arrays: Array) -> tuple[Array, ...]:
    return arrays


def _refuse(*_: Any, message: str, **__: Any) -> Never:
    raise InputError(message)


_marked = Primitive("reverse_only")
_marked.def_impl(_refuse)
_marked.def_abstract_eval(lambda tangent, *, message: tangent)
mlir.register_lowering(_marked, _refuse)
ad.deflinear2(_marked, lambda cotangent, _, *, message: [cotangent])
batching.defvectorized(_marked)
