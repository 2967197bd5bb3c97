"""The picture as one still SVG with its own background: the same bytes for the same program."""

from __future__ import annotations

import html
import re

from jgraph.graph._picture._layout import GAP, HEADER, LANE, TURN, Box, layout
from jgraph.graph._picture._node import GRADIENTS, TOP
from jgraph.graph._picture._theme import HEAT, Pixels, fit, heat, heat_labels, text_width
from jgraph.graph._picture._view import Line, View, heat_scale, summary
from jgraph.graph._picture._words import percent

_MARGIN = 36.0
_TITLE = 92.0
_LEAST_WIDTH = 560.0
# XML has no way to write these down, not even as references.
_UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_STYLE = """
text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Arial,sans-serif;
fill:#1f252d}
.m{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.s{fill:#5d6673}.h{fill:#2f3742}.x{fill:#3d63b5}.e{fill:none;stroke:#8a94a3;stroke-width:1.2}
.k{fill:none;stroke:#3d63b5;stroke-width:1.6}.f{fill:#f6f7f9;stroke:#c5ccd6}.g{stroke:#c0ab94}
.d{stroke:#7f9c77;stroke-dasharray:5 4}
.t{fill:#e7edf7;stroke:#9db1d6}.u{fill:#eef3ec;stroke:#a9bfa2}
""".strip().replace("\n", "")


def escape(text: str) -> str:
    """Return `text` for XML, between tags or inside a quoted attribute."""
    return html.escape(_UNWRITABLE.sub("\ufffd", text))


def _number(value: Pixels) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(x: Pixels, y: Pixels, size: Pixels, words: str, css: str = "", **extra: str) -> str:
    attributes = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in extra.items())
    named = f' class="{css}"' if css else ""
    place = f'x="{_number(x)}" y="{_number(y)}" font-size="{_number(size)}"'
    return f"<text {place}{named}{attributes}>{escape(words)}</text>"


def _name(x: Pixels, y: Pixels, title: str, copies: int) -> str:
    times = f'<tspan dx="7" class="x">×{copies}</tspan>' if copies > 1 else ""
    place = f'x="{_number(x)}" y="{_number(y)}" font-size="13" font-weight="650"'
    return f"<text {place}>{escape(title)}{times}</text>"


def _rect(box: Box, css: str, radius: Pixels, offset: float = 0.0, **extra: str) -> str:
    attributes = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in extra.items())
    return (
        f'<rect x="{_number(box.left + offset)}" y="{_number(box.top + offset)}" '
        f'width="{_number(box.width)}" height="{_number(box.height)}" rx="{_number(radius)}" '
        f'class="{css}"{attributes}/>'
    )


