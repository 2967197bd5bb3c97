"""Functions with a derivative of their own: the rule is written as further functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from jgraph._errors import GraphFormatError
from jgraph.graph._file._document import Custom
from jgraph.graph._jaxpr import open_jaxpr

if TYPE_CHECKING:
    from jgraph.graph._file._write import ProgramWriter

PRIMITIVES = {
    "custom_jvp_call": "jvp",
    "custom_vjp_call": "vjp",
    "custom_vjp_call_jaxpr": "vjp",
}


def write(writer: ProgramWriter, eqn: JaxprEqn) -> int:
    """Write a function with its derivative, once, and return its number among the customs.

    The rule is found by differentiating the equation itself. A rule may call its own function
    again, which is then the same number: functions are the same where they and their rules are,
    for functions that compute the same may have different rules.
    """
    kind = PRIMITIVES[eqn.primitive.name]
    body = eqn.params["call_jaxpr" if "call_jaxpr" in eqn.params else "fun_jaxpr"]
    call, types = _alone(eqn), [_struct(x) for x in eqn.invars]
    rules, residuals = (_jvp if kind == "jvp" else _vjp)(call, types)
    key = kind, *(x for program in (body, *rules) for x in (str(program), *_constants(program)))
    number = writer.custom_numbers.get(key)
    if number is not None:
        return number
    number = writer.custom_numbers[key] = len(writer.customs)
    writer.customs.append(Custom(kind, 0, [], 0))  # what it calls may refer to it
    function = writer.function(body)
    numbers = [writer.function(rule) for rule in rules]
    writer.customs[number] = Custom(kind, function, numbers, residuals)
    return number


def _constants(program: Any) -> list[bytes]:
    """Return the constants of a program and those inside it, which its text leaves out."""
    found = [np.asarray(x).tobytes() for x in getattr(program, "consts", ())]
    for eqn in open_jaxpr(program).eqns:
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_program):
            found += _constants(value) if _is_program(value) else ()
    return found


def _is_program(x: Any) -> bool:
    return isinstance(x, (ClosedJaxpr, Jaxpr))


def replay(
    custom: Custom, functions: Callable[[int], Callable[..., list[Any]]]
) -> Callable[..., list[Any]]:
    """Return the function with its derivative."""
    return (
        _replay_jvp(custom, functions) if custom.kind == "jvp" else _replay_vjp(custom, functions)
    )


def _alone(eqn: JaxprEqn) -> Callable[..., list[Any]]:
    """Return an equation as a function of its inputs."""
    inputs = list(dict.fromkeys(x for x in eqn.invars if isinstance(x, Var)))
    # A program of as many inputs, whose equations are then this one.
    other = jax.make_jaxpr(lambda *xs: xs)(*map(_struct, inputs)).jaxpr
    program = other.replace(invars=inputs, outvars=eqn.outvars, eqns=[eqn])

    def call(*args: Any) -> list[Any]:
        given = {x: a for x, a in zip(eqn.invars, args, strict=True) if isinstance(x, Var)}
        return jax.core.eval_jaxpr(program, (), *(given[x] for x in inputs))

    return call


def _jvp(call: Callable[..., list[Any]], types: Sequence[Any]) -> tuple[list[ClosedJaxpr], int]:
    floats = [i for i, x in enumerate(types) if _is_float(x)]

    def rule(*args: Any) -> list[Any]:
        primals, tangents = args[: len(types)], args[len(types) :]

        def of_floats(*chosen: Any) -> tuple[list[Any], list[Any]]:
            values = iter(chosen)
            out = call(*(next(values) if i in floats else x for i, x in enumerate(primals)))
            return [x for x in out if _is_float(x)], out

        chosen = [primals[i] for i in floats]
        _, out_tangents, out = jax.jvp(of_floats, chosen, list(tangents), has_aux=True)
        return [*out, *out_tangents]

    return [jax.make_jaxpr(rule)(*types, *(types[i] for i in floats))], 0


def _vjp(call: Callable[..., list[Any]], types: Sequence[Any]) -> tuple[list[ClosedJaxpr], int]:
    floats = [i for i, x in enumerate(types) if _is_float(x)]
    structure: list[Any] = []

    def forward(*args: Any) -> list[Any]:
        def of_floats(*chosen: Any) -> list[Any]:
            values = iter(chosen)
            out = call(*(next(values) if i in floats else x for i, x in enumerate(args)))
            return [x for x in out if _is_float(x)]

        _, pull = jax.vjp(of_floats, *(args[i] for i in floats))
        residuals, tree = jax.tree.flatten(pull)
        structure.append(tree)
        return [*call(*args), *residuals]

    traced, shapes = jax.make_jaxpr(forward, return_shape=True)(*types)
    outputs = len(jax.eval_shape(call, *types))
    residuals = shapes[outputs:]
    cotangents = [x for x in shapes[:outputs] if _is_float(x)]

    def backward(*args: Any) -> list[Any]:
        pull = jax.tree.unflatten(structure[-1], args[: len(residuals)])
        return list(pull(list(args[len(residuals) :])))

    return [traced, jax.make_jaxpr(backward)(*residuals, *cotangents)], len(residuals)


def _replay_jvp(
    custom: Custom, functions: Callable[[int], Callable[..., list[Any]]]
) -> Callable[..., list[Any]]:
    @jax.custom_jvp
    def function(*args: Any) -> list[Any]:
        return functions(custom.function)(*args)

    @function.defjvp
    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        given = [t for x, t in zip(primals, tangents, strict=True) if _is_float(x)]
        types = jax.eval_shape(functions(custom.function), *primals)
        count = len(types)
        found = functions(custom.rules[0])(*primals, *given)
        _check_types(custom.rules[0], found, [*types, *filter(_is_float, types)])
        out, rest = found[:count], iter(found[count:])
        return out, [next(rest) if _is_float(x) else _no_tangent(x) for x in out]

    return function


def _replay_vjp(
    custom: Custom, functions: Callable[[int], Callable[..., list[Any]]]
) -> Callable[..., list[Any]]:
    @jax.custom_vjp
    def function(*args: Any) -> list[Any]:
        return functions(custom.function)(*args)

    def forward(*args: Any) -> tuple[list[Any], Any]:
        found = functions(custom.rules[0])(*args)
        count = max(len(found) - custom.residuals, 0)
        types = jax.eval_shape(functions(custom.function), *args)
        _check_types(custom.rules[0], found[:count], types)
        kinds = tuple(_is_float(x) for x in args), tuple(_is_float(x) for x in found[:count])
        inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in args if _is_float(x)]
        return found[:count], (found[count:], _Kinds(*kinds, tuple(inputs)))

    def backward(saved: Any, cotangents: list[Any]) -> tuple[Any, ...]:
        residuals, kinds = saved
        given = [c for c, is_float in zip(cotangents, kinds.outputs, strict=True) if is_float]
        gradients = functions(custom.rules[1])(*residuals, *given)
        _check_types(custom.rules[1], gradients, kinds.gradients)
        found = iter(gradients)
        return tuple(next(found) if is_float else None for is_float in kinds.inputs)

    function.defvjp(forward, backward)
    return function


@jax.tree_util.register_static
class _Kinds:
    """Which inputs and outputs are floats, handed from the forward to the backward pass."""

    def __init__(
        self,
        inputs: tuple[bool, ...],
        outputs: tuple[bool, ...],
        gradients: tuple[jax.ShapeDtypeStruct, ...],
    ) -> None:
        self.inputs, self.outputs, self.gradients = inputs, outputs, gradients

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kinds) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.inputs, self.outputs, self.gradients))


def _check_types(number: int, found: Sequence[Any], wanted: Sequence[Any]) -> None:
    """Raise where a rule doesn't return what it must."""
    types = [[(x.shape, x.dtype) for x in xs] for xs in (found, wanted)]
    if types[0] != types[1]:
        raise GraphFormatError(
            f"functions[{number}], the rule of a derivative, must return {_named(wanted)}, got "
            f"{_named(found)}"
        )


def _named(types: Sequence[Any]) -> str:
    return ", ".join(f"{x.dtype}{list(x.shape)}" for x in types) or "nothing"


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype)


def _is_float(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _no_tangent(x: Any) -> np.ndarray:
    # NumPy has no open sizes; no rule looks at the tangent of a whole number.
    return np.zeros([n if isinstance(n, int) else 1 for n in x.shape], jax.dtypes.float0)
