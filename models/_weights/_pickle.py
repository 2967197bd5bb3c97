"""A pickle interpreter that knows tensors and nothing else.

Python's own unpickler calls what a file names. Even with its names restricted, a hostile file
can make it fill the memory or hash nested tuples for ever. This one runs the few opcodes that a
state dict needs, over plain values, and refuses every other.
"""

from __future__ import annotations

import dataclasses
import io
import pickletools
from typing import Any

import ml_dtypes
import numpy as np


class BrokenPickleError(Exception):
    """The pickle is cut short or does not make sense."""


class UnsafePickleError(Exception):
    """The pickle names something or uses an opcode that plain tensors do not need."""


@dataclasses.dataclass(frozen=True)
class StorageReference:
    """A flat run of numbers elsewhere in the file."""

    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class TensorReference:
    """A view on a storage, in elements; nothing about it has been checked yet."""

    storage: StorageReference
    offset: Any
    shape: Any
    stride: Any


# Far beyond any file, and below what the lengths in files are written with.
_MOST_ELEMENTS = 1 << 48

_STORAGE_DTYPES = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch BoolStorage": np.dtype("?"),
}
_ORDERED_DICT = "collections OrderedDict"
_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
_REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
_GLOBALS = frozenset({*_STORAGE_DTYPES, _ORDERED_DICT, _REBUILD_TENSOR, _REBUILD_PARAMETER})

_IGNORED = frozenset({"PROTO", "FRAME"})
_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
    | {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLE_LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


def read_pickle(file: io.BytesIO) -> Any:
    """Read one pickle and leave the file just behind it.

    Args:
        file: in memory, so that a false length cannot claim more than there is.

    Returns:
        Plain Python values, with a `TensorReference` for each tensor.

    Raises:
        BrokenPickleError: it is cut short or does not make sense.
        UnsafePickleError: it names or does something that plain tensors do not need.

    Source:
        The opcodes are those of `pickletools`; the names those of torch/_weights_only_unpickler.py.

    Example:
        >>> import pickle
        >>> read_pickle(io.BytesIO(pickle.dumps({"epoch": 3}, protocol=2)))
        {'epoch': 3}
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except ValueError as error:
        raise BrokenPickleError(f"its pickle cannot be decoded ({error})") from error
    raise BrokenPickleError("its pickle has no end")


class _Machine:
    """The stack, the marks and the memo of the pickle being read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.handlers = {
            "BINPERSID": self._storage,
            "REDUCE": self._reduce,
            "BUILD": self._build,
            "STACK_GLOBAL": self._stack_global,
            "APPEND": lambda: self._append([self.pop()]),
            "APPENDS": lambda: self._append(self._pop_to_mark()),
            "SETITEM": lambda: self._set_items([self.pop(), self.pop()][::-1]),
            "SETITEMS": lambda: self._set_items(self._pop_to_mark()),
            "TUPLE": lambda: self.stack.append(tuple(self._pop_to_mark())),
            "MARK": lambda: self.stack.append(_MARK),
            "MEMOIZE": lambda: self._remember(len(self.memo)),
        }

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            self.stack.append(_CONTAINERS[name]())
        elif name in _TUPLE_LENGTHS:
            values = [self.pop() for _ in range(_TUPLE_LENGTHS[name])]
            self.stack.append(tuple(reversed(values)))
        elif name in ("BINGET", "LONG_BINGET"):
            self._recall(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._remember(argument)
        elif name == "GLOBAL":
            self._push_global(argument)
        elif name in self.handlers:
            self.handlers[name]()
        elif name not in _IGNORED:
            raise UnsafePickleError(f"its pickle uses the opcode {name}")

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise BrokenPickleError("its pickle takes a value that is not there")
        return self.stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        values = []
        while self.stack and self.stack[-1] is not _MARK:
            values.append(self.stack.pop())
        if not self.stack:
            raise BrokenPickleError("its pickle takes a value that is not there")
        self.stack.pop()
        return values[::-1]

    def _peek(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise BrokenPickleError(f"its pickle needs a {kind.__name__} where there is none")
        return self.stack[-1]

    def _remember(self, index: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise BrokenPickleError("its pickle remembers a value that is not there")
        self.memo[index] = self.stack[-1]

    def _recall(self, index: int) -> None:
        if index not in self.memo:
            raise BrokenPickleError("its pickle recalls a value that is not there")
        self.stack.append(self.memo[index])

    def _append(self, values: list[Any]) -> None:
        self._peek(list).extend(values)

    def _set_items(self, values: list[Any]) -> None:
        keys = values[::2]
        if len(values) % 2 or not all(isinstance(key, str | int) for key in keys):
            raise BrokenPickleError("its pickle sets an item without a plain key")
        self._peek(dict).update(zip(keys, values[1::2], strict=True))

    def _push_global(self, name: str) -> None:
        if name not in _GLOBALS:
            raise UnsafePickleError(f"it names {name.replace(' ', '.')}")
        self.stack.append(_Global(name))

    def _stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self._push_global(f"{module} {name}")

    def _build(self) -> None:
        # A state dict carries version numbers as an attribute: nothing here needs them.
        self.pop()
        self._peek(dict)

    def _storage(self) -> None:
        match self.pop():
            case ("storage", _Global(name), str(key), _, int(size), *view) if (
                name in _STORAGE_DTYPES and 0 <= size < _MOST_ELEMENTS and view in ([], [None])
            ):
                self.stack.append(StorageReference(key, _STORAGE_DTYPES[name], size))
            case _:
                raise BrokenPickleError("its pickle refers to a storage in an unknown way")

    def _reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        match function, arguments:
            case _Global(name), () if name == _ORDERED_DICT:
                self.stack.append({})
            case _Global(name), (StorageReference() as storage, offset, shape, stride, *_) if (
                name == _REBUILD_TENSOR
            ):
                self.stack.append(TensorReference(storage, offset, shape, stride))
            case _Global(name), (TensorReference() as tensor, *_) if name == _REBUILD_PARAMETER:
                self.stack.append(tensor)
            case _:
                raise BrokenPickleError("its pickle builds something in an unknown way")
