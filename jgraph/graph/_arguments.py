"""The arguments of a call, sorted into objects, arrays and static values, and put back."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress
from typing import Any, NamedTuple

import jax

from jgraph._eager import as_array
from jgraph._errors import InputError
from jgraph.graph._nnx import ObjectTypes, is_boundary, is_object
from jgraph.graph._paths import tree_path

ARRAY, OBJECT, STATIC, NESTED = range(4)

_IS_OBJECT = ObjectTypes()


class Layout(NamedTuple):
    """How a call was sorted: with the objects and the arrays it gives the arguments again."""

    kinds: tuple[int, ...]
    names: tuple[str, ...]
    """Keywords; they belong to the last values."""
    statics: tuple[Any, ...]
    nests: tuple[tuple[Any, tuple[bool, ...]], ...]
    """For pytrees with objects inside: their structure, and which leaves are objects."""
    types: tuple[type, ...] = ()
    """Of the static values, since 1, 1.0 and True are equal."""
    splits: tuple[int | None, ...] = ()
    """For each array of the arguments the axis that is split over replicas; () for none."""

    def restore(
        self, objects: Sequence[Any], arrays: Sequence[Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return positional and keyword arguments."""
        pools = iter(arrays), iter(objects), iter(self.statics)
        nests = iter(self.nests)
        values: list[Any] = []
        for kind in self.kinds:
            if kind == NESTED:
                structure, flags = next(nests)
                others = iter(next(pools[ARRAY]))
                leaves = [next(pools[OBJECT]) if flag else next(others) for flag in flags]
                values.append(jax.tree.unflatten(structure, leaves))
            else:
                values.append(next(pools[kind]))
        first = len(values) - len(self.names)
        return values[:first], dict(zip(self.names, values[first:], strict=True))


class Sorted(NamedTuple):
    """A sorted call."""

    layout: Layout
    objects: list[Any]
    arrays: list[Any]

    def as_traced(self) -> Any:
        """Return the arguments as a trace would have them: numbers and NumPy's are JAX's arrays."""
        arrays = jax.tree.map(as_array, self.arrays, is_leaf=is_boundary)
        return self.layout.restore(self.objects, arrays)


class Plain(NamedTuple):
    """How to sort values of some types, where none is static or nested."""

    layout: Layout
    objects: tuple[bool, ...]
    arrays: tuple[bool, ...]

    @classmethod
    def of(cls, types: Iterable[type], names: tuple[str, ...]) -> Plain:
        """Choose by type, which says whether a value is an object."""
        objects = tuple(map(_IS_OBJECT.__getitem__, types))
        layout = Layout(tuple(map(int, objects)), names, (), ())
        return cls(layout, objects, tuple(not x for x in objects))


