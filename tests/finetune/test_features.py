"""Runs find the features of pictures they have seen, and only of those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

import jgraph as jg
from jgraph._cli import main
from jgraph._finetune import _inference
from jgraph._finetune._console import Console
from jgraph._finetune._features import Features, embed
from jgraph._finetune._settings import Settings
from jgraph.data import Pictures, scan
from jgraph.models import Classifier

pytestmark = pytest.mark.usefixtures("workplace", "tiny")

GOOD: dict[str, Any] = {
    "backbone": "efficientnet_lite0",
    "epochs": 1,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "image_size": None,
    "unfreeze": "none",
    "seed": 0,
    "strategy": "one",
    "on_bad_picture": "skip",
    "cache": True,
}


@pytest.fixture
def pets(paint):
    return paint(Path("pets"), {"dots": 20, "plain": 15})


@pytest.fixture
def embedded(monkeypatch):
    """How many pictures the network was given, in each pass over pictures."""
    counts = []
    call = _inference.Forward.__call__

    def counting(self, pictures: Pictures, *arguments):
        counts.append(len(pictures.paths))
        return call(self, pictures, *arguments)

    monkeypatch.setattr(_inference.Forward, "__call__", counting)
    return counts


def test_a_second_run_embeds_nothing_and_is_the_same(pets, embedded, capsys):
    first = jg.finetune(pets, out="first")
    assert embedded == [35]
    assert "from the cache" not in capsys.readouterr().out
    second = jg.finetune(pets, out="second")
    assert embedded == [35]
    assert "Features of 35 pictures from the cache" in capsys.readouterr().out
    assert first.metrics == second.metrics
    a, b = (Path(run, "weights.safetensors").read_bytes() for run in ("first", "second"))
    assert a == b


def get(folder: Path, **changes: Any) -> tuple[Features, list[str]]:
    """Return the features of a folder's pictures, and what was said."""
    settings = Settings(**({**GOOD, "data": str(folder)} | changes))
    pictures = scan(folder)
    network: Any = jg.models.create("efficientnet_lite0")
    preprocessing = network.preprocessing
    if settings.image_size is not None:
        preprocessing = preprocessing.at(settings.image_size)
    model = Classifier(network, pictures.class_names, preprocessing, rngs=nnx.Rngs(0))
    model.eval()
    said: list[str] = []

    class Kept(Console):
        def say(self, text: str = "") -> None:
            said.append(text)

    return embed(model, pictures.paths, settings, Kept(verbose=False)), said


def test_only_what_is_new_is_embedded(pets, embedded):
    before, _ = get(pets)
    (pets / "dots" / "000.png").write_bytes((pets / "plain" / "000.png").read_bytes())
    (pets / "dots" / "001.png").rename(pets / "dots" / "another-name.png")
    (pets / "plain" / "000.png").unlink()
    (pets / "plain" / "015.png").write_bytes((pets / "dots" / "002.png").read_bytes()[:-1] + b"?")
    (pets / "plain" / "broken.png").write_bytes(b"no picture")
    after, said = get(pets)
    assert embedded == [35, 2]
    assert said == ["Features of 34 pictures from the cache"]
    assert list(after.bad) == [35]
    assert after.good.tolist() == [True] * 35 + [False]
    # dots/000 has the bytes of plain/000, which was the 21st; plain/015 those of dots/002.
    np.testing.assert_array_equal(after.rows[0], before.rows[20])
    np.testing.assert_array_equal(after.rows[1:19], before.rows[2:20])
    np.testing.assert_allclose(after.rows[34], before.rows[2], rtol=1e-6)
    assert not after.rows[35].any()
    get(pets)
    assert embedded == [35, 2, 1]  # the broken one is asked for each time


def test_a_run_that_was_stopped_is_taken_up_where_it_was(pets, embedded, monkeypatch):
    rows = _inference.Forward._rows
    calls = []

    def dying(self, pictures):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return rows(self, pictures)

    with monkeypatch.context() as patch:
        patch.setattr(_inference.Forward, "_rows", dying)
        with pytest.raises(KeyboardInterrupt):
            get(pets, batch_size=8)
    found, said = get(pets, batch_size=8)
    assert 0 < embedded[1] < 35
    assert said == [f"Features of {35 - embedded[1]} pictures from the cache"]
    fresh, _ = get(pets, batch_size=8, cache=False)
    np.testing.assert_array_equal(found.rows, fresh.rows)


def test_what_decides_the_features_decides_what_is_found(pets, embedded, monkeypatch):
    for changes in ({}, {"image_size": 40}, {"strategy": "data_parallel"}):
        get(pets, **changes)
    with monkeypatch.context() as patch:
        patch.setattr("jgraph._finetune._features.FEATURES_VERSION", 2)
        get(pets)
    network: Any = jg.models.create("efficientnet_lite0")
    network.first.kernel.set_value(network.first.kernel.get_value() * 2)
    with monkeypatch.context() as patch:
        patch.setattr(jg.models, "create", lambda name, **_: network)
        get(pets)
    assert embedded == [35] * 5
    get(pets, seed=3, epochs=9, batch_size=4, unfreeze="all")
    assert len(embedded) == 5


def test_it_can_be_elsewhere_or_off(pets, embedded, workplace):
    get(pets, cache=False)
    assert not (workplace / "cache" / "features").exists()
    get(pets, cache="elsewhere")
    assert (workplace / "elsewhere" / "features.sqlite").is_file()
    assert embedded == [35] * 2


def test_the_command_can_go_without(pets, workplace):
    assert main(["finetune", "pets", "--cache", "off", "--out", "run"]) == 0
    assert json.loads(Path("run/config.json").read_text())["cache"] is False
    assert not (workplace / "cache" / "features").exists()


def test_trouble_is_a_note(pets, workplace):
    (workplace / "file").write_text("")
    _, said = get(pets, cache="file/cache")
    assert said[0].startswith("Note: features aren't kept for the next run: file/cache/features")


def test_the_network_runs_to_be_debugged(pets, monkeypatch):
    get(pets)

    def stepped_through(self, pictures, on_rows):
        raise KeyboardInterrupt

    monkeypatch.setattr(_inference.Forward, "__call__", stepped_through)
    get(pets)
    with jg.debug_mode(), pytest.raises(KeyboardInterrupt):
        get(pets)
