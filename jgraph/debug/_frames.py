"""Where a program is: the line of the user's file, and the module whose call is running."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType, TracebackType
from typing import Any, NamedTuple

import jax

_INSTALLED = frozenset({"site-packages", "dist-packages"})


class Place(NamedTuple):
    """A place in the user's program.

    Attributes:
        line: "model.py:41", the innermost line of the user's, with the loss of jgraph's that it
            called; of a network of jgraph's if the user has none there, else None.
        modules: the NNX modules whose methods are running, the innermost first.
        name: what the caller of the outermost one calls it.
    """

    line: str | None
    modules: tuple[Any, ...]
    name: str

    def path(self) -> str | None:
        """Return the innermost module's path, `model.blocks[3].norm`; None outside of modules."""
        if not self.modules:
            return None
        from flax import nnx

        innermost, root = self.modules[0], self.modules[-1]
        paths = {id(x): path for path, x in nnx.iter_modules(root)}
        for module in self.modules:
            if id(module) in paths:
                found = self.name + "".join(map(_key, paths[id(module)]))
                return found if module is innermost else f"{found} > {type(innermost).__name__}"
        return None

    def text(self) -> str:
        """Return "at model.py:41 in model.blocks[3].norm"."""
        path = self.path()
        return f"at {self.line or 'an unknown line'}" + (f" in {path}" if path else "")


class Call(NamedTuple):
    """A running method of a module.

    Attributes:
        module: the module.
        frame: of the innermost one of its methods that call each other.
        caller: the frame that called the outermost one.
    """

    module: Any
    frame: FrameType
    caller: FrameType | None


class Places:
    """Finds places; it remembers what each root module is called."""

    def __init__(self) -> None:
        self._names: dict[int, tuple[Any, str]] = {}

    def here(self, frame: FrameType) -> Place:
        """Return the place of a running frame."""
        return self._of(_outwards(frame))

    def _of(self, frames: Iterable[tuple[FrameType, int]]) -> Place:
        line, calls = line_and_calls(frames)
        if not calls:
            return Place(line, (), "")
        root = calls[-1].module
        if id(root) not in self._names:
            self._names[id(root)] = root, _name_of(calls[-1])
        return Place(line, tuple(call.module for call in calls), self._names[id(root)][1])


def place_here() -> Place:
    """Return the caller's place."""
    return Places().here(sys._getframe(1))


def line_and_calls(frames: Iterable[tuple[FrameType, int]]) -> tuple[str | None, list[Call]]:
    """Return a place's line, and the calls of modules, the innermost first."""
    line, shown, loss = None, None, ""
    calls: list[Call] = []
    for frame, number in frames:
        code = frame.f_code
        owner = _owner(code.co_filename) if line is None else ""
        if owner:
            here = f"{os.path.basename(code.co_filename)}:{number}"
            shown = shown or here
            if owner == "user":
                line = here
            elif owner == "losses":
                loss = f" (in jgraph.losses.{code.co_qualname})"
        module = _module_of(frame, code)
        if module is None:
            continue
        if calls and calls[-1].module is module:
            calls[-1] = calls[-1]._replace(caller=frame.f_back)
        else:
            calls.append(Call(module, frame, frame.f_back))
    return (line + loss if line else shown), calls


def place_of_error(error: BaseException) -> tuple[Place, list[Call]]:
    """Return the place where an error was raised, and the calls of modules there."""
    frames = list(_inwards(error.__traceback__))[::-1]
    line, calls = line_and_calls(frames)
    if not calls:
        return Place(line, (), ""), []
    return Place(line, tuple(c.module for c in calls), _name_of(calls[-1])), calls


def is_users(file: str) -> bool:
    """Return whether a source file is neither Python's, nor an installed one, nor jgraph's."""
    return _owner(file) == "user"


def is_shown(file: str) -> bool:
    """Return whether a source file is the user's, or one of the networks and losses of jgraph."""
    return bool(_owner(file))


@functools.cache
def _owner(file: str) -> str:
    """Return whose a source file is: "user", "models" or "losses" of jgraph, "" for libraries."""
    if file.startswith("<frozen"):
        return ""
    real = os.path.realpath(file)
    package = _library_folders()[0]
    for part in ("models", "losses"):
        if real.startswith(os.path.realpath(package + part) + os.sep):
            return part
    is_installed = not _INSTALLED.isdisjoint(real.split(os.sep))
    return "" if is_installed or real.startswith(_library_folders()) else "user"


@functools.cache
def _library_folders() -> tuple[str, ...]:
    here = os.path.dirname(os.path.realpath(__file__))
    paths = sysconfig.get_paths()
    folders = [os.path.dirname(here), os.path.dirname(os.path.realpath(jax.__file__))]
    folders += [paths["stdlib"], paths["purelib"], paths["platlib"]]
    return tuple(os.path.realpath(folder) + os.sep for folder in folders)


def _outwards(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back


def _inwards(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


# Code that isn't a module's method: a frame's variables are read only where it may be one.
# By id, since hashing code reads all of it; the value keeps it alive.
_NO_METHODS: dict[int, CodeType] = {}


def _module_of(frame: FrameType, code: CodeType) -> Any:
    if id(code) in _NO_METHODS:
        return None
    owner, dot, name = code.co_qualname.rpartition(".")
    if dot and code.co_argcount and name != "__init__" and "flax.nnx" in sys.modules:
        module = frame.f_locals.get(code.co_varnames[0])
        if _is_module(module):
            kinds = {kind.__qualname__ for kind in type(module).__mro__}
            return module if owner in kinds else None
    _NO_METHODS[id(code)] = code
    return None


def _is_module(x: Any) -> bool:
    return isinstance(x, sys.modules["flax.nnx"].Module)


def _name_of(call: Call) -> str:
    """Return what the caller of a module's method calls that module."""
    frame = call.caller
    while frame is not None and not is_shown(frame.f_code.co_filename):
        frame = frame.f_back
    names = frame.f_locals.items() if frame is not None else ()
    return next((k for k, x in names if x is call.module), type(call.module).__name__)


def _key(key: Any) -> str:
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"
