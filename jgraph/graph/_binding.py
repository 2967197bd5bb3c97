"""NNX objects bound once: which Variables are their leaves, read and written without Flax."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core

from jgraph._errors import InputError
from jgraph.graph._nnx import (
    Snapshot,
    flatten,
    flatten_with_paths,
    holds_ref,
    is_object,
    read_variable,
)
from jgraph.graph._paths import join_path


class Binding:
    """The leaves of some objects, in a fixed order, while their structure doesn't change.

    Nothing here keeps the objects alive, so that a model that is dropped is freed; what they
    hold, the binding does hold.

    Args:
        objects: the objects.
        labels: the name of each.
        forget: called when one of the objects has died.

    Raises:
        InputError: a Variable holds a jax Ref.
    """

    def __init__(
        self, objects: Sequence[Any], labels: Sequence[str], forget: Callable[[], None]
    ) -> None:
        self.labels = tuple(labels)
        self.structure, flat = flatten_with_paths(tuple(objects))
        self.roots = [int(path[0]) for path, _ in flat]
        self.paths = [
            join_path(labels[root], path[1:])
            for root, (path, _) in zip(self.roots, flat, strict=True)
        ]
        self.variables = [leaf if is_object(leaf) else None for _, leaf in flat]
        # An array that is an attribute of its own: the snapshot notices when it is another one.
        self._fixed = {i: leaf for i, (_, leaf) in enumerate(flat) if not is_object(leaf)}
        for path, variable in zip(self.paths, self.variables, strict=True):
            if variable is not None and holds_ref(variable):
                raise InputError(
                    f"{path} holds a jax Ref, which jg.function doesn't take: make it a plain "
                    "Variable (nnx.Variable(value, ref=False))"
                )
        self._snapshot = Snapshot(objects)
        self._alive = [_weak(x, forget) for x in objects]

    def holds(self) -> bool:
        """Return whether the objects still have the structure they were bound with."""
        return self._snapshot.holds()

    def read(self) -> list[Any]:
        """Return the leaves' values."""
        if not self._fixed:
            return list(map(read_variable, self.variables))
        return [
            self._fixed[i] if v is None else read_variable(v) for i, v in enumerate(self.variables)
        ]

    def read_abstract(self) -> list[Any]:
        """Return the leaves' shapes and types.

        An error while they are traced is not to hold arrays: its traceback may live for long.
        """
        return [jax.tree.map(_abstract, leaf) for leaf in self.read()]

    def reader(self) -> Callable[[], list[Any] | None]:
        """Return what reads the leaves, or None if the objects are gone or changed.

        It keeps neither the objects nor what they hold.
        """
        objects = [ref() for ref in self._alive]
        if any(x is None for x in objects) or not all(
            isinstance(ref, weakref.ref) for ref in self._alive
        ):
            return lambda: None
        # Others than its own, which know of all the function's bindings.
        alive, structure = list(map(weakref.ref, objects)), self.structure

        def read() -> list[Any] | None:
            objects = tuple(ref() for ref in alive)
            if any(x is None for x in objects):
                return None
            now, leaves = flatten(objects)
            return leaves if now == structure else None

        return read


def _abstract(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return leaf
    aval = jax.typeof(leaf)
    if not aval.sharding.mesh.empty:  # explicit axes are part of the type
        return leaf
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


def _weak(x: Any, forget: Callable[[], None]) -> Callable[[], Any]:
    try:
        return weakref.ref(x, lambda _: forget())
    except TypeError:  # Variables have slots, and none for weak references
        return lambda: x
