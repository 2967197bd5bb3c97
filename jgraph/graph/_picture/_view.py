"""What is shown of a tree, before it has a size: rows, lanes, shares, details, what is open."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from jgraph.graph._picture._node import GRADIENTS, TOP, Edge, Node
from jgraph.graph._picture._words import arrays, op_word, percent, si

_MOST_DETAILS = 30


@dataclasses.dataclass(frozen=True)
class Line:
    """An edge as it is drawn.

    Args:
        source: index of the child it leaves; TOP for the node's input.
        target: index of the child it enters; the number of children for the node's output.
        shapes: types of the arrays.
        lane: None straight to the next row; else which lane beside the column, from 0.
        turn: how many lines turn to their lanes above this one, below the same row of boxes.
    """

    source: int
    target: int
    shapes: tuple[str, ...]
    lane: int | None
    turn: int = 0


@dataclasses.dataclass
class View:
    """A box with everything that is written in it.

    Args:
        node: what it shows.
        children: the boxes inside.
        rows: the children's indices, row by row.
        lines: the edges inside.
        lanes: how many lanes the edges need beside the column.
        copies: how many copies it stands for, with those of the boxes around it.
        flops: of all copies, also those of the boxes around it.
        share: of the whole program, 0 to 1.
        shape: type of what it makes.
        is_open: whether its inside is shown at first.
    """

    node: Node
    children: list[View]
    rows: list[list[int]]
    lines: list[Line]
    lanes: int
    copies: int
    flops: int
    share: float
    shape: str = ""
    is_open: bool = False

    @property
    def source(self) -> tuple[str, str] | None:
        """Short and full place of the first line of the user's own that made it."""
        for op in self.node.all_ops():
            if op.source and op.source_path:
                return op.source, op.source_path
        return None

    @property
    def facts(self) -> str:
        """Cost and parameters of all copies in one line."""
        found = [si(self.flops, "FLOP") if self.flops else "", self.params]
        return " · ".join(word for word in found if word)

    @property
    def params(self) -> str:
        """The arrays of all copies and their elements."""
        count, elements = self.node.params
        return arrays(count * self.copies, elements * self.copies)

    @property
    def badge(self) -> str:
        """How dear its backward pass is: "backward 2.0×"; nothing without one."""
        node = self.node
        if not node.backward or not node.forward or node.kind == "update":
            return ""
        ratio = node.backward / node.forward
        return f"backward {ratio:.0f}×" if ratio >= 9.95 else f"backward {ratio:.1f}×"

    def walk_open(self) -> list[View]:
        """Return the boxes that are shown at first, this one included."""
        found: list[View] = [self]
        if self.is_open:
            for child in self.children:
                found += child.walk_open()
        return found

    def details(self) -> list[tuple[str, str, str, str]]:
        """Return its operations as (words, type, FLOPs, source), equal ones in one row."""
        counted: defaultdict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
        last_call: int | None = None
        for op in self.node.all_ops():
            is_same_call = op.call is not None and op.call == last_call
            last_call = op.call
            shape = op.outputs[0] if op.outputs else ""
            entry = counted[op_word(op), shape, op.source_path or ""]
            entry[0] += not is_same_call
            entry[1] += op.total_flops
        rows = [
            (f"{word} ×{n}" if n > 1 else word, shape, si(cost) if cost else "", source)
            for (word, shape, source), (n, cost) in counted.items()
        ]
        if len(rows) > _MOST_DETAILS:
            more = len(rows) - _MOST_DETAILS
            rows = [*rows[:_MOST_DETAILS], (f"… {more} more", "", "", "")]
        return rows


def view_of(root: Node, limit: int = 26) -> View:
    """Return how a tree is shown.

    Args:
        root: the tree.
        limit: at most so many boxes are shown at first; modules are opened, the outermost and
            dearest first, while they fit.

    Returns:
        The root's view.
    """
    view = _view(root, max(1, root.flops), 1)
    _open(view, limit)
    return view


def _view(node: Node, total: int, around: int) -> View:
    copies = around * node.copies
    flops = (node.forward + node.backward) * copies
    children = [_view(child, total, copies) for child in node.children]
    if not node.is_expandable:
        children = []
    rows = _rows(node) if children else []
    lines, lanes = _lines(node, rows) if children else ([], 0)
    for i, child in enumerate(children):
        shapes = dict.fromkeys(s for e in node.edges if e.source == i for s in e.shapes)
        shapes.pop(GRADIENTS, None)
        child.shape = _few(list(shapes))
    return View(node, children, rows, lines, lanes, copies, flops, flops / total)


