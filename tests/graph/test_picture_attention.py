"""Attention is drawn as in a textbook: no two lines share a way, no curve crosses a label."""

import re
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import pytest

from jgraph.graph import function

SVG = "{http://www.w3.org/2000/svg}"


def part(name, x):
    with jax.named_scope(name):
        return jnp.tanh(x @ jnp.ones((8, 8)))


def attention(x):
    with jax.named_scope("attention"):
        query, key, value = part("query", x), part("key", x), part("value", x)
        weights = jnp.einsum("bqd,bkd->bqk", part("rotate", query), key)
        return part("out", jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(weights), value))


@pytest.fixture
def graph():
    with jax.numpy_dtype_promotion("standard"):
        return function(attention).graph(jnp.ones((2, 4, 8)))


@pytest.fixture
def drawn(graph, tmp_path):
    graph.draw(tmp_path / "net.svg")
    return ET.fromstring((tmp_path / "net.svg").read_text())


def test_a_formula_is_no_module(graph):
    products = [op.scope for op in graph.ops if op.name == "dot_general"]
    names = ["query", "key", "value", "rotate", "out"]
    assert sorted(products) == sorted([("attention",)] * 2 + [("attention", n) for n in names])
    assert "->" not in graph.text()


@pytest.mark.parametrize("name", ["a->b", "in->out", "1->2", "bq->bq/part"])
def test_a_scope_of_the_users_own_with_an_arrow(name):
    ops = function(lambda x: part(name, x)).graph(jnp.ones((2, 8))).ops
    assert {"/".join(op.scope) for op in ops if op.name == "tanh"} == {name}


def test_the_lines_of_key_and_value_turn_apart(drawn):
    ways = [e.get("d", "") for e in drawn.iter(f"{SVG}path") if e.get("class") == "k"]
    turns = [re.findall(r"V([\d.]+)H", way)[0] for way in ways]
    assert len(turns) == len(set(turns)) == 2
    starts = [float(re.findall(r"M([\d.]+) ", way)[0]) for way in ways]
    # The right one turns first, so that the left one passes below it.
    by_start = [float(turn) for _, turn in sorted(zip(starts, turns, strict=True))]
    assert by_start == sorted(by_start, reverse=True)


def test_no_curve_crosses_a_label(drawn):
    words = [e for e in drawn.iter(f"{SVG}text") if (e.text or "").startswith("f32[2,4,8]")]
    labels = [e for e in words if e.get("font-size") == "9.8"]
    curves = [
        [float(n) for n in re.findall(r"[\d.]+", way)]
        for e in drawn.iter(f"{SVG}path")
        if "C" in (way := e.get("d", ""))
    ]
    assert labels
    for label in labels:
        x, y = float(label.get("x", "")), float(label.get("y", ""))
        ends = label.get("text-anchor") == "end"
        for left, top, *_, right, bottom in curves:
            if abs(abs(x - left) - 7) < 0.1 and top < y < bottom:
                assert ends == (right > left)
    assert any(label.get("text-anchor") == "end" for label in labels)
