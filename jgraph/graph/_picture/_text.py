"""The picture as a table for a terminal."""

from __future__ import annotations

from jgraph.graph._picture._view import View, counted_as_one
from jgraph.graph._picture._words import percent, si

_Line = tuple[str, str, str, str, str, str]
_COLUMNS: _Line = ("module", "makes", "params", "FLOPs", "share", "source")
_LONGEST_NAME = 52


def table(root: View, depth: int | None = None) -> str:
    """Return the modules of a tree, one a line, indented.

    Args:
        root: the tree's view.
        depth: how many levels; None for all.

    Returns:
        Lines of equal columns: name, type made, parameters, FLOPs, share, source; the last is the
        total. Costs and parameters of merged modules are those of all copies.
    """
    rows: list[_Line] = [_COLUMNS]
    for child in root.children:
        rows += _rows(child, 0, depth)
    total = si(root.node.params[1]) if root.node.params[0] else ""
    name = ", ".join(("total", *counted_as_one(root)))
    rows.append((name, "", total, si(root.flops), percent(1.0 if root.flops else 0.0), ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(_cell(row[i], widths[i], i) for i in range(len(row))) for row in rows]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join(line.rstrip() for line in (lines[0], rule, *lines[1:-1], rule, lines[-1]))


def _cell(text: str, width: int, column: int) -> str:
    return text.rjust(width) if column in (2, 3, 4) else text.ljust(width)


def _rows(view: View, indent: int, depth: int | None) -> list[_Line]:
    if depth is not None and indent >= depth:
        return []
    node = view.node
    name = node.title or node.phrase
    if node.title and node.phrase and not view.children:
        name = f"{name}  {node.phrase}"
    if node.kind in ("input", "output"):
        name = f"{node.kind} {node.title}"
    times = f" ×{node.copies}" if node.copies > 1 else ""
    name = "  " * indent + name
    room = max(8, _LONGEST_NAME - len(times))
    name = (name if len(name) <= room else name[: room - 1] + "…") + times
    shape = node.phrase if node.kind in ("input", "output") else view.shape
    cost = si(view.flops) if view.flops else ""
    share = percent(view.share) if view.flops else ""
    params = si(node.params[1] * view.copies) if node.params[0] else ""
    found = [(name, shape, params, cost, share, view.source[0] if view.source else "")]
    for child in view.children:
        found += _rows(child, indent + 1, depth)
    return found
