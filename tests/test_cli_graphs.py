"""`jgraph draw` and `jgraph inspect`, on a run of the real network."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import jgraph as jg
from jgraph._cli import main

pytestmark = pytest.mark.usefixtures("workplace")


def test_draw_writes_a_page(finished, capsys):
    assert main(["draw", str(finished / "runs/latest")]) == 0
    assert capsys.readouterr().out == "network.html\n"
    page = Path("network.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "blocks[12…14]" in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)


def test_draw_writes_a_still_picture(finished, capsys):
    assert main(["draw", str(finished / "runs/latest"), "n.svg"]) == 0
    assert capsys.readouterr().out == "n.svg\n"
    words = [x.text for x in ET.parse("n.svg").iter() if x.text and x.text.strip()]
    assert {"stem", "head", "picture", "f32[1,1280]"} <= set(words)
    # A run carries its picture.
    assert Path("n.svg").read_text() == (finished / "runs/latest/network.svg").read_text()


def test_inspect_says_what_there_is(finished, capsys):
    assert main(["inspect", str(finished / "runs/latest"), "--depth", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # 4,652,008 parameters of the published network, less its head of 1,281,000, and 1280 x 3 + 3
    # of this one; BatchNorm's 42,016 statistics are held as well.
    assert lines[1] == "network   efficientnet_lite0, 3.37 M parameters, 13.7 MB"
    assert lines[2] == "classes   dots, plain, rows"
    assert lines[3] == "picture   32 x 32, RGB"
    total = lines[-1].split()
    graph = jg.load_run(finished / "runs/latest").graph()
    assert total[0] == "total"
    assert graph.flops == sum(op.total_flops for op in graph.ops)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["draw", "RUN", "net.pdf"], "a picture is written as .svg or .html, not as 'net.pdf'"),
        (["draw", "RUN", "no/net.svg"], "the picture's folder must exist, and no doesn't"),
        (["inspect", "RUN", "--depth", "0"], "depth must be at least 1, got 0"),
        (["draw", "runs/none"], "there is no run folder runs/none"),
    ],
)
def test_wrong_input_is_one_sentence(argv, message, finished, capsys):
    run = str(finished / "runs/latest")
    assert main([run if x == "RUN" else x for x in argv]) == 2
    assert capsys.readouterr().err == f"jgraph: {message}\n"
