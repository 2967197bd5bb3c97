"""Colours, and how wide a text is: shared by the picture's formats."""

from __future__ import annotations

import math

from jgraph.graph._picture._words import percent

Pixels = float | int

# From paper to ember; the ink (6.1 : 1) and the small print (4.8 : 1) stay readable on the hottest.
HEAT = ("#ffffff", "#fdf0dc", "#fbd9ae", "#f6b57c", "#ec8a58")

_NARROW = frozenset("ijltfrI.,:;'|!()[]{} ·/")
_WIDE = frozenset("mwMWGOQ@%—…")


def _channels(color: str) -> tuple[int, ...]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def heat(share: float, hottest: float) -> str:
    """Return the colour of a share of the FLOPs.

    Example:
        >>> heat(0.0, 0.5), heat(0.5, 0.5)
        ('#ffffff', '#ec8a58')
    """
    at = math.sqrt(min(1.0, max(0.0, share / hottest))) * (len(HEAT) - 1)
    low = min(int(at), len(HEAT) - 2)
    pairs = zip(_channels(HEAT[low]), _channels(HEAT[low + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (at - low)):02x}" for a, b in pairs)


def heat_labels(hottest: float) -> tuple[str, str, str]:
    """Return what is written below the scale's left end, middle and right end."""
    return "0 %", percent(hottest / 4), percent(hottest)


def text_width(text: str, size: Pixels, *, mono: bool = False) -> float:
    """Return about how wide a text is in pixels; no font is asked, so that bytes don't differ."""
    if mono:
        return 0.61 * size * len(text)
    widths = (0.34 if c in _NARROW else 0.9 if c in _WIDE else 0.6 for c in text)
    return size * sum(widths, 0.0)


def fit(text: str, width: Pixels, size: Pixels, *, mono: bool = False) -> str:
    """Return a text cut to a width, with an ellipsis where it was cut."""
    if text_width(text, size, mono=mono) <= width:
        return text
    while text and text_width(text + "…", size, mono=mono) > width:
        text = text[:-1]
    return text.rstrip(" ·") + "…"