@dataclasses.dataclass
class Parameters:
    """What a function's signature says about its arguments.

    Args:
        names: the parameters that can be given by position.
        keywords: all its parameters.
        open: whether it takes keywords that it doesn't name, or its signature can't be read.
        static: names of those that are static.
    """

    names: tuple[str, ...]
    keywords: tuple[str, ...]
    open: bool
    static: frozenset[str] = frozenset()
    nested: set[str] = dataclasses.field(default_factory=set)
    """Arguments found to hold objects inside containers; they are looked through from then on."""
    plain: dict[Any, Plain] = dataclasses.field(default_factory=dict)
    """By the keywords and the values' types; kept since every call needs one."""

    @classmethod
    def of(cls, fn: Callable[..., Any], static: str | int | Iterable[str | int]) -> Parameters:
        """Read a function's signature.

        Raises:
            InputError: `static` names a parameter that isn't there.
        """
        if isinstance(fn, type):  # Flax's classes have the signature of their metaclass
            fn = functools.partial(fn.__init__, None)
        try:
            found = list(inspect.signature(fn).parameters.values())
        except (TypeError, ValueError):
            return cls((), (), True, frozenset(map(str, _listed(static))))
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = tuple(p.name for p in found if p.kind in positional)
        is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found)
        parameters = cls(names, tuple(p.name for p in found), is_open)
        chosen: set[str] = set()
        for s in _listed(static):
            name = names[s] if isinstance(s, int) and 0 <= s < len(names) else s
            if not isinstance(name, str) or (name not in parameters.keywords and not is_open):
                raise InputError(
                    "static must name arguments of the function, "
                    f"{', '.join(parameters.keywords) or 'which has none'}; got {s!r}"
                )
            chosen.add(name)
        return dataclasses.replace(parameters, static=frozenset(chosen))

    def label(self, position: int, values: int, names: Sequence[str]) -> str:
        """Return the name of a call's value."""
        first = values - len(names)
        if position >= first:
            return names[position - first]
        return self.names[position] if position < len(self.names) else f"args[{position}]"

    def sort(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sorted:
        """Sort a call's values; it makes no difference how a parameter is passed."""
        names: tuple[str, ...] = ()
        if kwargs:
            args, names = self._in_order(args, kwargs)
        if self.static or self.nested:
            return self._sort_carefully(args, names)
        types = (names, *map(type, args))
        plain = self.plain.get(types)
        if plain is None:
            plain = self.plain[types] = Plain.of(types[1:], names)
        layout, objects, arrays = plain
        return Sorted(layout, list(compress(args, objects)), list(compress(args, arrays)))

    def _in_order(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        """Return all values, and the names of those that only a keyword can give."""
        rest = dict(kwargs)
        for name in self.names[len(args) :]:
            if name not in rest:
                break
            args = (*args, rest.pop(name))
        names = tuple(sorted(rest))
        return (*args, *[rest[name] for name in names]), names

    def _sort_carefully(self, args: tuple[Any, ...], names: tuple[str, ...]) -> Sorted:
        kinds: list[int] = []
        statics: list[Any] = []
        nests: list[tuple[Any, tuple[bool, ...]]] = []
        objects: list[Any] = []
        arrays: list[Any] = []
        for position, x in enumerate(args):
            label = self.label(position, len(args), names)
            kind = STATIC if label in self.static else _IS_OBJECT[type(x)]
            if kind == STATIC:
                statics.append(_hashable(label, x))
            elif kind == OBJECT:
                objects.append(x)
            elif label in self.nested:
                kind = NESTED
                leaves, structure = jax.tree.flatten(x, is_leaf=is_boundary)
                flags = tuple(map(is_object, leaves))
                nests.append((structure, flags))
                objects += [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]
                arrays.append([leaf for leaf, f in zip(leaves, flags, strict=True) if not f])
            else:
                arrays.append(x)
            kinds.append(kind)
        types = tuple(map(type, statics))
        layout = Layout(tuple(kinds), names, tuple(statics), tuple(nests), types)
        return Sorted(layout, objects, arrays)

    def labels(self, layout: Layout) -> Labels:
        """Return the names of the objects, the arrays and the static values of a sorted call."""
        labels = Labels([], [], [])
        nests = iter(layout.nests)
        for position, kind in enumerate(layout.kinds):
            label = self.label(position, len(layout.kinds), layout.names)
            if kind == NESTED:
                structure, flags = next(nests)
                numbered = jax.tree.unflatten(structure, range(len(flags)))
                paths = [label + tree_path(p) for p, _ in jax.tree.leaves_with_path(numbered)]
                labels.objects.extend(p for p, f in zip(paths, flags, strict=True) if f)
                labels.arrays.append([p for p, f in zip(paths, flags, strict=True) if not f])
            elif kind == OBJECT:
                labels.objects.append(label)
            elif kind == ARRAY:
                labels.arrays.append(label)
            else:
                labels.statics.append(label)
        return labels

    def find_nested(self, layout: Layout, arrays: Sequence[Any]) -> set[str]:
        """Return the names of the arguments among the arrays that have objects inside."""
        found: set[str] = set()
        for label, x in zip(self.labels(layout).arrays, arrays, strict=True):
            inside = jax.tree.leaves(x, is_leaf=is_boundary)
            if isinstance(label, str) and any(map(is_object, inside)):
                found.add(label)
        return found


class Labels(NamedTuple):
    """Names of sorted values. An argument with objects inside has a list of names for the rest."""

    objects: list[str]
    arrays: list[str | list[str]]
    statics: list[str]

    def trees(self, arrays: Sequence[Any]) -> list[tuple[str, Any]]:
        """Return (name, pytree) of what is among the arrays."""
        found: list[tuple[str, Any]] = []
        for label, x in zip(self.arrays, arrays, strict=True):
            found += [(label, x)] if isinstance(label, str) else zip(label, x, strict=True)
        return found

    def paths(self, arrays: Sequence[Any]) -> list[str]:
        """Return the path of every leaf among the arrays, `batch['picture']`."""
        return [
            label + tree_path(path)
            for label, x in self.trees(arrays)
            for path, _ in jax.tree.leaves_with_path(x)
        ]


def _hashable(label: str, x: Any) -> Any:
    try:
        hash(x)
    except TypeError:
        raise InputError(
            f"a static argument must be hashable, since each value has a graph of its own; "
            f"{label} is the {type(x).__name__} {x!r:.80}. Pass it as an ordinary argument, or "
            "as a tuple or frozen dataclass"
        ) from None
    return x


def _listed(static: str | int | Iterable[str | int]) -> list[str | int]:
    return [static] if isinstance(static, (str, int)) else list(static)


def donations(donate: str | Iterable[str], parameters: Parameters) -> frozenset[str]:
    """Return what is donated: "state" and names of arguments, which must be the function's."""
    names = frozenset([donate] if isinstance(donate, str) else donate)
    known = {"state", *parameters.names, *parameters.keywords}
    unknown = sorted(names - known)
    if unknown and not parameters.open:
        raise InputError(
            f"donate must be 'state' or names of arguments, {', '.join(sorted(known))}; got "
            f"{unknown[0]!r}"
        )
    return names


def at_least_one(name: str, value: int | None) -> int | None:
    """Return an option that is a whole number from 1 or None; raise for any other."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InputError(f"{name} must be a whole number from 1, or None, got {value!r}")
    return value
