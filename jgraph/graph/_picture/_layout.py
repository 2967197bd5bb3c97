"""Where everything stands in a still picture, in pixels."""

from __future__ import annotations

import dataclasses

from jgraph.graph._picture._theme import text_width
from jgraph.graph._picture._view import View

GAP = 34.0  # between rows: an arrow and the type of what flows
HEADER = 32.0
_PADDING = 16.0
_BESIDE = 18.0  # between boxes of a row
LANE = 13.0
TURN = 4.0  # between lines that turn to their lanes
_WIDTH = 272.0
_NARROW_WIDTH = 176.0


@dataclasses.dataclass
class Box:
    """A view with its size and place.

    Args:
        view: what it shows.
        width: its width.
        height: its height.
        axis: where arrows meet it, from its left edge.
        children: the boxes inside; none where it is closed.
        left: its left edge, once placed.
        top: its top edge, once placed.
        lane: where its first lane runs, from its left edge.
    """

    view: View
    width: float
    height: float
    axis: float
    children: list[Box] = dataclasses.field(default_factory=list)
    left: float = 0.0
    top: float = 0.0
    lane: float = 0.0

    @property
    def axis_x(self) -> float:
        """Where arrows meet it."""
        return self.left + self.axis

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.top + self.height


@dataclasses.dataclass
class _Row:
    """The boxes of one row, beside each other; inputs stand at the left of the axis."""

    boxes: list[Box]

    def __post_init__(self) -> None:
        ends = [box for box in self.boxes if box.view.node.kind == "input"]
        others = [box for box in self.boxes if box not in ends]
        self.boxes = [*ends, *others] if others else ends
        middle = others or ends
        before = sum(box.width + _BESIDE for box in ends) if others else 0.0
        if len(middle) == 1:
            self.left = before + middle[0].axis
        else:
            self.left = before + (sum(b.width for b in middle) + _BESIDE * (len(middle) - 1)) / 2
        whole = sum(box.width for box in self.boxes) + _BESIDE * (len(self.boxes) - 1)
        self.right = whole - self.left
        self.height = max(box.height for box in self.boxes)


def layout(root: View) -> Box:
    """Return the placed box of a view, its upper left corner at (0, 0)."""
    box = _measure(root, is_alone=True, header=0.0)
    _place(box, 0.0, 0.0, 0.0)
    return box


def _closed(view: View, is_alone: bool) -> Box:
    node = view.node
    if node.kind in ("input", "output"):
        words = text_width(node.name, 12) + text_width(node.phrase, 10.5, mono=True)
        width, height = words + 44, 26.0
    elif node.kind == "ops":
        room = _WIDTH if is_alone else _NARROW_WIDTH
        width, height = min(room, text_width(node.phrase, 11.5) + 30), 26.0
    else:
        width, height = (_WIDTH if is_alone else _NARROW_WIDTH), 62.0
    return Box(view, width, height, width / 2)


def _measure(view: View, *, is_alone: bool, header: float = HEADER) -> Box:
    if not view.is_open or not view.children:
        return _closed(view, is_alone)
    boxes: list[Box] = []
    in_row = {i: row for row in view.rows for i in row}
    for i, child in enumerate(view.children):
        mates = [m for m in in_row[i] if view.children[m].node.kind != "input"]
        boxes.append(_measure(child, is_alone=len(mates) <= 1))
    rows = [_Row([boxes[i] for i in row]) for row in view.rows]
    left, right = max(row.left for row in rows), max(row.right for row in rows)
    lanes = view.lanes * LANE + 6 if view.lanes else 0.0
    has_frame = header > 0
    padding = _PADDING if has_frame else 0.0
    stubs = 2 * 22.0 if has_frame else 0.0
    width = left + right + lanes + 2 * padding
    height = header + stubs + sum(row.height for row in rows) + GAP * (len(rows) - 1)
    axis = padding + left
    if has_frame:  # the header's words need room
        room = text_width(view.node.title, 13) + text_width(view.facts + view.badge, 10.5) + 170
        axis += max(0.0, room - width) / 2
        width = max(width, room)
    return Box(view, width, height, axis, boxes, lane=axis + right + 10)


def _place(box: Box, left: float, top: float, header: float) -> None:
    box.left, box.top = left, top
    if not box.children:
        return
    y = top + header + (22.0 if header else 0.0)
    for members in box.view.rows:
        row = _Row([box.children[i] for i in members])
        x = box.axis_x - row.left
        for child in row.boxes:
            # Boxes stand on the row's middle line; an input close to what reads it.
            is_end = child.view.node.kind == "input"
            _place(child, x, y + (row.height - child.height) / (1 if is_end else 2), HEADER)
            x += child.width + _BESIDE
        y += row.height + GAP
