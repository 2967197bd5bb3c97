"""What a graph file says, as plain values; `_check` turns JSON into it, `_write` a jaxpr."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from jgraph.graph._file._dims import Dim

FORMAT = "jgraph-graph"
MAX_DEPTH = 32
"""Of functions that call functions: what Python's limit of recursion leaves for JAX."""

Ref: TypeAlias = int | dict[str, Any]
"""A value of a function by its number, or a scalar `{"c": 1.0, "t": "float32"}`."""


class Step(NamedTuple):
    """One operation of a function."""

    op: str
    inputs: list[Ref]
    outputs: int
    params: dict[str, Any]
    place: int


class Body(NamedTuple):
    """A function: its inputs are the values 0, 1, …, then come the outputs of its steps."""

    name: str
    inputs: int
    steps: list[Step]
    outputs: list[Ref]


class Place(NamedTuple):
    """Where an operation came from."""

    scopes: tuple[str, ...]
    transforms: tuple[str, ...]
    file: str
    line: int


class Custom(NamedTuple):
    """A function with a derivative of its own."""

    kind: str
    """`jvp` or `vjp`."""
    function: int
    rules: list[int]
    """The tangent rule, or the forward and the backward pass."""
    residuals: int


class Input(NamedTuple):
    """The type of one of the main function's inputs."""

    shape: tuple[Dim, ...]
    dtype: str


class Document(NamedTuple):
    """A graph file without its tensors."""

    name: str
    inputs: list[Input]
    constraints: list[str]
    interface: dict[str, Any]
    functions: list[Body]
    """A function calls those before it; the last is the main one."""
    customs: list[Custom]
    places: list[Place]
