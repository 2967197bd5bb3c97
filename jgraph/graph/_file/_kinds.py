"""Kinds of parameters in a graph file: how each is written, checked and read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jgraph._errors import GraphFormatError
from jgraph.graph._file._dims import check_dim, evaluate, write_dim

_MAX_ITEMS = 4096
_MAX_INT = 1 << 40

DTYPES = (
    "bool",
    *("int2", "int4", "int8", "int16", "int32", "int64"),
    *("uint2", "uint4", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e5m2"),
)
_KEYS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}


@runtime_checkable
class Writer(Protocol):
    """What writing a parameter needs of the file's writer."""

    def function(self, jaxpr: Any, name: str) -> int:
        """Add a body to the file's functions and return its number."""
        ...


@runtime_checkable
class Reader(Protocol):
    """What reading a parameter needs of a replay."""

    symbols: Mapping[str, Any]

    def callable(self, number: int) -> Callable[..., list[Any]]:
        """Return a function of the file."""
        ...

    def dtype(self, name: str) -> Any:
        """Return a type, after casting."""
        ...


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of parameter.

    Args:
        write: from a jaxpr's parameter to JSON.
        check: raises GraphFormatError for other JSON.
        read: from JSON to what jax.lax takes.
    """

    write: Callable[[Any, Writer], Any]
    check: Callable[[Any, str], None]
    read: Callable[[Any, Reader], Any]
    is_function: bool = False


def _plain(
    kind: type, what: str, least: int = -_MAX_INT, most: int = _MAX_INT
) -> Callable[[Any, str], None]:
    def check(value: Any, where: str) -> None:
        if type(value) is not kind or (kind is int and not least <= value <= most):
            raise GraphFormatError(f"{where} must be {what}, got {value!r:.40}")

    return check


def listed(item: Kind) -> Kind:
    """A list of another kind, read as a tuple."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) > _MAX_ITEMS:
            raise GraphFormatError(f"{where} must be a list, got {value!r:.40}")
        for i, x in enumerate(value):
            item.check(x, f"{where}[{i}]")

    return Kind(
        lambda value, writer: [item.write(x, writer) for x in value],
        check,
        lambda value, reader: tuple(item.read(x, reader) for x in value),
        is_function=item.is_function,
    )


def optional(item: Kind) -> Kind:
    """Another kind, or nothing."""
    return Kind(
        lambda value, writer: None if value is None else item.write(value, writer),
        lambda value, where: None if value is None else item.check(value, where),
        lambda value, reader: None if value is None else item.read(value, reader),
        is_function=item.is_function,
    )


def choice(values: Mapping[str, Any], write: Callable[[Any], str] = str) -> Kind:
    """One of some names, each of which stands for a value."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in values:
            raise GraphFormatError(f"{where} must be one of {', '.join(values)}, got {value!r:.40}")

    return Kind(lambda value, _: write(value), check, lambda value, _: values[value])


def enum(kind: type) -> Kind:
    """One member of an enum, written by its name."""
    return choice({member.name: member for member in kind}, lambda value: value.name)  # pyright: ignore[reportGeneralTypeIssues]


def _check_dtype(value: Any, where: str) -> None:
    if not isinstance(value, str) or value not in (*DTYPES, *_KEYS):
        raise GraphFormatError(
            f"{where} must be a dtype that graph files have, such as float32, got {value!r:.40}"
        )


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype in a file: `float32`, `key<fry>`."""
    return str(dtype) if jnp.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).name


@functools.cache
def as_dtype(name: str) -> Any:
    """Return the dtype of a name."""
    if name in _KEYS:
        # Abstract, so that a trace in which this is asked gets no operation by it.
        return jax.eval_shape(lambda: jax.random.key(0, impl=_KEYS[name])).dtype
    return jnp.dtype(name)


def _check_name(value: Any, where: str) -> None:
    if not isinstance(value, str) or not value.isidentifier() or len(value) > 40:
        raise GraphFormatError(f"{where} must be a name, got {value!r:.40}")


def _check_size(value: Any, where: str) -> None:
    check_dim(value, where)


INT = Kind(lambda value, _: int(value), _plain(int, "a whole number"), lambda value, _: value)
COUNT = dataclasses.replace(
    INT, check=_plain(int, "a whole number from 0 to 2147483647", 0, (1 << 31) - 1)
)
BOOL = Kind(lambda value, _: bool(value), _plain(bool, "true or false"), lambda value, _: value)
INTS = listed(INT)
NAME = Kind(lambda value, _: str(value), _check_name, lambda value, _: value)
DIM = Kind(
    lambda value, _: write_dim(value),
    _check_size,
    lambda value, reader: evaluate(value, reader.symbols, "a size"),
)
DIMS = listed(DIM)
DTYPE = Kind(
    lambda value, _: dtype_name(value), _check_dtype, lambda value, reader: reader.dtype(value)
)
EXACT_DTYPE = Kind(
    lambda value, _: dtype_name(value), _check_dtype, lambda value, reader: as_dtype(value)
)
"""A dtype that a cast leaves alone, for operations on bits."""
FUNCTION = Kind(
    lambda value, writer: writer.function(value, ""),
    _plain(int, "the number of a function"),
    lambda value, reader: reader.callable(value),
    is_function=True,
)
PRECISION = enum(lax.Precision)


def write_all(
    kinds: Mapping[str, Kind], values: Mapping[str, Any], writer: Writer
) -> dict[str, Any]:
    """Write an operation's parameters."""
    return {name: kind.write(values[name], writer) for name, kind in kinds.items()}


def functions_in(kinds: Mapping[str, Kind], values: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the functions that an operation's parameters name."""
    found: list[int] = []
    for name, kind in kinds.items():
        if kind.is_function and values[name] is not None:
            value = values[name]
            found += value if isinstance(value, Sequence) else [value]
    return found
