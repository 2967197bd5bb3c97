"""Signatures as programs: a method of a model as a graph over the weights that it uses."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.core
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

    traced, shapes = jax.make_jaxpr(call, return_shape=True)(values, *inputs.values())
    used, changed = _used(traced.jaxpr, list(values))
    result = jax.tree.structure(shapes[0])

    def program(model: Part, *inputs: Any) -> Any:
        weights = take(model, used)
        # What it doesn't use needs a place in the trace, but no value.
        arrays = [weights[k].get_raw_value() if k in weights else None for k in sorted(values)]
        outputs = jax.core.eval_jaxpr(
            traced.jaxpr, traced.consts, *arrays, *inputs, propagate_source_info=True
        )
        after = dict(zip(sorted(values), outputs[result.num_leaves :], strict=True))
        for key in changed:
            weights[key].set_raw_value(after[key])
        return jax.tree.unflatten(result, outputs[: result.num_leaves])

    names = ("model", *inputs)
    program.__signature__ = inspect.Signature(
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names]
    )
    program.__name__ = getattr(signature, "__name__", "signature").replace("<lambda>", "signature")
    tree = grow(Part(), {key: kinds[key].replace(values[key]) for key in used})
    graph = function(program).graph(tree, *inputs.values())
    return Program(graph, used, changed)


def _used(jaxpr: Any, keys: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys of the weights that a program reads or changes, and of those it changes."""
    ordered = sorted(keys)  # as JAX orders a dict
    before = dict(zip(ordered, jaxpr.invars, strict=False))
    results = len(jaxpr.outvars) - len(keys)
    after = dict(zip(ordered, jaxpr.outvars[results:], strict=True))
    read = {id(x) for equation in jaxpr.eqns for x in equation.invars}
    read |= {id(x) for x in jaxpr.outvars[:results]}
    changed = tuple(key for key in keys if after[key] is not before[key])
    return tuple(key for key in keys if id(before[key]) in read or key in changed), changed
