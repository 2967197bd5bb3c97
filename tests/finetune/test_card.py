"""The model card: true figures, and snippets that run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import jgraph as jg
from jgraph._cli import main
from jgraph._finetune._card import card
from jgraph._finetune._score import Score


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
def test_the_snippets_run(copied, capsys):
    text = Path("runs/latest/README.md").read_text("utf-8")
    (python,), (bash,) = blocks(text, "python"), blocks(text, "bash")
    exec(compile(python, "README.md", "exec"), {})
    assert re.fullmatch(r"pictures/dots/\d+\.png dots \d\.\d{3}\n", capsys.readouterr().out)
    program, *arguments = shlex.split(bash)
    assert program == "jgraph"
    assert main(arguments) == 0
    assert re.match(r"pictures/dots/\d+\.png: dots \d\.\d{3}, ", capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.usefixtures("workplace", "tiny")
def test_the_snippets_run_with_blanks_and_quotes_in_the_names(paint, capsys):
    paint(Path('my mother\'s "pets"'), {"dots": 8, "plain": 6})
    run = jg.finetune('my mother\'s "pets"', out="a b's run", verbose=False)
    text = (run.folder / "README.md").read_text("utf-8")
    (python,), (bash,) = blocks(text, "python"), blocks(text, "bash")
    exec(compile(python, "README.md", "exec"), {})
    assert main(shlex.split(bash)[1:]) == 0
    assert capsys.readouterr().out.count('my mother\'s "pets"/dots/') == 2


def test_it_states_data_split_accuracy_and_licence(finished):
    text = (finished / "runs/latest/README.md").read_text("utf-8")
    metrics = jg.load_run(finished / "runs/latest").metrics
    assert text.startswith("# pictures-001\n")
    assert "| Data | pictures: 24 train; 3 classes |" in text
    assert "| Backbone | efficientnet_lite0, ImageNet weights, 32 px |" in text
    assert f"**{metrics['accuracy']:.3f}, {metrics['correct']} of 24, " in text
    assert "(cross-validated); baseline 0.333" in text
    assert "Apache-2.0" in text
    assert "| Seed | 0 |" in text


def test_names_cannot_break_the_table():
    score = Score.of_logits(
        "test",
        ("a|b", "<script>", "never"),
        np.array([0, 0, 1], np.int32),
        np.eye(3, dtype=np.float32)[[0, 1, 1]] * 9,
    )
    text = card(Path("runs/x"), [("Data", "p|q")], [score], Path("a.png"), "none")
    assert "| a\\|b | 2 | 0.500 | 1.000 |" in text
    assert "| \\<script> | 1 | 1.000 | 0.500 |" in text
    assert "| never | 0 | – | – |" in text
    assert "| Data | p\\|q |" in text


def test_many_classes_are_cut_short():
    names = tuple(f"c{i}" for i in range(25))
    labels = np.arange(25, dtype=np.int32)
    score = Score.of_logits("test", names, labels, np.eye(25, dtype=np.float32))
    text = card(Path("runs/x"), [], [score], Path("a.png"), "none")
    assert "c18, c19 and 5 more, made with jgraph" in text