def _few(shapes: list[str]) -> str:
    if len(shapes) < 2:
        return "".join(shapes)
    return f"{shapes[0]} +{len(shapes) - 1}"


def _rows(node: Node) -> list[list[int]]:
    """Put each child a row below the last it reads from; what reads nothing, as low as it can."""
    count = len(node.children)
    level = [0] * count
    for edge in sorted(node.edges, key=lambda e: e.target):
        if edge.target < count and edge.source != TOP:
            level[edge.target] = max(level[edge.target], level[edge.source] + 1)
    fed = {edge.target for edge in node.edges}
    for i in range(count):
        readers = [level[e.target] for e in node.edges if e.source == i and e.target < count]
        if i not in fed and readers:
            level[i] = max(0, min(readers) - 1)
    rows: list[list[int]] = [[] for _ in range(max(level) + 1)]
    for i, row in enumerate(level):
        rows[row].append(i)
    return [row for row in rows if row]


def _free_lane(lanes: list[list[tuple[int, int]]], top: int, bottom: int) -> int:
    """Return the first lane nothing runs in between two rows, and mark it as taken."""
    for number, taken in enumerate(lanes):
        if all(b <= top or a >= bottom for a, b in taken):
            taken.append((top, bottom))
            return number
    lanes.append([(top, bottom)])
    return len(lanes) - 1


def _lines(node: Node, rows: list[list[int]]) -> tuple[list[Line], int]:
    """Send each edge straight down, or round what it skips, through a lane that is free."""
    level = {i: row for row, members in enumerate(rows) for i in members}
    level[TOP], level[len(node.children)] = -1, len(rows)
    lanes: list[list[tuple[int, int]]] = []
    lines: list[Line] = []

    def span(edge: Edge) -> tuple[int, int]:
        return level[edge.source], level[edge.target]

    for edge in sorted(node.edges, key=lambda e: (span(e)[1] - span(e)[0], e.source, e.target)):
        top, bottom = span(edge)
        lane = None
        if bottom - top > 1:
            lane = _free_lane(lanes, top, bottom)
        lines.append(Line(edge.source, edge.target, edge.shapes, lane))
    turns = _turns(node, rows, {line.source for line in lines if line.lane is not None})
    lines = [dataclasses.replace(line, turn=turns.get(line.source, 0)) for line in lines]
    return lines, len(lanes)


def _turns(node: Node, rows: list[list[int]], sources: set[int]) -> dict[int, int]:
    """Return where lines turn to their lanes: the rightmost first, which the others pass below."""
    turns: dict[int, int] = {}
    for row in rows:
        from_left = sorted(row, key=lambda i: node.children[i].kind != "input")
        turning = [i for i in reversed(from_left) if i in sources]
        turns |= {i: turn for turn, i in enumerate(turning)}
    return turns


def _open(root: View, limit: int) -> None:
    """Open the root, then level by level what fits; of a level too large, the dearest."""
    root.is_open = True
    shown = len(root.children)
    level = [child for child in root.children if child.children]
    while level:
        cost = sum(len(view.children) for view in level)
        if shown + cost <= limit:
            chosen = level
        else:
            chosen = [max(level, key=lambda view: view.flops)]
            if shown + len(chosen[0].children) > limit and shown > 3:
                return
        for view in chosen:
            view.is_open = True
            shown += len(view.children)
        level = [c for view in chosen for c in view.children if c.children]


def heat_scale(root: View) -> float:
    """Return the share that is drawn hottest: the largest of the boxes shown at first."""
    shares = [view.share for view in root.walk_open() if not view.is_open]
    return max([*shares, 1e-9])


def counted_as_one(root: View) -> list[str]:
    """Return a remark on sizes that have no number; none where all have one."""
    symbols = root.node.symbols
    return [f"for {' = '.join(symbols)} = 1"] if symbols else []


def summary(root: View) -> str:
    """Return the whole program in one line."""
    node = root.node
    words = [" ".join((si(root.flops, "FLOP"), *counted_as_one(root)))]
    count, elements = node.params
    if count:
        words.append(f"{si(elements)} parameters")
    if node.backward:
        update = sum(child.forward for child in node.children if child.kind == "update")
        forward = max(1, node.forward - update)
        words.append(
            f"forward {percent(forward / max(1, root.flops))}, "
            f"backward {percent(node.backward / max(1, root.flops))}, "
            f"update {percent(update / max(1, root.flops))}"
        )
    return " · ".join(words)