class _Painter:
    """Paints boxes from the outside in, so that arrows lie under what they pass."""

    def __init__(self, hottest: float) -> None:
        self.hottest = hottest
        self.parts: list[str] = []

    def children(self, box: Box) -> None:
        for line in box.view.lines:
            self._line(box, line)
        self._labels(box)
        for child in box.children:
            self.box(child)

    def box(self, box: Box) -> None:
        node = box.view.node
        for copy in (2, 1) if node.copies > 1 else ():
            self.parts.append(_rect(box, "f", 7, 3.0 * copy))
        self.parts.append(f"<g><title>{escape(_tooltip(box.view))}</title>")
        if box.children:
            self._frame(box)
        elif node.kind in ("input", "output"):
            self._end(box)
        elif node.kind == "ops":
            self._chip(box)
        else:
            self._module(box)
        self.parts.append("</g>")
        if box.children:
            self.children(box)

    def _frame(self, box: Box) -> None:
        view, y = box.view, box.top + 21
        self.parts.append(_rect(box, "f", 9))
        self.parts.append(_name(box.left + 14, y, view.node.title, view.node.copies))
        facts = " · ".join(w for w in (view.facts, view.badge, percent(view.share)) if w)
        self.parts.append(_text(box.left + box.width - 14, y, 10.5, facts, "s", text_anchor="end"))

    def _end(self, box: Box) -> None:
        node, y = box.view.node, box.top + 17
        self.parts.append(_rect(box, "t", 13))
        self.parts.append(_text(box.left + 16, y, 12, node.name, font_weight="650"))
        x = box.left + box.width - 16
        self.parts.append(_text(x, y, 10.5, node.phrase, "m s", text_anchor="end"))

    def _chip(self, box: Box) -> None:
        view = box.view
        self.parts.append(_rect(box, "g", 13, fill=heat(view.share, self.hottest)))
        words = fit(view.node.phrase, box.width - 20, 11.5)
        x, y = box.left + box.width / 2, box.top + 17
        self.parts.append(_text(x, y, 11.5, words, text_anchor="middle"))

    def _module(self, box: Box) -> None:
        view, node = box.view, box.view.node
        if node.kind == "update":
            self.parts.append(_rect(box, "u", 7))
        else:
            self.parts.append(_rect(box, "g", 7, fill=heat(view.share, self.hottest)))
        left, right = box.left + 12, box.left + box.width - 12
        share = percent(view.share)
        times = text_width(f"×{node.copies}", 14) + 8 if node.copies > 1 else 0.0
        title = fit(node.title, box.width - 34 - text_width(share, 11) - times, 14)
        self.parts.append(_name(left, box.top + 20, title, node.copies))
        self.parts.append(_text(right, box.top + 20, 11, share, text_anchor="end"))
        words = fit(node.phrase or inside(view), box.width - 24, 11)
        self.parts.append(_text(left, box.top + 36, 11, words, "h"))
        self._footer(box, left, right)

    def _footer(self, box: Box, left: float, right: float) -> None:
        view = box.view
        is_leaf = not view.children and view.node.kind != "update"
        source = view.source[0] if view.source and box.width > 200 and is_leaf else ""
        room = box.width - 24 - (text_width(source, 9.5, mono=True) + 8 if source else 0)
        words = [*view.facts.split(" · "), view.badge]
        while len(words) > 1 and text_width(" · ".join(words), 10) > room:
            words.pop()
        facts = fit(" · ".join(word for word in words if word), room, 10)
        self.parts.append(_text(left, box.top + 52, 10, facts, "h"))
        if source:
            self.parts.append(_text(right, box.top + 52, 9.5, source, "m h", text_anchor="end"))

    def _ends_of(self, box: Box, line: Line) -> tuple[tuple[float, float], tuple[float, float]]:
        start = (box.axis_x, box.top + HEADER)
        stop = (box.axis_x, box.bottom)
        if line.source != TOP:
            source = box.children[line.source]
            start = (source.axis_x, source.bottom)
        if line.target < len(box.children):
            target = box.children[line.target]
            stop = (target.axis_x, target.top)
        return start, stop

    def _line(self, box: Box, line: Line) -> None:
        (x, y), (to_x, to_y) = self._ends_of(box, line)
        arrow = ' marker-end="url(#a)"' if line.target < len(box.children) else ""
        is_gradient = line.shapes == (GRADIENTS,)
        if is_gradient:
            words = _text(to_x - 8, to_y - 9, 9.8, GRADIENTS, "m s", text_anchor="end")
            self.parts.append(words)
        if line.lane is None:
            if abs(x - to_x) < 0.5:
                path = f"M{_number(x)} {_number(y)}V{_number(to_y)}"
            else:
                middle = _number((y + to_y) / 2)
                path = (
                    f"M{_number(x)} {_number(y)}C{_number(x)} {middle} {_number(to_x)} {middle} "
                    f"{_number(to_x)} {_number(to_y)}"
                )
            self.parts.append(f'<path class="e{" d" * is_gradient}" d="{path}"{arrow}/>')
            return
        lane = box.left + box.lane + LANE * line.lane
        start = y + (4.0 if line.source == TOP else 6.0 + TURN * min(line.turn, 2))
        end_x, end_y = to_x, to_y - 7
        if line.target < len(box.children):
            target = box.children[line.target]
            end_x, end_y = target.left + target.width, target.top + target.height / 2
            arrow = ' marker-end="url(#c)"'
        path = _round(((x, y), start, lane, (end_x, end_y)))
        shapes = escape(", ".join(line.shapes))
        self.parts.append(f'<path class="k" d="{path}"{arrow}><title>{shapes}</title></path>')

    def _labels(self, box: Box) -> None:
        """Write the type of what flows beside each arrow's beginning."""
        last = len(box.children)
        has_line = {line.source for line in box.view.lines if line.target < last}
        for i, child in enumerate(box.children):
            if i not in has_line or child.view.node.kind == "input":
                continue
            straight = (e.target for e in box.view.lines if e.source == i and e.lane is None)
            ways = [box.children[t].axis_x - child.axis_x for t in straight if t < last]
            right, left = max(ways, default=0) > 0.5, min(ways, default=0) < -0.5
            # Beside the line, where no curve crosses it: between two, below them.
            anchor = "middle" if right and left else "end" if right else "start"
            x = child.axis_x + {"start": 7, "middle": 0, "end": -7}[anchor]
            y = child.bottom + GAP - (4 if anchor == "middle" else 12)
            words = _text(x, y, 9.8, child.view.shape, "m s", text_anchor=anchor)
            self.parts.append(words)


