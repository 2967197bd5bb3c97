"""A model's Variables by key, `backbone/stem/kernel`, and as an NNX object without its source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jgraph._errors import ModuleFormatError
from jgraph.graph import named_variables

KINDS: Mapping[str, type[nnx.Variable[Any]]] = {
    kind.__name__: kind
    for kind in (nnx.Param, nnx.BatchStat, nnx.Cache, nnx.RngKey, nnx.RngCount, nnx.Variable)
}
"""The types of Variables that a module knows; others become the nearest of these."""


class Frozen(nnx.Variable[Any]):
    """A weight of a module that isn't trained: no `nnx.Param`, so no optimizer sees it."""


class Part(nnx.Module):
    """A node of a module's tree of weights: its attributes are Variables and further parts."""


def kind_of(variable: nnx.Variable[Any]) -> str:
    """Return which of `KINDS` a Variable is."""
    return next(name for name, kind in KINDS.items() if isinstance(variable, kind))


def key_of(path: Iterable[Any]) -> str:
    """Return a path as a key."""
    return "/".join(map(str, path))


def variables_of(model: nnx.Module) -> dict[str, nnx.Variable[Any]]:
    """Return a model's Variables by key, shared ones once."""
    flat = nnx.to_flat_state(nnx.split(model)[1])
    return {key_of(path): variable for path, variable in flat}


def grow(root: Part, variables: Mapping[str, nnx.Variable[Any]]) -> Part:
    """Hang Variables into a tree of parts, each under its key.

    Raises:
        ModuleFormatError: two keys are in each other's way, or one can't be an attribute.
    """
    for key, variable in variables.items():
        *parents, last = key.split("/")
        node = root
        for name in parents:
            below = vars(node).get(name)
            if below is None:
                below = Part()
                _set(node, name, below, key)
            if not isinstance(below, Part):
                raise ModuleFormatError(f"the weight {key!r} lies below another weight")
            node = below
        if last in vars(node):
            raise ModuleFormatError(f"the weight {key!r} is in the way of another")
        _set(node, last, variable, key)
    return root


def _set(node: Part, name: str, value: Any, key: str) -> None:
    # What the object has of its own, a Variable of that name would hide.
    if not name or name.startswith("_") or hasattr(type(node), name):
        raise ModuleFormatError(f"the weight {key!r} must have names that attributes can have")
    setattr(node, name, value)


def take(root: Part, keys: Iterable[str]) -> dict[str, nnx.Variable[Any]]:
    """Return the Variables that `grow` hung under these keys."""
    found = {}
    for key in keys:
        node: Any = root
        for name in key.split("/"):
            node = vars(node)[name]
        found[key] = node
    return found


def state_paths(keys: Iterable[str]) -> dict[str, str]:
    """Return the path that each key has in the state of a graph over these weights."""
    made = {key: nnx.Variable(jnp.zeros(())) for key in keys}
    names = {id(variable): key for key, variable in made.items()}
    tree = grow(Part(), made)
    return {names[id(variable)]: path for path, variable in named_variables({"model": tree})}


def spec_of(value: Any) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of an array."""
    return jax.ShapeDtypeStruct(jnp.shape(value), jnp.asarray(value).dtype)
