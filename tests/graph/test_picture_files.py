"""The files: well-formed, self-contained, escaped, the same bytes each time; the table."""

import json
import re
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import pytest

from jgraph import InputError
from jgraph.graph._ops import program_of
from jgraph.graph._picture import Port, draw, text

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "</script><script>alert('&\"\x01{{tree}}')</script>]]>"


def net(params, x):
    with jax.named_scope("model"):
        for i, w in enumerate(params):
            with jax.named_scope(f"heads['<b> & {{{{title}}}}']/blocks[{i}]"):
                with jax.named_scope("linear"):
                    y = x @ w
                x = x + jax.nn.relu(y)
    return x


PARAMS = [jnp.ones((8, 8))] * 5
PORTS = {
    "inputs": [Port("", is_state=True, is_param=True)] * 5 + [Port(NASTY)],
    "outputs": ["y"],
}


@pytest.fixture
def program():
    return jax.make_jaxpr(net)(PARAMS, jnp.ones((2, 8)))


def embedded(page):
    found = re.search(r'<script type="application/json" id="tree">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_svg_is_well_formed_and_complete(program, tmp_path):
    draw(program, tmp_path / "net.svg", title=NASTY, **PORTS)
    root = ET.parse(tmp_path / "net.svg").getroot()
    words = ["".join(e.itertext()) for e in root.iter(f"{SVG}text")]
    assert NASTY.replace("\x01", "\ufffd") in words
    assert any("blocks[0…4]" in word and "×5" in word for word in words)
    assert "f32[2,8]" in words
    curves = [e for e in root.iter(f"{SVG}path") if e.get("class") == "k"]
    assert len(curves) == 1  # the residual connection
    assert not list(root.iter(f"{SVG}script"))


def test_nothing_is_drawn_outside_the_picture(program, tmp_path):
    draw(program, tmp_path / "net.svg", **PORTS)
    root = ET.parse(tmp_path / "net.svg").getroot()
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    group = root.find(f"{SVG}g")
    assert group is not None
    dx, dy = map(float, re.findall(r"[\d.]+", group.get("transform", "")))
    for rect in group.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.get(k, "")) for k in ("x", "y", "width", "height"))
        assert x + dx >= 0
        assert x + dx + w <= width
        assert y + dy >= 0
        assert y + dy + h <= height


def test_the_page_is_self_contained_and_escaped(program, tmp_path):
    draw(program, tmp_path / "net.html", title=NASTY, **PORTS)
    page = (tmp_path / "net.html").read_text("utf-8")
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href|action)\s*=|@import|url\(|fetch\(|XMLHttp", page)
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert page.count("<script") == page.count("</script>") == 2
    assert "alert('&" not in page
    assert "innerHTML" not in page


def test_the_page_holds_the_tree(program, tmp_path):
    draw(program, tmp_path / "net.html", **PORTS)
    tree = embedded((tmp_path / "net.html").read_text("utf-8"))
    (model,) = (child for child in tree["children"] if child["kind"] == "module")
    (blocks,) = model["children"]
    assert (blocks["title"], blocks["copies"]) == ("blocks[0…4]", 5)
    assert tree["open"]
    assert model["open"]
    sources = set(re.findall(r"test_picture_files\.py:\d+", json.dumps(tree)))
    assert sources
    assert any("f32[2,8]" in line[2] for line in tree["lines"])


@pytest.mark.parametrize("ending", ["svg", "html"])
def test_bytes_do_not_differ(program, tmp_path, ending):
    again = jax.make_jaxpr(net)(PARAMS, jnp.ones((2, 8)))
    draw(program, tmp_path / f"a.{ending}", title="net", **PORTS)
    draw(program_of(again), tmp_path / f"b.{ending}", title="net", **PORTS)
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_the_table_adds_up(program):
    lines = text(program, inputs=[*PORTS["inputs"][:5], Port("x")], outputs=["y"]).splitlines()
    assert lines[0].split() == ["module", "makes", "params", "FLOPs", "share", "source"]
    flops = 5 * (2 * 2 * 64 + 2 * 16)
    assert lines[-1].split() == ["total", "320", "1.44", "k", "100", "%"]
    assert flops == 1440
    assert any("×5" in line and "320" in line for line in lines)
    assert len(text(program, depth=1).splitlines()) < len(lines)


def test_bad_input_is_refused(program, tmp_path):
    with pytest.raises(InputError, match=r"written as \.svg or \.html, not as 'net\.png'"):
        draw(program, tmp_path / "net.png")
    with pytest.raises(InputError, match=r"has 6 inputs, but 1 names came: give one for each"):
        text(program, inputs=["x"])
    with pytest.raises(InputError, match=r"has 1 outputs, but 2 names came"):
        text(program, outputs=["x", "y"])


def test_a_program_of_nothing_is_drawn(tmp_path):
    program = jax.make_jaxpr(lambda x: x)(1.0)
    for ending in ("svg", "html"):
        draw(program, tmp_path / f"net.{ending}")
    assert text(program).splitlines()[-1].split()[0] == "total"
