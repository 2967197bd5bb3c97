"""Flax NNX objects as lists of leaves, and back: the only file that knows Flax's private names.

A leaf is what one Variable holds, or an array that is an attribute of its own. Objects are taken
apart in one fixed order, so a leaf's position says which leaf it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import is_, itemgetter
from typing import Any, TypeAlias

import flax
import numpy as np
from flax import nnx
from flax.nnx import graphlib
from flax.typing import HashableMapping

from jgraph.graph._paths import attribute_path

Path: TypeAlias = tuple[Any, ...]

# Through the slot: `Variable.set_raw_value` asks at each write which trace is running, 0.7 us.
_SLOT = vars(nnx.Variable)["_raw_value"]
read_variable = _SLOT.__get__
write_variable = _SLOT.__set__

_PYTREE_STATE = type(vars(nnx.Module())["_pytree__state"])
_KINDS = "_pytree__nodes"  # of each object's attributes: data or static; copies share it
_EQUAL_IS_SAME = {bool, int, str, type(None), HashableMapping}


def _self_test() -> None:
    """Raise where this version of Flax keeps its objects in another way."""
    variable = nnx.Variable(np.zeros(1))
    value = np.ones(1)
    write_variable(variable, value)
    if variable.get_raw_value() is not value or "_var_metadata" not in dir(variable):
        raise ImportError(
            "jgraph.graph needs Flax to keep a Variable's value in a slot, and version "
            f"{flax.__version__} doesn't; install one that jgraph names (pip install -U jgraph)"
        )
    if type(vars(nnx.Module()).get(_KINDS)) is not HashableMapping:
        raise ImportError(
            "jgraph.graph needs Flax to keep the kinds of an object's attributes in a mapping, and "
            f"version {flax.__version__} doesn't; install one that jgraph names "
            "(pip install -U jgraph)"
        )


_self_test()


def is_object(x: Any) -> bool:
    """Return whether x is an NNX object: a module, optimizer, metric, Rngs, or a Variable."""
    return isinstance(x, (nnx.Pytree, nnx.Variable))


def is_boundary(x: Any) -> bool:
    """Return whether to stop flattening at x: an object, or a State, whose Variables are values."""
    return isinstance(x, (nnx.Pytree, nnx.Variable, nnx.State))


class ObjectTypes(dict[type, bool]):
    """Remembers by type whether it is an object's: `isinstance` goes through ABCMeta, 0.5 us."""

    def __missing__(self, kind: type) -> bool:
        self[kind] = found = issubclass(kind, (nnx.Pytree, nnx.Variable))
        return found


def flatten(objects: Any) -> tuple[Any, list[Any]]:
    """Return the structure of objects, which can be hashed, and their leaves."""
    structure, leaves = nnx.flatten(objects, with_paths=False, graph=True)
    return structure, list(leaves)


def flatten_with_paths(objects: Any) -> tuple[Any, list[tuple[Path, Any]]]:
    """Return the structure, and (path, Variable or array) of each leaf."""
    structure, flat = nnx.flatten(objects, graph=True)
    return structure, list(flat)


def unflatten(structure: Any, leaves: Sequence[Any]) -> tuple[Any, Any]:
    """Return fresh objects, and their numbers in the structure for `flatten_again`."""
    numbers = graphlib.IndexMap()
    return nnx.unflatten(structure, list(leaves), index_ref=numbers), numbers


def flatten_again(objects: Any, numbers: Any) -> tuple[Any, list[tuple[Path, Any]]]:
    """Flatten objects that were unflattened, so that `restructure` finds the originals.

    The structure says of every object that was there before which number it had.
    """
    known = graphlib.RefMap.from_indexmap(numbers)
    structure, flat = nnx.flatten(objects, ref_outer_index=known, graph=True)
    return structure, list(flat)


def restructure(objects: Any, structure: Any, leaves: Sequence[Any]) -> Any:
    """Give objects another structure in place: they, and what is new, are returned.

    Args:
        objects: what `flatten` took apart before the change.
        structure: from `flatten_again`.
        leaves: its leaves' values.
    """
    known = graphlib.RefMap()
    nnx.flatten(objects, with_paths=False, ref_index=known, graph=True)
    originals = graphlib.IndexMap.from_refmap(known)
    return nnx.unflatten(
        structure,
        list(leaves),
        index_ref=graphlib.IndexMap(),
        outer_index_outer_ref=originals,
    )


def walk(objects: Any) -> Iterator[tuple[Path, Any]]:
    """Yield every object once, with the first path that leads to it."""
    return nnx.iter_graph(objects, graph=True)


def objects_within(objects: Any) -> list[Any]:
    """Return every object once, in the order of the structure."""
    return [x for _, x in walk(objects) if is_object(x)]


