"""Charts as inline SVG text: coloured by the page's style sheet, readable without scripts."""

from __future__ import annotations

import dataclasses
import html
import math
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

# HTML has no way to write these down, not even as references.
_UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")

# The plot inside a line chart, in SVG units; the right margin holds the direct labels.
_WIDTH, _HEIGHT = 420, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 346, 14, 196
_LABEL_GAP = 30  # a direct label has two lines of 14

_DECADES_BEFORE_LOG = 2.0
_MARKED_POINTS = 30  # up to so many points each gets a dot

_MATRIX_SIDE = 680  # the cells together, before their size is bounded
_CELL_BOUNDS = (17.0, 56.0)
_NAME_WIDTH = 20.0  # a class name in the matrix, in latin letters


def escape(text: str) -> str:
    """Return `text` for HTML or SVG, between tags or inside a quoted attribute.

    Undecodable parts of file names become visible escapes, control characters U+FFFD.

    Example:
        >>> escape('<b class="x">')
        '&lt;b class=&quot;x&quot;&gt;'
    """
    encodable = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return html.escape(_UNWRITABLE.sub("\ufffd", encodable))


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        name: written at the line's end.
        css_class: "training" or "held-out", as the style sheet colours them.
        points: (x, y), sorted by x; those not finite are left out.
    """

    name: str
    css_class: str
    points: tuple[tuple[int, float], ...]

    @property
    def finite(self) -> tuple[tuple[float, float], ...]:
        """The points that can be drawn."""
        return tuple((float(x), y) for x, y in self.points if math.isfinite(y))


@dataclasses.dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def part(self, value: float) -> float:
        """Return where `value` lies on the axis, 0 to 1."""
        if self.log:
            # Zero has no logarithm: it is drawn at the axis' lower end.
            value = math.log10(max(value, 10**self.low))
        span = self.high - self.low
        return min(max((value - self.low) / span, 0.0), 1.0) if span else 0.5


def line_chart(
    title: str, x_name: str, series: Sequence[Series], *, proportion: bool = False
) -> str:
    """Return a line chart as SVG, each line labelled at its end with its last value.

    Args:
        title: what y is; read out to who cannot see the chart.
        x_name: what x counts.
        series: the lines; those without a finite point are left out.
        proportion: y lies in 0 to 1 and is never drawn on a logarithmic axis.

    Returns:
        An `<svg>` element; a short paragraph instead where there is nothing to draw.
    """
    drawn = [line for line in series if line.finite]
    if not drawn:
        return '<p class="empty">No finite value was recorded.</p>'
    values = [y for line in drawn for _, y in line.finite]
    x_axis = _x_axis([int(x) for line in drawn for x, _ in line.finite])
    y_axis = _proportion_axis(values) if proportion else _loss_axis(values)
    ends = "; ".join(
        f"{line.name} from {_figure(line.finite[0][1], proportion)} "
        f"to {_figure(line.finite[-1][1], proportion)}"
        for line in drawn
    )
    label = f"{title} by {x_name}: {ends}"
    return "".join(
        [
            f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" ',
            f'aria-label="{escape(label)}">',
            _grid(x_axis, y_axis, x_name),
            *(_line(line, x_axis, y_axis) for line in drawn),
            _end_labels(drawn, x_axis, y_axis, proportion),
            "</svg>",
        ]
    )


def confusion_matrix(
    class_names: Sequence[str], counts: Int[np.ndarray, "k k"], totals: Int[np.ndarray, " k"]
) -> str:
    """Return a confusion matrix as SVG: rows are true classes, columns predicted ones.

    A cell's shade is the square root of its part of the row, so that one mistake in a hundred can
    still be seen; the diagonal has another colour than the mistakes.

    Args:
        class_names: K names.
        counts: how often class i (row) was called class j (column), int `[K, K]`.
        totals: pictures of each class, int `[K]`; more than the row's sum where columns were
            left out.

    Returns:
        An `<svg>` element.
    """
    k = len(class_names)
    low, high = _CELL_BOUNDS
    cell = min(max(_MATRIX_SIDE / k, low), high)
    names = [_shorten(name, _NAME_WIDTH) for name in class_names]
    longest = max(_text_width(name) for name in names) * 6.6
    level = longest < cell - 4
    left = longest + 30
    top = 44.0 if level else longest * 0.71 + 36
    side = cell * k
    width, height = left + side + (8 if level else longest * 0.71 + 8), top + side + 8
    correct, count = int(counts.diagonal().sum()), int(totals.sum())
    label = f"Confusion matrix of {k} classes: {correct} of {count} pictures on the diagonal"
    return "".join(
        [
            f'<svg class="matrix" viewBox="0 0 {width:.1f} {height:.1f}" width="{width:.0f}" ',
            f'height="{height:.0f}" role="img" aria-label="{escape(label)}">',
            f'<rect class="ground" x="{left:.1f}" y="{top:.1f}" width="{side:.1f}" '
            f'height="{side:.1f}"/>',
            _cells(class_names, counts, totals, cell, left, top),
            _rulings(k, cell, left, top),
            _matrix_names(names, cell, left, top, level),
            f'<text class="axis-name" text-anchor="middle" x="{left + side / 2:.1f}" y="12">'
            "predicted</text>",
            f'<text class="axis-name" text-anchor="middle" '
            f'transform="translate(12 {top + side / 2:.1f}) rotate(-90)">true</text>',
            "</svg>",
        ]
    )


def _x_axis(values: Sequence[int]) -> _Axis:
    low, high = min(values), max(values)
    step = max(1, math.ceil(_nice_step((high - low) / 5))) if high > low else 1
    first = math.ceil(low / step) * step
    ticks = tuple(float(tick) for tick in range(first, high + 1, step))
    return _Axis(float(low), float(high), ticks)


def _proportion_axis(values: Sequence[float]) -> _Axis:
    # Never closer than a tenth: a wobble of one picture must not look like a cliff.
    low = min(min(values), 0.9)
    step = _nice_step((1 - low) / 4)
    first = max(0, math.floor(round(low / step, 9)))
    ticks = tuple(i * step for i in range(first, round(1 / step) + 1))
    return _Axis(ticks[0], 1.0, ticks)


def _loss_axis(values: Sequence[float]) -> _Axis:
    positive = [value for value in values if value > 0]
    if positive and math.log10(max(positive) / min(positive)) > _DECADES_BEFORE_LOG:
        low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
        every = math.ceil((high - low) / 5)
        high = low + math.ceil((high - low) / every) * every  # so that a tick is at the top
        ticks = tuple(10.0**i for i in range(low, high + 1, every))
        return _Axis(float(low), float(high), ticks, log=True)
    low, high = min(values), max(values)
    # From zero, unless the lines would be flat against the top.
    low = min(low, 0.0) if low < 0.5 * high else low
    step = _nice_step((high - low) / 4 or abs(high) / 4 or 1.0)
    first, last = math.floor(round(low / step, 9)), math.ceil(round(high / step, 9))
    ticks = tuple(i * step for i in range(first, max(last, first + 1) + 1))
    return _Axis(ticks[0], ticks[-1], ticks)


def _nice_step(step: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is at least `step`."""
    unit = 10.0 ** math.floor(math.log10(step))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= step * (1 - 1e-9))


