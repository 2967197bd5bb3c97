from __future__ import annotations

import re
from pathlib import Path

import jax.numpy as jnp
import pytest

import jgraph.losses
from jgraph.losses import softmax_cross_entropy, sparse_softmax_cross_entropy

assert jgraph.losses.__file__ is not None
TEXT = (Path(jgraph.losses.__file__).resolve().parent / "README.md").read_text(encoding="utf-8")
PUBLIC = [n for n, v in vars(jgraph.losses).items() if not n.startswith("_") and callable(v)]
NAMED = set(re.findall(r"`(\w+)(?:\([^`]*\))?`", TEXT))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_table(name: str) -> None:
    assert name in NAMED


def test_the_cat_dog_other_example() -> None:
    z = jnp.array([1.0, 3.0, 0.0])
    for loss in (
        softmax_cross_entropy(z, jnp.array([0.0, 1.0, 0.0])),
        sparse_softmax_cross_entropy(z, jnp.array(1)),
    ):
        assert f"{float(loss):.4f}" in TEXT


def test_jgraph_is_nowhere_silently_wrong_in_the_table() -> None:
    rows = [r for r in TEXT.splitlines() if r.startswith(("| **silently", "| *NaN"))]
    assert len(rows) == 2
    for row in rows:
        assert re.match(r"\|[^|]+\| \| 0 of \d+ \| 0 of \d+ \|", row), row