def named_variables(objects: Any) -> list[tuple[str, Any]]:
    """Return each Variable once, with its path, `blocks[3].norm.scale`."""
    return [
        (attribute_path(path), leaf)
        for path, leaf in flatten_with_paths(objects)[1]
        if is_object(leaf)
    ]


def attributes(x: Any) -> dict[str, Any]:
    """Return the attributes of an object that people gave it."""
    hidden = ("_length",) if isinstance(x, nnx.List) else ()
    return {k: v for k, v in vars(x).items() if not k.startswith("_pytree__") and k not in hidden}


class _Noted(HashableMapping[str, bool]):
    """The kinds of an object's attributes with a note; equal to those without one."""

    def __init__(self, plain: HashableMapping[str, bool], note: Any) -> None:
        super().__init__(plain)
        self.plain, self.note = plain, note

    def update(self, other: Mapping[str, bool]) -> HashableMapping[str, bool]:
        return _Noted(self.plain.update(other), self.note)


def add_note(x: Any, note: Any) -> None:
    """Attach a note to an object, which its copies keep, and which is no part of its structure."""
    vars(x)[_KINDS] = _Noted(vars(x)[_KINDS], note)


def note_of(x: Any) -> Any:
    """Return an object's note, None if it has none."""
    return getattr(vars(x).get(_KINDS), "note", None)


def drop_note(x: Any) -> None:
    """Take the note off an object."""
    kinds = vars(x).get(_KINDS)
    if isinstance(kinds, _Noted):
        vars(x)[_KINDS] = kinds.plain


def metadata(variable: Any) -> dict[str, Any]:
    """Return a Variable's metadata."""
    return variable.get_metadata()


def holds_ref(variable: Any) -> bool:
    """Return whether a Variable holds a jax Ref, which is mutable by itself."""
    return bool(variable.ref) or bool(variable.hijax)


class Snapshot:
    """Notices that the structure of objects has changed, in the time of comparing pointers.

    It looks at every attribute of every module, every item of plain containers and every
    Variable's metadata, never at what a Variable holds. Modules, Variables, arrays and whatever
    else may be equal without being the same are compared by identity.

    Args:
        objects: the objects; nothing here keeps the outermost ones alive.
    """

    def __init__(self, objects: Iterable[Any]) -> None:
        self._views: list[Any] = []
        # Whose names are data: metadata and containers. A list of dicts is compared in C.
        self._named: list[dict[Any, Any]] = []
        seen: set[int] = set()
        for x in objects:
            self._collect(x, seen)
        self._remember(list(chain.from_iterable(self._views)))

    def _remember(self, items: list[Any]) -> None:
        self._items = items
        # One copy of those that are equal, as most metadata is: less memory to go through.
        copies: dict[Any, dict[Any, Any]] = {}
        self._old_named = [
            copies.setdefault((*names, *map(id, names.values())), dict(names))
            for names in self._named
        ]
        # Twice the first, so that there are at least two and `itemgetter` returns a tuple.
        unsafe = [i for i, x in enumerate(items) if not _equal_is_same(type(x))]
        self._unsafe = itemgetter(*unsafe, unsafe[0]) if unsafe else lambda _: ()
        self._same = self._unsafe(items)

    def holds(self) -> bool:
        """Return whether everything is as it was."""
        now = list(chain.from_iterable(self._views))
        if len(now) != len(self._items):
            return False
        # Lists of equal pointers are equal without a look at what they point to.
        if all(map(is_, self._unsafe(now), self._same)) and now == self._items:
            return self._same_names()
        if not self._same_names():
            return False
        # nnx.jit gives every module it has run another PytreeState: no change of structure.
        for a, b in zip(now, self._items, strict=True):
            if a is not b and not type(a) is type(b) is _PYTREE_STATE:
                return False
        self._remember(now)
        return True

    def _same_names(self) -> bool:
        try:
            return self._named == self._old_named
        except (TypeError, ValueError):  # of arrays, which have no one answer
            return False

    def _collect(self, x: Any, seen: set[int]) -> None:
        if id(x) in seen:
            return
        if isinstance(x, nnx.Variable):
            seen.add(id(x))
            self._named.append(x._var_metadata)
            return
        if isinstance(x, (nnx.Pytree, nnx.State)):
            values: Any = vars(x).values()
        elif isinstance(x, dict):
            values = x.values()
        elif isinstance(x, (list, tuple)):
            values = x
        else:
            return
        seen.add(id(x))
        if not isinstance(x, tuple):
            self._views.append(values)
        if isinstance(x, (dict, nnx.Dict)):
            self._named.append(x if isinstance(x, dict) else vars(x))
        for value in list(values):
            self._collect(value, seen)


def _equal_is_same(kind: type) -> bool:
    """Return whether equal values of a type are as good as the same one."""
    return kind in _EQUAL_IS_SAME or kind.__eq__ is object.__eq__