def _x(axis: _Axis, value: float) -> float:
    return _LEFT + axis.part(value) * (_RIGHT - _LEFT)


def _y(axis: _Axis, value: float) -> float:
    return _BOTTOM - axis.part(value) * (_BOTTOM - _TOP)


def _grid(x_axis: _Axis, y_axis: _Axis, x_name: str) -> str:
    parts = []
    for tick in y_axis.ticks:
        y = _y(y_axis, tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(f'<text text-anchor="end" x="{_LEFT - 8}" y="{y + 4:.1f}">{tick:.6g}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>')
    for tick in x_axis.ticks:
        x = _x(x_axis, tick)
        parts.append(f'<path class="axis" d="M{x:.1f} {_BOTTOM}v5"/>')
        parts.append(f'<text text-anchor="middle" x="{x:.1f}" y="{_BOTTOM + 18}">{tick:.0f}</text>')
    middle = (_LEFT + _RIGHT) / 2
    parts.append(
        f'<text class="axis-name" text-anchor="middle" x="{middle:.1f}" y="{_HEIGHT - 6}">'
        f"{escape(x_name)}</text>"
    )
    return "".join(parts)


def _line(line: Series, x_axis: _Axis, y_axis: _Axis) -> str:
    places = [(_x(x_axis, x), _y(y_axis, y)) for x, y in line.finite]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    marked = places if len(places) <= _MARKED_POINTS else places[-1:]
    dots = "".join(
        f'<circle class="{line.css_class}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in marked
    )
    return f'<path class="line {line.css_class}" d="{path}"/>{dots}'


def _end_labels(lines: Sequence[Series], x_axis: _Axis, y_axis: _Axis, proportion: bool) -> str:
    wanted = sorted((_y(y_axis, line.finite[-1][1]), i) for i, line in enumerate(lines))
    # Pushed apart downwards, then back up where the last one left the plot.
    places: list[float] = []
    for y, _ in wanted:
        places.append(max(y, places[-1] + _LABEL_GAP) if places else max(y, _TOP + 4.0))
    limit = _BOTTOM - 8.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit)
        limit = places[i] - _LABEL_GAP
    parts = []
    for y, (_, i) in zip(places, wanted, strict=True):
        line = lines[i]
        x_end, y_end = line.finite[-1]
        x = _x(x_axis, x_end) + 9
        parts.append(
            f'<text class="end {line.css_class}" x="{x:.1f}" y="{y - 2:.1f}">{escape(line.name)}'
            f'<tspan class="value" x="{x:.1f}" dy="13">{_figure(y_end, proportion)}</tspan></text>'
        )
    return "".join(parts)


