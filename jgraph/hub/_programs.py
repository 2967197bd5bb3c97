"""Signatures as programs: a method of a model as a graph over the weights that it uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from flax import nnx

from jgraph.graph import Graph, function, module_scopes
from jgraph.hub._weights import Part, grow, key_of, take, variables_of

Signature: TypeAlias = Callable[..., Any]
"""`signature(model, *inputs)`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A signature's graph.

    Args:
        graph: of the weights it uses, below `model`, and the inputs.
        keys: of these weights.
        changed: those that it gives new values.
    """

    graph: Graph
    keys: tuple[str, ...]
    changed: tuple[str, ...]


def trace(model: nnx.Module, signature: Signature, inputs: Mapping[str, Any]) -> Program:
    """Trace a signature in the mode that the model is in.

    Args:
        model: isn't changed.
        signature: what to trace.
        inputs: `jax.ShapeDtypeStruct`s by name, in the order of the arguments.
    """
    graphdef, state = nnx.split(model)
    paths = {key_of(path): path for path, _ in nnx.to_flat_state(state)}
    kinds = {key_of(path): variable for path, variable in nnx.to_flat_state(state)}
    values = {key: variable.get_raw_value() for key, variable in kinds.items()}

    def call(arrays: Mapping[str, Any], *inputs: Any) -> tuple[Any, dict[str, Any]]:
        flat = [(paths[key], kinds[key].replace(array)) for key, array in arrays.items()]
        whole = nnx.merge(graphdef, nnx.from_flat_state(flat))
        with module_scopes([("model", whole)]):
            result = signature(whole, *inputs)
        after = variables_of(whole)
        return result, {key: after[key].get_raw_value() for key in arrays}

    used, changed = _used(call, values, list(inputs.values()))
    # What it doesn't use needs a place in the model, but no value.
    others = {key: value for key, value in values.items() if key not in used}

    def program(model: Part, *inputs: Any) -> Any:
        weights = take(model, used)
        arrays = {key: variable.get_raw_value() for key, variable in weights.items()}
        filled = {key: _nothing(value) for key, value in others.items()}
        result, after = call({**arrays, **filled}, *inputs)
        for key in changed:
            weights[key].set_raw_value(after[key])
        return result

    program.__name__ = getattr(signature, "__name__", "signature").replace("<lambda>", "signature")
    tree = grow(Part(), {key: kinds[key].replace(values[key]) for key in used})
    graph = function(program).graph(tree, *inputs.values())
    return Program(graph, used, changed)


def _used(
    call: Callable[..., Any], values: Mapping[str, Any], inputs: Sequence[Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys of the weights that a call reads or changes, and of those it changes."""
    jaxpr, shapes = jax.make_jaxpr(call, return_shape=True)(dict(values), *inputs)
    keys = sorted(values)  # as JAX orders a dict
    variables = dict(zip(keys, jaxpr.jaxpr.invars, strict=False))
    read = {id(x) for equation in jaxpr.eqns for x in equation.invars}
    results = jaxpr.jaxpr.outvars[: -len(keys)] if keys else jaxpr.jaxpr.outvars
    read |= {id(x) for x in results}
    after = dict(zip(sorted(shapes[1]), jaxpr.jaxpr.outvars[-len(keys) :], strict=True))
    changed = tuple(key for key in values if after[key] is not variables[key])
    used = tuple(key for key in values if id(variables[key]) in read or key in changed)
    return used, changed


def _nothing(value: Any) -> Any:
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value
    return jax.numpy.zeros(value.shape, value.dtype)
