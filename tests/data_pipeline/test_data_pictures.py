"""Batches: what is in them, determinism, padding, bad pictures."""

import itertools
import threading

import numpy as np
import pytest
from PIL import Image

from jgraph._errors import InputError, PictureError
from jgraph._preprocessing import Preprocessing
from jgraph.data import Pictures

SMALL = Preprocessing(8, 8, "bicubic", mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))


@pytest.fixture
def paths(tmp_path):
    """Ten pictures, the i-th plain grey of 10 * i."""
    for i in range(10):
        Image.new("RGB", (12, 10), (10 * i,) * 3).save(tmp_path / f"{i}.png")
    return [tmp_path / f"{i}.png" for i in range(10)]


LABELS = np.arange(10) % 3


def test_batches_in_order_with_the_last_one_padded(paths):
    pictures = Pictures(paths, LABELS, SMALL, batch_size=4)
    batches = list(pictures)
    assert len(pictures) == len(batches) == 3
    for batch in batches:
        assert {name: (a.dtype.name, a.shape) for name, a in batch.items()} == {
            "picture": ("uint8", (4, 8, 8, 3)),
            "label": ("int32", (4,)),
            "weight": ("float32", (4,)),
            "index": ("int32", (4,)),
        }
        grey = 10 * batch["index"][:, None, None, None]
        np.testing.assert_array_equal(batch["picture"], np.broadcast_to(grey, (4, 8, 8, 3)))
        np.testing.assert_array_equal(batch["label"], LABELS[batch["index"]])
    assert [b["index"].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 8, 8]]
    assert [b["weight"].sum() for b in batches] == [4, 4, 2]
    assert batches[2]["weight"].tolist() == [1, 1, 0, 0]


def test_it_can_be_gone_through_again(paths):
    pictures = Pictures(paths, LABELS, SMALL, batch_size=5)
    assert [b["index"].tolist() for b in pictures] == [b["index"].tolist() for b in pictures]


def real_indices(pictures, epoch):
    batches = list(pictures.epoch(epoch))
    return np.concatenate([b["index"][b["weight"] > 0] for b in batches]).tolist()


def test_every_epoch_has_its_own_order_of_all_pictures(paths):
    pictures = Pictures(paths, LABELS, SMALL, batch_size=4, shuffle=True, seed=5)
    orders = [real_indices(pictures, epoch) for epoch in range(4)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert real_indices(pictures, 2) == orders[2]
    other = Pictures(paths, LABELS, SMALL, batch_size=4, shuffle=True, seed=6)
    assert real_indices(other, 2) != orders[2]


def test_without_shuffling_every_epoch_has_the_given_order(paths):
    assert real_indices(Pictures(paths, LABELS, SMALL, batch_size=3), 7) == list(range(10))


def test_the_number_of_workers_changes_nothing():
    rng = np.random.default_rng(0)
    sources = [rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(11)]

    def epoch(workers):
        pictures = Pictures(
            sources, None, SMALL, 4, shuffle=True, augment=True, seed=1, workers=workers
        )
        return list(pictures.epoch(3))

    for other in (epoch(1), epoch(5)):
        for a, b in zip(epoch(0), other, strict=True):
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])


def test_augmentation_differs_between_epochs_and_pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    pictures = Pictures([pixels] * 2, None, SMALL, 2, augment=True)
    shown = [next(pictures.epoch(epoch))["picture"][i] for epoch in (0, 1) for i in (0, 1)]
    for a, b in itertools.combinations(shown, 2):
        assert (a != b).any()


def test_pictures_without_labels_say_so(paths):
    assert next(iter(Pictures(paths, None, SMALL, 4)))["label"].tolist() == [-1] * 4


def test_a_batch_larger_than_the_data_is_padded(paths):
    (batch,) = Pictures(paths[:2], LABELS[:2], SMALL, batch_size=5)
    assert batch["weight"].tolist() == [1, 1, 0, 0, 0]
    assert batch["index"].tolist() == [0, 1, 0, 0, 0]


def test_an_epoch_may_be_left_early(paths):
    before = set(threading.enumerate())
    for _ in range(20):
        iterator = Pictures(paths, LABELS, SMALL, batch_size=2).epoch(0)
        next(iterator)
        del iterator
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(timeout=30)
    assert not [thread for thread in left if thread.is_alive()]


def test_a_bad_picture_stops_by_name(paths):
    paths[5].write_bytes(paths[5].read_bytes()[:40])
    pictures = Pictures(paths, LABELS, SMALL, batch_size=4)
    batches = iter(pictures)
    next(batches)
    with pytest.raises(PictureError, match=r'5\.png is .*; repair or remove it, .*="skip"'):
        next(batches)


def test_a_bad_picture_can_be_skipped_and_is_noted(paths):
    paths[4].write_bytes(b"")
    paths[6].write_text("no picture")
    pictures = Pictures(paths, LABELS, SMALL, batch_size=4, on_bad_picture="skip")
    assert pictures.bad == {}
    batches = list(pictures)
    assert [b["weight"].tolist() for b in batches] == [[1] * 4, [0, 1, 0, 1], [1, 1, 0, 0]]
    assert batches[1]["index"].tolist() == [5, 5, 5, 7]
    assert batches[1]["label"].tolist() == LABELS[[5, 5, 5, 7]].tolist()
    np.testing.assert_array_equal(batches[1]["picture"][:, 0, 0, 0], [50, 50, 50, 70])
    assert sorted(pictures.bad) == [4, 6]
    assert pictures.bad[4].endswith("4.png is empty (0 bytes)")
    assert "6.png is not a picture" in pictures.bad[6]


def test_a_batch_of_bad_pictures_alone_counts_nothing(paths):
    for path in paths[8:]:
        path.write_bytes(b"")
    pictures = Pictures(paths, LABELS, SMALL, batch_size=4, on_bad_picture="skip")
    batch = list(pictures)[2]
    assert batch["picture"].shape == (4, 8, 8, 3)
    assert batch["picture"].max() == 0
    assert batch["weight"].tolist() == [0] * 4
    assert sorted(pictures.bad) == [8, 9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": [], "labels": []}, "at least one picture, got none"),
        ({"labels": [0]}, "one label, got 10 pictures and 1 labels"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"seed": -1}, "seed must be 0 or above, got -1"),
    ],
)
def test_bad_arguments(paths, change, message):
    arguments = {"paths": paths, "labels": LABELS, "preprocessing": SMALL, "batch_size": 4}
    with pytest.raises(InputError, match=message):
        Pictures(**(arguments | change))
