"""Equal neighbours merged into one box: blocks[0…99] ×100, also where the pattern has a period."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

from jgraph.graph._picture._node import TOP, Edge, Node
from jgraph.graph._picture._words import phrase

_LONGEST_PERIOD = 8
_DIGITS = re.compile(r"\d+")
_INDEX = re.compile(r"\[\d+\]")
_SINGLE = ("input", "output", "loss", "update")


class _Run(NamedTuple):
    start: int
    period: int
    copies: int

    @property
    def end(self) -> int:
        return self.start + self.period * self.copies


def _key(node: Node) -> Hashable:
    """Return what two boxes have in common when a reader would call them the same."""
    return (
        node.kind,
        _DIGITS.sub("#", node.name),
        node.copies,
        node.forward,
        node.backward,
        node.params,
        tuple((op.name, op.detail, op.inputs, op.outputs) for op in node.ops),
        tuple(map(_key, node.children)),
        tuple(node.edges),
    )


class _Neighbours:
    """The children of one node, as numbers that are equal where the children are."""

    def __init__(self, node: Node) -> None:
        numbers: dict[Hashable, int] = {}
        self.keys = [numbers.setdefault(_key(child), len(numbers)) for child in node.children]
        self.names = [child.name for child in node.children]
        self.is_single = [child.kind in _SINGLE for child in node.children]
        self.is_merged = [child.copies > 1 for child in node.children]
        self.into: list[list[Edge]] = [[] for _ in range(len(node.children) + 1)]
        self.out: list[list[Edge]] = [[] for _ in node.children]
        for edge in node.edges:
            self.into[edge.target].append(edge)
            if edge.source != TOP:
                self.out[edge.source].append(edge)

    def _inputs(self, run: _Run, copy: int) -> set[Hashable]:
        """Return what flows into one copy, seen from that copy."""
        start = run.start + copy * run.period
        found: set[Hashable] = set()
        for member in range(run.period):
            for edge in self.into[start + member]:
                back = (start - edge.source + run.period - 1) // run.period
                inside = edge.source >= run.start
                source = (back, edge.source - start + back * run.period) if inside else edge.source
                found.add((member, source, edge.shapes))
        return found

    def _outputs(self, run: _Run, copy: int) -> set[Hashable]:
        """Return what flows out of one copy, but not into the next."""
        start = run.start + copy * run.period
        after = range(start, min(start + 2 * run.period, run.end))
        return {
            (member, edge.target)
            for member in range(run.period)
            for edge in self.out[start + member]
            if edge.target not in after
        }

    def _alike_inputs(self, run: _Run) -> bool:
        """Return whether the last copy reads as the one before it does."""
        last, before = self._inputs(run, run.copies - 1), self._inputs(run, run.copies - 2)
        if run.copies > 2:
            return last == before
        # The first copy of a chain reads from outside what the others read from their neighbour.
        return _pattern(last) == _pattern(before)

    def _alike_outputs(self, run: _Run) -> bool:
        outputs = [self._outputs(run, copy) for copy in range(run.copies)]
        return not any(outputs[:-1]) or all(o == outputs[0] for o in outputs)

    def run_at(self, start: int, period: int) -> _Run:
        """Return the longest run of equal copies from `start`."""
        run = _Run(start, period, 1)
        pattern = self.keys[start : start + period]
        if any(self.is_single[start : start + period]) or (period == 1 and self.is_merged[start]):
            return run
        while self.keys[run.end : run.end + period] == pattern:
            longer = run._replace(copies=run.copies + 1)
            if not self._alike_inputs(longer):
                break
            run = longer
        while run.copies > 1 and not self._alike_outputs(run):
            run = run._replace(copies=run.copies - 1)
        return run

    def is_worth_it(self, run: _Run) -> bool:
        """Return whether merging helps: a list's items at once, other names from three on."""
        names = self.names[run.start : run.start + run.period]
        is_list = any(_INDEX.search(name) for name in names)
        if run.period > 1 and len(set(self.keys[run.start : run.start + run.period])) == 1:
            return False  # a shorter period says the same
        return run.copies >= (2 if is_list and run.period == 1 else 3) and any(names)


def _pattern(inputs: Iterable[Any]) -> list[tuple[Any, Any]]:
    return sorted(((member, shapes) for member, _, shapes in inputs), key=repr)


def _best_run(node: Node) -> _Run | None:
    neighbours = _Neighbours(node)
    best: _Run | None = None
    for period in range(1, min(_LONGEST_PERIOD, len(node.children) // 2) + 1):
        start = 0
        while start + 2 * period <= len(node.children):
            run = neighbours.run_at(start, period)
            if run.copies > 1 and neighbours.is_worth_it(run):
                covered = run.period * run.copies
                if best is None or covered > best.period * best.copies:
                    best = run
                start = run.end if period == 1 else start + 1
            else:
                start += 1
    return best


def _merged(node: Node, run: _Run) -> Node:
    """Return one box for all copies of a run."""
    members = node.children[run.start : run.start + run.period]
    names = [c.title for c in node.children[run.start : run.end] if c.name]
    if run.period == 1:
        (first,) = members
        first.copies, first.last = run.copies, node.children[run.end - 1].name
        return first
    first, last = names[0], names[-1]
    group = Node(first, "group", children=members, copies=run.copies, last=last)
    group.scope = node.scope
    for member in members:
        group.forward += member.forward * member.copies
        group.backward += member.backward * member.copies
        count, elements = member.params
        group.params = (
            group.params[0] + count * member.copies,
            group.params[1] + elements * member.copies,
        )
    inner: dict[tuple[int, int], dict[str, None]] = {}
    ends = run.start + run.period
    for edge in node.edges:
        source, target = edge.source - run.start, edge.target - run.start
        source_in, target_in = 0 <= source < run.period, run.start <= edge.target < ends
        if source_in or target_in:
            pair = source if source_in else TOP, target if target_in else run.period
            inner.setdefault(pair, {}).update(dict.fromkeys(edge.shapes))
    group.edges = [Edge(s, t, tuple(shapes)) for (s, t), shapes in sorted(inner.items())]
    group.phrase = phrase(list(group.all_ops()))
    return group


def _collapse(node: Node, run: _Run) -> None:
    """Put one box in the place of a run and join the edges again."""

    def place(index: int) -> int:
        if index < run.start:
            return index
        return run.start if index < run.end else index - run.period * run.copies + 1

    edges: dict[tuple[int, int], dict[str, None]] = {}
    for edge in node.edges:
        source, target = place(edge.source), place(edge.target)
        if source != target:
            edges.setdefault((source, target), {}).update(dict.fromkeys(edge.shapes))
    merged = _merged(node, run)
    node.children[run.start : run.end] = [merged]
    node.edges = [Edge(s, t, tuple(shapes)) for (s, t), shapes in sorted(edges.items())]


def merge_repeats(node: Node) -> None:
    """Merge equal neighbours among a node's children, in place, until none are left.

    Args:
        node: a node whose children stand in the order of the dataflow and are merged themselves.
    """
    while (run := _best_run(node)) is not None:
        _collapse(node, run)
