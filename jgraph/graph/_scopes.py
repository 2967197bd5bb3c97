"""Module paths in the name stack: every submodule call runs under `jax.named_scope`.

NNX leaves no trace of its modules in a traced program. While jgraph traces, each module carries
its path as a note, and the `__call__` of its class, for that time only, enters the scope. Copies
that `nnx.grad` or `nnx.scan` make keep the note, and it makes no difference of structure.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from flax import nnx

from jgraph._eager import jit_is_off
from jgraph.graph._nnx import add_note, drop_note, note_of, walk
from jgraph.graph._paths import attribute_path

_METHODS = ("__call__", "update")


class _Enclosing(threading.local):
    """The path of the module whose call is running in this thread."""

    parts: tuple[str, ...] = ()
    own: int | None = None
    """In a call that is about to be traced: which of its objects that module is."""


class _Patches:
    """Which methods of which classes are wrapped just now, and by how many traces."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[tuple[type, str], tuple[int, Callable[..., Any]]] = {}

    def enter(self, methods: set[tuple[type, str]]) -> None:
        with self._lock:
            for cls, name in methods:
                count, original = self._held.get((cls, name), (0, vars(cls)[name]))
                if not count:
                    setattr(cls, name, _scoped(original))
                self._held[cls, name] = count + 1, original

    def exit(self, methods: set[tuple[type, str]]) -> None:
        with self._lock:
            for cls, name in methods:
                count, original = self._held.pop((cls, name))
                if count > 1:
                    self._held[cls, name] = count - 1, original
                else:
                    setattr(cls, name, original)


_ENCLOSING = _Enclosing()
_PATCHES = _Patches()


@contextlib.contextmanager
def module_scopes(objects: Iterable[tuple[str, Any]]) -> Iterator[None]:
    """Run a trace in which each module's operations are under its path.

    `jgraph.function` does so for the objects it is given; this is for code that makes its models
    inside the traced function, with `nnx.merge`. Without a trace it does nothing.

    Args:
        objects: (name of the root, NNX object) of this trace.
    """
    if jit_is_off():
        yield
        return
    tagged: list[Any] = []
    methods: set[tuple[type, str]] = set()
    for root, x in objects:
        for path, node in walk(x):
            if not _has_scope(node):
                continue
            methods |= _methods(type(node))
            if note_of(node) is None:
                add_note(node, _parts(root, path))
                tagged.append(node)
    _PATCHES.enter(methods)
    try:
        yield
    finally:
        _PATCHES.exit(methods)
        for node in tagged:
            drop_note(node)


@contextlib.contextmanager
def call_inside(objects: Iterable[Any]) -> Iterator[None]:
    """Run a call of a compiled function inside a trace: one of these may be the module calling it.

    So it is where a method is compiled: its scope is entered, and isn't to be entered again.
    """
    parts, before = _ENCLOSING.parts, _ENCLOSING.own
    running = (i for i, x in enumerate(objects) if parts and _has_scope(x) and note_of(x) == parts)
    _ENCLOSING.own = next(running, None)
    try:
        yield
    finally:
        _ENCLOSING.own = before


@contextlib.contextmanager
def function_scopes(labels: Sequence[str], objects: Sequence[Any]) -> Iterator[None]:
    """Trace a function's body: as `module_scopes`, with paths that begin in this function.

    Args:
        labels: the names of its objects.
        objects: the objects, copies of those that `call_inside` was given.
    """
    parts, own = _ENCLOSING.parts, _ENCLOSING.own
    _ENCLOSING.parts, _ENCLOSING.own = () if own is None else (labels[own],), None
    try:
        with module_scopes(zip(labels, objects, strict=True)):
            yield
    finally:
        _ENCLOSING.parts, _ENCLOSING.own = parts, own


def drop_scopes(objects: Any) -> None:
    """Take the paths off objects that copies of scoped modules were put into."""
    for _, node in walk(objects):
        if isinstance(node, nnx.Pytree):
            drop_note(node)


def _has_scope(node: Any) -> bool:
    return isinstance(node, nnx.Pytree) and not isinstance(node, (nnx.Rngs, nnx.RngStream))


def _methods(cls: type) -> set[tuple[type, str]]:
    """Return the classes that define a scoped method of this one, also those `super()` reaches."""
    return {
        (base, name)
        for base in cls.__mro__
        for name in _METHODS
        if issubclass(base, nnx.Pytree) and _is_method(vars(base).get(name))
    }


def _is_method(value: Any) -> bool:
    """Return whether a class's attribute is a function, or a compiled one, that takes `self`."""
    return isinstance(value, types.FunctionType) or (
        callable(value) and hasattr(type(value), "__get__") and not isinstance(value, staticmethod)
    )


def _parts(root: str, path: tuple[Any, ...]) -> tuple[str, ...]:
    """Return a path with one part for each attribute: ("model", "blocks[3]", "norm")."""
    parts = [root]
    for key in path:
        if isinstance(key, str) and key.isidentifier():
            parts.append(key)
        else:
            parts[-1] += attribute_path([key])
    return tuple(parts)


def _scoped(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        outer, inner = _ENCLOSING.parts, note_of(self)
        if inner is None or outer == inner:  # a method of the same module, through super()
            return method(self, *args, **kwargs)
        # What a module shares with others is also called from outside of its own path.
        common = sum(itertools.takewhile(bool, map(operator.eq, outer, inner)))
        relative = inner[common:] or inner[-1:]
        _ENCLOSING.parts = inner
        try:
            with jax.named_scope("/".join(relative)):
                return method(self, *args, **kwargs)
        finally:
            _ENCLOSING.parts = outer

    return call
