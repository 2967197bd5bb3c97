"""Which pictures train, which ones check, and what happens to those that can't be read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from jgraph import models
from jgraph._errors import InputError, PictureError
from jgraph._finetune._console import Console
from jgraph._finetune._corpus import Corpus, gather
from jgraph._finetune._settings import Settings
from jgraph.data import decode_picture, find_splits
from jgraph.models import Classifier

pytestmark = pytest.mark.usefixtures("workplace", "tiny")

BIG, SMALL = {"dots": 30, "plain": 20}, {"dots": 6, "plain": 4}


def collect(folder: Path, **changes: Any) -> tuple[Corpus, Console, Classifier]:
    settings: dict[str, Any] = {
        "data": str(folder),
        "backbone": "efficientnet_lite0",
        "epochs": 1,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "image_size": None,
        "unfreeze": "none",
        "seed": 0,
        "strategy": "one",
        "on_bad_picture": "skip",
        "cache": True,
    }
    splits = find_splits(folder)
    network: Any = models.create("efficientnet_lite0")
    model = Classifier(network, splits.train.class_names, network.preprocessing, rngs=nnx.Rngs(0))
    model.eval()
    console = Console(verbose=False)
    return gather(model, splits, Settings(**(settings | changes)), console), console, model


def test_features_are_those_of_the_network(paint):
    corpus, console, model = collect(paint(Path("pets"), SMALL))
    assert corpus.features.shape == (10, 16)
    np.testing.assert_allclose(np.linalg.norm(corpus.features, axis=1), 1, rtol=1e-5)
    one = decode_picture(corpus.paths[3], model.preprocessing)
    np.testing.assert_allclose(model.embed(one[None])[0], corpus.features[3], atol=1e-6)
    assert console.notices == []


def test_from_fifty_pictures_on_a_fifth_of_every_class_is_held_out(paint):
    corpus, _, _ = collect(paint(Path("pets"), BIG))
    pairs = Counter(zip(corpus.roles.tolist(), corpus.labels.tolist(), strict=True))
    assert pairs == {
        ("train", 0): 24,
        ("train", 1): 16,
        ("held-out", 0): 6,
        ("held-out", 1): 4,
    }
    assert (corpus.headline, corpus.monitor) == ("held-out", "held-out")


def test_the_seed_draws_them(paint):
    folder = paint(Path("pets"), BIG)
    held = [collect(folder, seed=seed)[0].rows("held-out").tolist() for seed in (0, 1, 0)]
    assert held[0] == held[2] != held[1]


def test_below_fifty_every_picture_trains(paint):
    corpus, _, _ = collect(paint(Path("pets"), {"dots": 29, "plain": 20}))
    assert set(corpus.roles) == {"train"}
    assert (corpus.headline, corpus.monitor) == (None, None)
    assert sorted(set(corpus.folds(0))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("unfreeze", ["none", "last:1"])
@pytest.mark.parametrize(
    ("given", "headline", "monitor"),
    [
        (("val",), "val", "val"),
        (("valid",), "val", "val"),
        (("validation",), "val", "val"),
        (("test",), "test", None),
        (("val", "test"), "test", "val"),
        ((), "held-out", "held-out"),
    ],
)
def test_given_sets_are_recognised(given, headline, monitor, unfreeze, paint):
    paint(Path("pets/train"), BIG)
    for name in given:
        paint(Path("pets") / name, SMALL)
    corpus, _, _ = collect(Path("pets"), unfreeze=unfreeze)
    if given == ("test",) and unfreeze != "none":
        # Which network is better is never asked of the test set.
        monitor = "held-out"
    assert (corpus.headline, corpus.monitor) == (headline, monitor)
    held = 10 if monitor == "held-out" else 0
    assert corpus.rows("train").sum() == 50 - held
    for role in {"val", "test"} & {headline, monitor}:
        assert corpus.rows(role).sum() == 10
    folds = corpus.folds(0)
    np.testing.assert_array_equal(folds >= 0, corpus.rows("train"))


def test_classes_beyond_three_to_one_are_balanced(paint):
    corpus, _, _ = collect(paint(Path("pets"), {"dots": 12, "plain": 3}))
    # N / (K n): 15 / (2 * 12) and 15 / (2 * 3), so that both classes count alike.
    assert sorted(set(corpus.weights.tolist())) == [0.625, 2.5]
    assert corpus.weights[corpus.labels == 0].sum() == corpus.weights[corpus.labels == 1].sum()
    even, _, _ = collect(paint(Path("even"), {"dots": 12, "plain": 4}))
    assert set(even.weights.tolist()) == {1.0}


def spoil(folder: Path) -> list[Path]:
    """Add files that are no pictures but are named as such."""
    picture = (folder / "dots" / "000.png").read_bytes()
    bad = {"cut.png": picture[: len(picture) // 2], "empty.jpg": b"", "text.jpg": b"hello"}
    for name, data in bad.items():
        (folder / "dots" / name).write_bytes(data)
    return [folder / "dots" / name for name in bad]


def test_bad_pictures_are_named_and_left_out(paint):
    folder = paint(Path("pets"), SMALL)
    bad = spoil(folder)
    corpus, console, _ = collect(folder)
    assert list(corpus.skipped) == [str(path) for path in bad]
    assert len(corpus.paths) == len(corpus.labels) == len(corpus.features) == 10
    assert not set(bad) & set(corpus.paths)
    assert [n for n in console.notices if n.startswith("left out: ")] == console.notices
    for path, notice in zip(bad, console.notices, strict=True):
        assert str(path) in notice


def test_or_they_stop_it(paint):
    folder = paint(Path("pets"), SMALL)
    bad = spoil(folder)
    message = rf"{bad[0]}.*; repair or remove it, or skip such pictures"
    with pytest.raises(PictureError, match=message):
        collect(folder, on_bad_picture="stop")


def test_too_few_left_to_hold_out_is_said(paint):
    folder = paint(Path("pets"), {"dots": 29, "plain": 20})
    spoil(folder)
    corpus, console, _ = collect(folder)
    assert corpus.headline is None
    assert console.notices[-1] == (
        "only 49 training pictures can be read, fewer than 50: none is held out, "
        "cross-validation measures"
    )


def test_no_picture_that_can_be_read(paint):
    folder = paint(Path("pets"), SMALL)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(PictureError, match="none of the 10 pictures can be read"):
        collect(folder)


def test_a_class_with_one_picture_that_can_be_read(paint):
    folder = paint(Path("pets"), {"dots": 4, "plain": 2})
    (folder / "plain" / "001.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"every class needs at least two pictures.*'plain' has 1"):
        collect(folder)


def test_a_batch_beyond_the_data_is_clamped(paint):
    _, console, _ = collect(paint(Path("pets"), SMALL), batch_size=1000)
    assert console.notices == ["the batch size 1000 is more than the 10 pictures; 10 is used"]
    _, console, _ = collect(Path("pets"), batch_size=32)  # which nobody has asked for
    assert not console.notices