def _figure(value: float, proportion: bool) -> str:
    return f"{value:.3f}" if proportion else f"{value:.3g}"


def _cells(
    class_names: Sequence[str],
    counts: Int[np.ndarray, "k k"],
    totals: Int[np.ndarray, " k"],
    cell: float,
    left: float,
    top: float,
) -> str:
    size = min(15.0, cell * 0.52)
    parts = [f'<g class="counts" font-size="{size:.1f}">']
    for i, j in np.argwhere(counts).tolist():
        count, total = int(counts[i, j]), int(totals[i])
        x, y = left + j * cell, top + i * cell
        kind = "right" if i == j else "wrong"
        # The ink stays the page's own, so no cell is darker than this allows.
        shade = 0.5 * math.sqrt(count / total)
        title = f"{class_names[i]} called {class_names[j]}: {count} of {total}"
        parts.append(
            f'<g><title>{escape(title)}</title><rect class="{kind}" x="{x:.1f}" y="{y:.1f}" '
            f'width="{cell:.1f}" height="{cell:.1f}" fill-opacity="{shade:.3f}"/>'
        )
        if len(str(count)) * size * 0.64 < cell:
            parts.append(
                f'<text text-anchor="middle" x="{x + cell / 2:.1f}" '
                f'y="{y + cell / 2 + size * 0.35:.1f}">{count}</text>'
            )
        parts.append("</g>")
    return "".join([*parts, "</g>"])


def _rulings(k: int, cell: float, left: float, top: float) -> str:
    side = cell * k
    rows = "".join(f"M{left:.1f} {top + i * cell:.1f}h{side:.1f}" for i in range(k + 1))
    columns = "".join(f"M{left + i * cell:.1f} {top:.1f}v{side:.1f}" for i in range(k + 1))
    return f'<path class="ruling" d="{rows}{columns}"/>'


def _matrix_names(names: Sequence[str], cell: float, left: float, top: float, level: bool) -> str:
    parts = []
    for i, name in enumerate(names):
        middle = (i + 0.5) * cell
        parts.append(
            f'<text text-anchor="end" x="{left - 7:.1f}" y="{top + middle + 4:.1f}">'
            f"{escape(name)}</text>"
        )
        place = f"translate({left + middle + (0 if level else 3):.1f} {top - 8:.1f})"
        turn = 'text-anchor="middle" ' if level else ""
        place += "" if level else " rotate(-45)"
        parts.append(f'<text {turn}transform="{place}">{escape(name)}</text>')
    return "".join(parts)


def _letter_width(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0.0
    return 1.8 if unicodedata.east_asian_width(letter) in "WF" else 1.0


def _text_width(text: str) -> float:
    """Return the width of `text` in latin letters."""
    return sum(_letter_width(letter) for letter in text)


def _shorten(text: str, width: float) -> str:
    """Return `text`, cut with an ellipsis where it is wider than `width` latin letters."""
    if _text_width(text) <= width:
        return text
    kept, used = "", 1.0
    for letter in text:
        used += _letter_width(letter)
        if used > width:
            break
        kept += letter
    return kept.rstrip() + "…"
