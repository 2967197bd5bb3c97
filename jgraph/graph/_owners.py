"""Says by what path a function's code can reach an object that it wasn't given, for errors."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from flax import nnx

from jgraph.graph._captured import Capturing, names_in, places_of
from jgraph.graph._nnx import is_object, walk
from jgraph.graph._paths import join_path

_MOST_LOOKED_AT = 20_000
_PLAIN = (str, bytes, int, float, complex, type(None), jax.Array, types.ModuleType)


class Found(NamedTuple):
    """Where a Variable is: `box['m'].kernel`, and the outermost object around it, `box['m']`."""

    path: str
    holder: str


def find_variable(fn: Callable[..., Any], variable: nnx.Variable) -> Found | None:
    """Return how the code of a function reaches a Variable, None if that can't be seen.

    Args:
        fn: the function; from what it reads outside the search goes through containers, attributes,
            functions and methods, the nearest first.
        variable: the Variable.
    """
    waiting, seen = deque[tuple[str, Any]]([("", fn)]), set[int]()
    while waiting and len(seen) < _MOST_LOOKED_AT:
        path, x = waiting.popleft()
        if id(x) in seen or isinstance(x, _PLAIN):
            continue
        seen.add(id(x))
        if not is_object(x):
            waiting += _inside(path, x)
            continue
        for keys, node in walk(x):
            if node is variable:
                return Found(join_path(path, keys), path)
    return None


def _inside(path: str, x: Any) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of everything that x leads to by one step."""
    if isinstance(x, types.FunctionType):
        yield from _read_by(x)
    elif isinstance(x, types.MethodType):
        code = getattr(x.__func__, "__code__", None)
        yield (code.co_varnames[0] if code and code.co_argcount else "self"), x.__self__
        yield path, x.__func__
    elif isinstance(x, functools.partial):
        yield from ((path, value) for value in (x.func, *x.args, *x.keywords.values()))
    elif isinstance(x, Capturing):
        yield path, x.fn
    elif isinstance(x, dict):
        yield from ((f"{path}[{key!r}]", value) for key, value in list(x.items()))
    elif isinstance(x, (list, tuple)):
        yield from ((f"{path}[{i}]", value) for i, value in enumerate(x))
    else:
        attributes = list(getattr(x, "__dict__", {}).items())
        yield from ((join_path(path, [name]), value) for name, value in attributes)


def _read_by(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function reads outside of itself, by the names that it has there."""
    given = reversed(fn.__code__.co_varnames[: fn.__code__.co_argcount])
    yield from zip(given, reversed(fn.__defaults__ or ()), strict=False)
    yield from (fn.__kwdefaults__ or {}).items()
    for place in places_of(fn):
        value = place.read()
        yield place.name, value
        if isinstance(value, types.ModuleType):
            used = names_in(fn.__code__) & vars(value).keys()
            yield from ((f"{place.name}.{name}", vars(value)[name]) for name in sorted(used))
