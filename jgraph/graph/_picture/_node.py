"""The parts of a picture: nodes inside nodes, and edges between neighbours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from jgraph.graph._ops import Op

Kind = Literal["module", "ops", "group", "loop", "loss", "update", "input", "output"]

GRADIENTS = "gradients"  # in the place of a type: what flows into the update
TOP = -1  # an edge's source: what flows into the node from outside


@dataclasses.dataclass(frozen=True)
class Edge:
    """Data flowing between two children of one node.

    Args:
        source: index of the child it comes from; TOP for the node's own input.
        target: index of the child it goes to; the number of children for the node's own output.
        shapes: types of the arrays, "f32[8,224,224,3]".
    """

    source: int
    target: int
    shapes: tuple[str, ...]


@dataclasses.dataclass
class Node:
    """A box of the picture.

    Args:
        name: what it is called in its parent.
        kind: what it stands for.
        ops: operations of the forward pass that stand in it, without those of its children.
        children: the boxes inside, in the order of the dataflow.
        edges: how they are joined.
        forward: FLOPs of one copy's forward pass, its children's included.
        backward: the same of its backward pass.
        params: how many arrays of parameters it reads, its children's too, and their elements.
        scope: the module's path.
        last: name of the last of the copies merged into it.
        copies: how many equal neighbours it stands for.
        phrase: its operations in words.
        symbols: of the root, sizes without a number, which count as 1.
    """

    name: str
    kind: Kind
    ops: list[Op] = dataclasses.field(default_factory=list)
    children: list[Node] = dataclasses.field(default_factory=list)
    edges: list[Edge] = dataclasses.field(default_factory=list)
    forward: int = 0
    backward: int = 0
    params: tuple[int, int] = (0, 0)
    scope: tuple[str, ...] = ()
    last: str = ""
    copies: int = 1
    phrase: str = ""
    symbols: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """FLOPs of all its copies, both passes."""
        return (self.forward + self.backward) * self.copies

    @property
    def title(self) -> str:
        """Its name, or the range of names it stands for: "blocks[0…99]"."""
        return merged_name(self.name, self.last) if self.copies > 1 else self.name

    @property
    def is_expandable(self) -> bool:
        """Whether looking inside shows more than the box does."""
        return bool(self.children)

    def walk(self) -> Iterator[Node]:
        """Yield the node and everything inside it."""
        yield self
        for child in self.children:
            yield from child.walk()

    def all_ops(self) -> Iterator[Op]:
        """Yield the forward operations of the node and everything inside it."""
        for node in self.walk():
            yield from node.ops


def merged_name(first: str, last: str) -> str:
    """Return the names from `first` to `last` as one.

    Example:
        >>> merged_name("blocks[0]", "blocks[99]"), merged_name("up", "down")
        ('blocks[0…99]', 'up … down')
    """
    if not last or first == last:
        return first
    start = 0
    while start < min(len(first), len(last)) and first[start] == last[start]:
        start += 1
    while start and first[start - 1].isdigit():
        start -= 1
    end = 0
    room = min(len(first), len(last)) - start
    while end < room and first[-1 - end] == last[-1 - end] and not first[-1 - end].isdigit():
        end += 1
    a, b = first[start : len(first) - end], last[start : len(last) - end]
    if not (a.isdigit() and b.isdigit()):
        return f"{first} … {last}"
    return f"{first[:start]}{a}…{b}{first[len(first) - end :]}"
