"""The ends of a program's picture: its inputs, its outputs, and the update of a training step."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from jgraph.graph._picture._facts import Facts
from jgraph.graph._picture._group import Group
from jgraph.graph._picture._node import GRADIENTS, Edge, Node
from jgraph.graph._picture._words import phrase

_MOST_ENDS = 4  # more are drawn as one


class _End(NamedTuple):
    name: str
    shapes: tuple[str, ...]
    places: frozenset[int]  # which boxes it is joined to


def add_ends(facts: Facts, root: Node, groups: list[Group]) -> None:
    """Put inputs, the update and outputs beside the root's boxes, and join them.

    Args:
        facts: what is known of the program.
        root: the root, whose children are those of `groups`, before any are merged.
        groups: the groups of its operations.
    """
    home = {op.id: i for i, group in enumerate(groups) for op in group.ops}
    root.edges = [e for e in root.edges if e.source >= 0 and e.target < len(groups)]
    update = _add_update(facts, root) if facts.update else None
    if update is not None:
        home.update({op.id: update for op in facts.update})
    inputs, outputs = _inputs(facts, home), _outputs(facts, root, home)
    inner, count = root.children, len(inputs)
    edges = [Edge(e.source + count, e.target + count, e.shapes) for e in root.edges]
    root.children = [Node(end.name, "input", phrase=_shown(end)) for end in inputs]
    root.children += inner
    for i, end in enumerate(inputs):
        edges += [Edge(i, place + count, end.shapes) for place in sorted(end.places)]
    for end in outputs:
        edges += [Edge(p + count, len(root.children), end.shapes) for p in sorted(end.places)]
        root.children.append(Node(end.name, "output", phrase=_shown(end)))
    root.edges = sorted(edges, key=lambda e: (e.source, e.target))


def _shown(end: _End) -> str:
    return end.shapes[0] if len(end.shapes) == 1 else f"{len(end.shapes)} arrays"


def _add_update(facts: Facts, root: Node) -> int:
    """Add one box for everything computed from gradients; return its index."""
    scopes = {op.scope[0] for op in facts.update if op.scope}
    name = scopes.pop() if len(scopes) == 1 else "update"
    words = f"{phrase(facts.update)}" if len(facts.update) < 12 else "gradients → parameters"
    node = Node(name, "update", ops=facts.update, phrase=words, params=facts.update_params)
    node.forward = sum(op.total_flops for op in facts.update)
    index = len(root.children)
    last = max((i for i, c in enumerate(root.children) if c.kind == "loss"), default=index - 1)
    root.children.append(node)
    if last >= 0:
        root.edges.append(Edge(last, index, (GRADIENTS,)))
    return index


def _inputs(facts: Facts, home: dict[int, int]) -> list[_End]:
    used: defaultdict[int, set[int]] = defaultdict(set)
    for op in (*facts.forward, *facts.update):
        for i in facts.reads[op.id]:
            if i < 0 and op.id in home:
                used[-1 - i].add(home[op.id])
    ends = [
        _End(facts.inputs[k].name, (facts.program.inputs[k],), frozenset(used[k]))
        for k in sorted(used)
    ]
    return _few(ends, "inputs")


def _outputs(facts: Facts, root: Node, home: dict[int, int]) -> list[_End]:
    update = next((i for i, c in enumerate(root.children) if c.kind == "update"), None)
    ends: list[_End] = []
    gradients: list[str] = []
    for port, ids, shape in zip(
        facts.outputs, facts.program.results, facts.program.outputs, strict=True
    ):
        if port.is_state:
            continue
        places = frozenset(home[i] for i in facts.seen(ids) if i in home)
        if not places and any(i >= 0 for i in ids):
            gradients.append(shape)
        elif places:
            ends.append(_End(port.name, (shape,), places))
    ends = _few(ends, "outputs")
    if gradients:
        last = frozenset({len(root.children) - 1 if update is None else update})
        ends.append(_End(GRADIENTS, tuple(gradients), last))
    return ends


def _few(ends: list[_End], name: str) -> list[_End]:
    """Return at most a few ends: more of them become one."""
    if len(ends) <= _MOST_ENDS:
        return ends
    shapes = tuple(shape for end in ends for shape in end.shapes)
    return [_End(name, shapes, frozenset().union(*(end.places for end in ends)))]
