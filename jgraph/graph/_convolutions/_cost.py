"""How much longer a program compiles once its convolutions are rewritten."""

from __future__ import annotations

from collections.abc import Iterator

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jgraph.graph._convolutions._rule import fast_convolution
from jgraph.graph._convolutions._shapes import Convolution, read
from jgraph.graph._jaxpr import bodies_of

# Measured, on one core: a term of a sum takes 4 to 10 ms to compile, 1.1 to 2.4 times as long as an
# equation of a network does in the mean.
_EQUATIONS_PER_TERM = 1.5
# What takes less, about two seconds, nobody waits for.
_FEW_TERMS = 300


def compile_factor(program: ClosedJaxpr) -> float:
    """Estimate by what factor a program compiles longer with its convolutions rewritten.

    Equal convolutions are compiled once; each of the others is a sum with a term for each tap of
    its kernel.

    Args:
        program: before it is rewritten.

    Returns:
        1 and more; 1 where what is added takes no more than about two seconds.
    """
    equations = list(_equations(program.jaxpr))
    rewritten = {read(eqn) for eqn in equations if fast_convolution(eqn)}
    terms = sum(_terms(found[0]) for found in rewritten if found)
    return 1.0 + _EQUATIONS_PER_TERM * terms / len(equations) if terms > _FEW_TERMS else 1.0


def _terms(conv: Convolution) -> int:
    # The gradient by a kernel has the window as its size, and is convolved with a whole map.
    taps = conv.size if conv.batch_groups > 1 or conv.groups == 1 else conv.kernel[:2]
    return taps[0] * taps[1] if conv.kernel[:2] != (1, 1) else 1


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for eqn in jaxpr.eqns:
        yield eqn
        for body in bodies_of(eqn):
            yield from _equations(body.jaxpr)
