"""Objects that a function closes over: read, and not to be written."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import jax

from jgraph._errors import InputError
from jgraph.graph._nnx import flatten_with_paths, is_object, objects_within, read_variable
from jgraph.graph._paths import join_path


class ReadOnly:
    """Notices that objects have been written to.

    Args:
        objects: the objects.
        labels: the name of each.
        given: the arguments; what a closed-over object shares with them may be written.
    """

    def __init__(self, objects: Sequence[Any], labels: Sequence[str], given: Sequence[Any]) -> None:
        self._objects, self._labels = tuple(objects), labels
        self._free = set(map(id, objects_within(tuple(given)))) if objects else set()
        self._nodes = objects_within(self._objects)
        self._structure, self._flat = flatten_with_paths(self._objects)
        self._values = [jax.tree.flatten(_value(x)) for _, x in self._flat]

    def check(self, name: str) -> None:
        """Raise where something was written.

        Args:
            name: the function's.

        Raises:
            InputError: it names what was written.
        """
        written = self._written()
        if written:
            raise InputError(
                f"{name} may only read what it closes over, and it writes {written}: pass the "
                "object as an argument, and what changes is written back"
            )

    def _written(self) -> str:
        if not self._objects:
            return ""
        structure, flat = flatten_with_paths(self._objects)
        same = map(operator.is_, objects_within(self._objects), self._nodes)
        if structure != self._structure or not all(same):
            return ", ".join(self._labels)
        for (path, x), before in zip(flat, self._values, strict=True):
            if id(x) not in self._free and not same_arrays(before, _value(x)):
                return join_path(self._labels[int(path[0])], path[1:])
        return ""


def same_arrays(before: tuple[list[Any], Any], value: Any) -> bool:
    """Return whether a value's arrays are those that it was flattened to before."""
    old, structure = before
    new, now = jax.tree.flatten(value)
    return structure == now and all(map(operator.is_, old, new))


def _value(x: Any) -> Any:
    return read_variable(x) if is_object(x) else x
