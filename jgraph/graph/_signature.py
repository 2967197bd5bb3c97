"""What a call looked like to JAX, in words: everything that a trace or a compilation depends on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
from flax import nnx

from jgraph.graph._arguments import Labels, Sorted
from jgraph.graph._bound import Bound
from jgraph.graph._nnx import attributes, is_object, metadata, walk
from jgraph.graph._paths import join_path, tree_path
from jgraph.graph._settings import settings_now

SAME = "the same object as "
# `float32[8@x,3]`: a type with explicit axes says where it is, and so does the placement.
_AXES = re.compile(r"@(\([^)]*\)|[^,\]]+)")


class Leaf(NamedTuple):
    """One array of a call."""

    type: str
    """As in a jaxpr: `float32[8,3]`."""
    weak: bool
    placement: str
    """Its sharding."""
    committed: bool
    """Whether it was put on its devices, rather than made where JAX makes things."""


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a call looked like.

    Args:
        leaves: of arguments and state, by path.
        containers: structure of each argument that is a container, by name.
        statics: static values, by name.
        objects: modules, Variables and their static attributes, by path.
        settings: JAX's settings.
        surroundings: whether the call is part of an outer trace.
        program: what was compiled for this structure of objects and arguments.
    """

    leaves: Mapping[str, Leaf]
    containers: Mapping[str, str]
    statics: Mapping[str, str]
    objects: Mapping[str, str]
    settings: Mapping[str, str]
    surroundings: Mapping[str, str]
    program: object = None


def signature_of(
    bound: Bound, objects: Sequence[Any], call: Sorted, labels: Labels, inputs: Sequence[Any]
) -> Signature:
    """Describe a call, also one whose donated arrays are gone.

    Args:
        bound: its objects and program.
        objects: the objects.
        call: its sorted arguments.
        labels: their names.
        inputs: what the program was given: donated leaves, donated arrays, leaves, arrays.
    """
    donated, _, kept, _ = inputs
    program = bound.program
    paths = program.interface.paths
    state = zip([*program.donated, *program.kept], [*donated, *kept], strict=True)
    leaves = {
        paths[i] + tree_path(p): leaf_of(x)
        for i, value in sorted(state, key=lambda item: item[0])
        for p, x in jax.tree.leaves_with_path(value)
    }
    found = zip(labels.paths(call.arrays), jax.tree.leaves(call.arrays), strict=True)
    leaves |= {path: leaf_of(x) for path, x in found}
    statics = zip(labels.statics, call.layout.statics, strict=True)
    return Signature(
        leaves,
        containers_of(labels.trees(call.arrays)),
        {name: repr(value) for name, value in statics},
        objects_of(objects, bound.binding.labels),
        settings_now(),
        {"the call": "inside another trace" if program.interface.inside else "at top level"},
        program,
    )


def leaf_of(x: Any) -> Leaf:
    """Describe an array, a number or a ShapeDtypeStruct; also an array that was donated."""
    aval = jax.typeof(x)
    # A tracer's placement is the outer program's business.
    sharding = None if isinstance(x, jax.core.Tracer) else getattr(x, "sharding", None)
    return Leaf(
        _AXES.sub("", aval.str_short()),
        bool(getattr(aval, "weak_type", False)),
        "" if sharding is None else _placement(sharding),
        sharding is not None and bool(getattr(x, "committed", False)),
    )


def containers_of(pairs: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Return the structure of each argument that isn't one array."""
    found = {}
    for label, x in pairs:
        structure = jax.tree.structure(x)
        if x is None:
            found[label] = "None"
        elif not jax.tree_util.treedef_is_leaf(structure):
            found[label] = str(structure)
    return found


def objects_of(objects: Sequence[Any], labels: Sequence[str]) -> dict[str, str]:
    """Describe the structure of NNX objects; the arrays they hold are leaves, told elsewhere."""
    found: dict[str, str] = {}
    first: dict[int, str] = {}
    for root, label in zip(objects, labels, strict=True):
        if id(root) in first:
            found[label] = SAME + first[id(root)]
            continue
        for path, node in walk(root):
            if not is_object(node):  # numbers are the same object everywhere
                continue
            name = join_path(label, path)
            if id(node) in first:
                found[name] = SAME + first[id(node)]
                continue
            first[id(node)] = name
            found |= _describe(name, node)
    return found


def _describe(name: str, node: Any) -> dict[str, str]:
    if isinstance(node, nnx.Variable):
        notes = {k: v for k, v in sorted(metadata(node).items()) if v not in (None, False)}
        return {name: type(node).__name__ + (f" {notes}" if notes else "")}
    found = {name: type(node).__name__}
    for key, value in attributes(node).items():
        if not _has_data(value):
            found[join_path(name, [key])] = repr(value)
    return found


def _has_data(value: Any) -> bool:
    if is_object(value) or isinstance(value, jax.Array):
        return True
    leaves = jax.tree.leaves(value, is_leaf=is_object)
    return any(is_object(x) or hasattr(x, "dtype") for x in leaves)


def _placement(sharding: Any) -> str:
    if isinstance(sharding, jax.sharding.SingleDeviceSharding):
        (device,) = sharding.device_set
        return str(device)
    if isinstance(sharding, jax.sharding.NamedSharding):
        return f"{sharding.spec} over {dict(sharding.mesh.shape)}"
    return str(sharding)