def inside(view: View) -> str:
    """Return what a closed box holds: its parts, in order."""
    parts = [(child.node.title or child.node.phrase, child.node.copies) for child in view.children]
    return " → ".join(f"{name} ×{copies}" if copies > 1 else name for name, copies in parts)


def _tooltip(view: View) -> str:
    node = view.node
    words = [".".join(node.scope) or node.title, node.phrase, view.facts, view.badge, view.shape]
    if view.source:
        words.append(view.source[0])
    return "\n".join(word for word in words if word)


def _legend(right: Pixels, y: Pixels, hottest: float) -> str:
    left = right - 150
    stops = "".join(
        f'<stop offset="{(i / (len(HEAT) - 1)) ** 2:.4f}" stop-color="{color}"/>'
        for i, color in enumerate(HEAT)
    )
    low, _, high = heat_labels(hottest)
    return (
        f'<defs><linearGradient id="h">{stops}</linearGradient></defs>'
        f'<rect x="{_number(left)}" y="{_number(y)}" width="150" height="9" rx="2" '
        f'fill="url(#h)" stroke="#c5ccd6" stroke-width=".8"/>'
        + _text(left, y + 22, 10, low, "s")
        + _text(left + 75, y + 22, 10, "share of FLOPs", "s", text_anchor="middle")
        + _text(right, y + 22, 10, high, "s", text_anchor="end")
    )


def _round(way: tuple[tuple[float, float], float, float, tuple[float, float]]) -> str:
    """Return the path from a point down to a height, round a lane and to another point."""
    (x, y), start, lane, (end_x, end_y) = way
    turn, near, first = _number(lane), _number(lane - 9), _number(start)
    return (
        f"M{_number(x)} {_number(y)}V{first}H{near}Q{turn} {first} {turn} {_number(start + 9)}"
        f"V{_number(end_y - 9)}Q{turn} {_number(end_y)} {near} {_number(end_y)}H{_number(end_x)}"
    )


_MARKERS = (
    '<defs><marker id="a" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" '
    'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 .6L8 4L0 7.4z" fill="#8a94a3"/>'
    '</marker><marker id="c" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" '
    'markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
    '<path d="M0 .6L8 4L0 7.4z" fill="#3d63b5"/></marker></defs>'
)


def svg(root: View, title: str) -> str:
    """Return the picture of a tree.

    Args:
        root: the tree's view.
        title: written above it.

    Returns:
        An SVG document.
    """
    box, hottest = layout(root), heat_scale(root)
    words = summary(root)
    needed = 2 * _MARGIN + 170 + text_width(words, 11.5)
    width = max(_LEAST_WIDTH, box.width + 2 * _MARGIN, text_width(title, 20) + 260, needed)
    height = box.height + _TITLE + _MARGIN
    dx = (width - box.width) / 2
    painter = _Painter(hottest)
    painter.children(box)
    size = f'width="{_number(width)}" height="{_number(height)}"'
    view_box = f'viewBox="0 0 {_number(width)} {_number(height)}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view_box} role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>{_MARKERS}",
        f'<rect {size} fill="#fcfcfb"/>',
        _text(_MARGIN, 42, 20, title, font_weight="650"),
        _text(_MARGIN, 61, 11.5, words, "s"),
        _legend(width - _MARGIN, 32, hottest),
        f'<g transform="translate({_number(dx)} {_number(_TITLE)})">',
        *painter.parts,
        "</g></svg>\n",
    ]
    return "\n".join(parts)
