"""Objects that a function reads from outside: closed over, or global, or through a helper."""

from __future__ import annotations

import contextlib
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jgraph.graph._nnx import is_object


class Place(NamedTuple):
    """Where a name's value is kept: a closure's cell, or a module's globals."""

    name: str
    holder: Any
    reader: str
    """The function that reads it."""

    def read(self) -> Any:
        if isinstance(self.holder, types.CellType):
            try:
                return self.holder.cell_contents
            except ValueError:  # not assigned yet
                return None
        return self.holder.get(self.name)

    @property
    def key(self) -> tuple[str, int]:
        return self.name, id(self.holder)


class Capturing:
    """A compiled function: it reads what it captures through `Captured.objects`.

    So another one, which calls it while it is traced, can have it read its own copies.
    """

    fn: Callable[..., Any]


class _StandIns(threading.local):
    """What is read in place of the objects outside, by their places' keys, in this thread."""

    objects: Mapping[tuple[str, int], Any] = types.MappingProxyType({})


_STAND_INS = _StandIns()


class Captured:
    """The objects that a function, and the helpers of its module, read from outside.

    They can't be found in what JAX traces: their arrays would be constants of the program, frozen
    at the values of the first call.

    Args:
        fn: a function; anything else captures nothing that can be seen.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self.places: list[Place] = []
        self.look_again()

    def look_again(self) -> None:
        """Find the places anew: a helper may have been defined since."""
        found = {p.key: p for f in _functions(self._fn) for p in places_of(f)}
        self.places = [p for p in found.values() if is_object(p.read())]

    def names(self, taken: Iterable[str] = ()) -> tuple[str, ...]:
        """Return a name for each object, with the function that reads it where that's needed."""
        count = Counter([*taken, *(p.name for p in self.places)])
        names: list[str] = []
        for place in self.places:
            name = place.name if count[place.name] == 1 else f"{place.reader}.{place.name}"
            same = sum(other.partition("#")[0] == name for other in names)
            names.append(f"{name}#{same + 1}" if same else name)
        return tuple(names)

    def constants(self) -> set[int]:
        """Return the ids of arrays that the code reads as such: they are constants by intent."""
        found: set[int] = set()
        for f in _functions(self._fn):
            given = (*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values())
            for value in (*given, *(p.read() for p in places_of(f))):
                with contextlib.suppress(ValueError):  # a dict whose keys have no order
                    leaves = jax.tree.leaves(value, is_leaf=is_object)
                    found.update(id(x) for x in leaves if isinstance(x, jax.Array))
        return found

    def objects(self) -> list[Any]:
        """Return the objects that stand there now."""
        now = _STAND_INS.objects
        return [now.get(p.key, x) for p in self.places if is_object(x := p.read())]

    @contextlib.contextmanager
    def replaced(self, objects: Sequence[Any]) -> Iterator[Callable[..., Any]]:
        """Give the function reading these objects in place of its own.

        So do the compiled functions that it calls. Afterwards what the code assigned to its
        globals is handed on.
        """
        if not self.places or not isinstance(self._fn, types.FunctionType):
            yield self._fn
            return
        values = {p.key: x for p, x in zip(self.places, objects, strict=True)}
        rebuild, before = _Rebuild(values), _STAND_INS.objects
        _STAND_INS.objects = {**before, **values}
        try:
            yield rebuild.function(self._fn)
        finally:
            _STAND_INS.objects = before
            rebuild.hand_on()


class _Rebuild:
    """Copies functions, with some of the values they read replaced."""

    def __init__(self, values: dict[tuple[str, int], Any]) -> None:
        self._values = values
        self._functions: dict[int, types.FunctionType] = {}
        self._cells: list[tuple[types.CellType, Any]] = []
        # By the originals' ids: the original, its copy, and what the copy began with.
        self._globals: dict[int, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {}

    def function(self, fn: types.FunctionType) -> types.FunctionType:
        if id(fn) in self._functions:
            return self._functions[id(fn)]
        # A cell whose value stays is the original's, so that `nonlocal` writes to it.
        fresh = [p for p in places_of(fn) if self._is_replaced(p)]
        empty = {p.key: types.CellType() for p in fresh if isinstance(p.holder, types.CellType)}
        names = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
        cells = tuple(empty.get((name, id(cell)), cell) for name, cell in names)
        namespace = self._namespace(fn.__globals__)
        copy = types.FunctionType(fn.__code__, namespace, fn.__name__, fn.__defaults__, cells)
        copy.__kwdefaults__ = fn.__kwdefaults__
        copy.__qualname__, copy.__module__ = fn.__qualname__, fn.__module__
        # Known before its cells are filled: functions may refer to each other.
        self._functions[id(fn)] = copy
        for place in fresh:
            value = self._value(place)
            if place.key in empty:
                self._cells.append((empty[place.key], place.read()))
                empty[place.key].cell_contents = value
            else:
                namespace[place.name] = value
                self._globals[id(place.holder)][2][place.name] = value
        return copy

    def hand_on(self) -> None:
        """Write what the copies assigned to their globals to the originals.

        From then on the copies read the originals too: a host callback may be one of them.
        """
        for original, copy, began in self._globals.values():
            for name, value in copy.items():
                if name not in began or value is not began[name]:
                    original[name] = value
            copy.update(original)
        for cell, value in self._cells:
            cell.cell_contents = value

    def _is_replaced(self, place: Place) -> bool:
        value = place.read()
        return place.key in self._values or (
            isinstance(value, types.FunctionType)
            and any(p.key in self._values for f in _functions(value) for p in places_of(f))
        )

    def _value(self, place: Place) -> Any:
        if place.key in self._values:
            return self._values[place.key]
        return self.function(place.read())

    def _namespace(self, original: dict[str, Any]) -> dict[str, Any]:
        if id(original) not in self._globals:
            self._globals[id(original)] = original, dict(original), dict(original)
        _, copy, _ = self._globals[id(original)]
        return copy


def _functions(fn: Any) -> Iterator[types.FunctionType]:
    """Yield fn, and the functions that it reads: in its closure, of its own module, or compiled."""
    waiting, seen = [fn], set()
    while waiting:
        f = waiting.pop()
        f = f.fn if isinstance(f, Capturing) else f
        if not isinstance(f, types.FunctionType) or id(f) in seen:
            continue
        seen.add(id(f))
        yield f
        for place in places_of(f):
            value = place.read()
            own = isinstance(place.holder, types.CellType) or (
                isinstance(value, types.FunctionType) and value.__globals__ is f.__globals__
            )
            if own or isinstance(value, Capturing):
                waiting.append(value)


def places_of(fn: types.FunctionType) -> list[Place]:
    """Return the places fn reads from: its cells in order, then the globals its code names."""
    cells = [
        Place(name, cell, fn.__name__)
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
    ]
    names = sorted(n for n in names_in(fn.__code__) if n in fn.__globals__)
    return cells + [Place(name, fn.__globals__, fn.__name__) for name in names]


def names_in(code: types.CodeType) -> set[str]:
    """Return the names that code reads as globals or attributes, with the functions in it."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(names_in, inner))
