from __future__ import annotations

import itertools
import math
import os
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgraph._finetune._svg import Series, confusion_matrix, escape, line_chart


def having(svg: str, tag: str, css_class: str) -> list[ElementTree.Element]:
    """The elements of this tag and class; fails where the SVG is not well-formed XML."""
    elements = ElementTree.fromstring(svg).iter(tag)
    return [element for element in elements if css_class in element.get("class", "").split()]


def words(svg: str) -> list[str]:
    return list(ElementTree.fromstring(svg).itertext())


def test_escape_keeps_only_what_html_can_hold():
    assert escape("a\x00b\x1fc\x85") == "a\ufffdb\ufffdc\ufffd"
    assert escape(os.fsdecode(b"caf\xe9.jpg")) == "caf\\udce9.jpg"


def line(*points: tuple[int, float], name: str = "training") -> Series:
    return Series(name, name.replace(" ", "-"), points)


def places(svg: str, css_class: str = "training") -> np.ndarray:
    """The points of a line, in SVG units [N, 2]."""
    (path,) = having(svg, "path", css_class)
    return np.array([[float(v) for v in pair.split()] for pair in path.attrib["d"][1:].split("L")])


def test_a_chart_is_linear_in_its_data():
    x, y = np.array([0, 5, 20]), np.array([0.9, 0.6, 0.3])
    drawn = places(line_chart("Loss", "epoch", [line(*zip(x.tolist(), y.tolist(), strict=True))]))
    steps_x, steps_y = np.diff(drawn, axis=0).T
    assert steps_x[1] / steps_x[0] == pytest.approx(3, abs=0.01)  # written to a tenth of a unit
    assert steps_y[0] == pytest.approx(steps_y[1], abs=0.11)
    assert steps_y[0] > 0  # SVG's y points down, and the loss falls


def test_a_loss_over_more_than_two_decades_is_logarithmic():
    svg = line_chart("Loss", "epoch", [line((0, 10.0), (1, 0.1), (2, 0.001), (3, 0.0))])
    drawn = places(svg)
    assert drawn[1, 1] - drawn[0, 1] == pytest.approx(drawn[2, 1] - drawn[1, 1], abs=0.11)
    assert drawn[3, 1] == drawn[2, 1]  # zero lies at the axis' end, 0.001 here
    assert {"10", "1", "0.1", "0.01", "0.001"} <= set(words(svg))


def test_values_that_are_not_finite_are_left_out():
    svg = line_chart(
        "Loss", "epoch", [line((0, 1.0), (1, math.nan), (2, math.inf), (3, 0.5)), line()]
    )
    assert places(svg).shape == (2, 2)
    assert "nan" not in svg
    assert "inf" not in svg
    empty = line_chart("Loss", "epoch", [line((0, math.nan))])
    assert words(empty) == ["No finite value was recorded."]


finite_lines = st.lists(
    st.lists(
        st.floats(0, 1e6, allow_subnormal=False).filter(lambda v: v == 0 or v > 1e-12),
        min_size=1,
        max_size=6,
    ),
    min_size=1,
    max_size=2,
)


@settings(deadline=None)
@given(finite_lines, st.booleans(), st.integers(0, 500))
def test_lines_stay_inside_and_labels_apart(values, proportion, first):
    if proportion:
        values = [[v / 1e6 for v in ys] for ys in values]
    names = ("training", "held out")
    lines = [
        line(*((first + i, y) for i, y in enumerate(ys)), name=name)
        for name, ys in zip(names, values, strict=False)
    ]
    svg = line_chart("Value", "epoch", lines, proportion=proportion)
    grid = [float(a.attrib["d"].split()[1].split("H")[0]) for a in having(svg, "path", "grid")]
    assert 2 <= len(grid) <= 7
    for drawn in lines:
        y = places(svg, drawn.css_class)[:, 1]
        # Every value lies between two labelled lines of the grid, so it can be read off.
        assert min(grid) - 0.11 <= y.min()
        assert y.max() <= max(grid) + 0.11
    heights = sorted(float(a.attrib["y"]) for a in having(svg, "text", "end"))
    assert all(b - a >= 28 for a, b in itertools.pairwise(heights))
    assert all(10 <= height <= 200 for height in heights)


def test_matrix_cells_are_shaded_by_their_part_of_the_row():
    svg = confusion_matrix(("a", "b"), np.array([[16, 0], [3, 1]]), np.array([16, 4]))
    shades = {
        css_class: [float(a.attrib["fill-opacity"]) for a in having(svg, "rect", css_class)]
        for css_class in ("right", "wrong")
    }
    full = shades["right"][0]
    assert shades["right"][1] == pytest.approx(full * math.sqrt(1 / 4), abs=1e-3)
    assert shades["wrong"] == pytest.approx([full * math.sqrt(3 / 4)], abs=1e-3)
    assert "b called a: 3 of 4" in words(svg)


def test_long_names_are_cut_in_the_matrix_and_whole_in_its_titles():
    names = ("a very long name of a class indeed", "猫" * 30)
    svg = confusion_matrix(names, np.array([[1, 0], [0, 1]]), np.array([1, 1]))
    assert "a very long name of…" in words(svg)
    assert "猫猫猫猫猫猫猫猫猫猫…" in words(svg)
    assert f"{names[1]} called {names[1]}: 1 of 1" in words(svg)
