from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from jgraph._errors import InputError
from jgraph._preprocessing import Preprocessing

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
IMAGENET = Preprocessing(224, 256, "bicubic", MEAN, STD)


def test_normalize_is_x_minus_mean_over_std_per_channel():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    expected = (pictures.astype(np.float64) - np.array(MEAN)) / np.array(STD)
    found = jax.jit(IMAGENET.normalize)(pictures)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        IMAGENET.normalize(jax.numpy.asarray(pictures[0])), expected[0], atol=1e-6
    )


@pytest.mark.parametrize(("size", "resize"), [(112, 128), (32, 37), (448, 512), (1, 1), (224, 256)])
def test_another_size_keeps_the_margin_in_proportion(size, resize):
    at = IMAGENET.at(size)
    assert (at.image_size, at.resize_size, at.mean) == (size, resize, MEAN)


@pytest.mark.parametrize("sizes", [(0, 8), (-1, 8), (9, 8)])
def test_sizes_must_fit(sizes):
    message = (
        f"preprocessing needs 1 <= image_size <= resize_size, got image_size {sizes[0]} and "
        f"resize_size {sizes[1]}"
    )
    with pytest.raises(InputError, match=message):
        Preprocessing(sizes[0], sizes[1], "bicubic", MEAN, STD)


def test_json_there_and_back():
    assert Preprocessing.from_json(json.loads(json.dumps(IMAGENET.to_json()))) == IMAGENET


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"image_size": "224"}, "image_size"),
        ({"resize_size": 256.5}, "resize_size"),
        ({"interpolation": "magic"}, "interpolation"),
        ({"mean": [1, 2]}, "mean"),
        ({"std": 1.0}, "std"),
        ({"std": [1, 2, float("nan")], "mean": ["1", 2, 3]}, "mean, std"),
        ({"extra": 1}, "extra"),
    ],
)
def test_json_of_another_kind_is_refused_by_name(change, wrong):
    with pytest.raises(InputError, match=f"preprocessing needs whole .* wrong: {wrong}$"):
        Preprocessing.from_json({**IMAGENET.to_json(), **change})


def test_json_with_a_value_missing_is_refused_by_name():
    value = IMAGENET.to_json()
    del value["mean"], value["image_size"]
    with pytest.raises(InputError, match=r"wrong: image_size, mean$"):
        Preprocessing.from_json(value)
