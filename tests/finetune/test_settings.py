from __future__ import annotations

import re
from typing import Any

import pytest

from jgraph._errors import InputError
from jgraph._finetune._settings import Settings

GOOD: dict[str, Any] = {
    "data": None,
    "backbone": "efficientnet_lite0",
    "epochs": 5,
    "batch_size": 32,
    "strategy": "one",
    "learning_rate": 1e-3,
    "image_size": None,
    "unfreeze": "none",
    "seed": 0,
    "on_bad_picture": "skip",
    "cache": True,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"backbone": "efficentnet_lite0"},
            "the backbone must be one with published weights (efficientnet_lite0) or the handle of "
            "a module, got 'efficentnet_lite0'; did you mean efficientnet_lite0?",
        ),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": -3}, "batch size must be at least 1, got -3"),
        (
            {"strategy": "data-parallel"},
            "the strategy must be one of auto, one, data_parallel, fsdp, pmap, got "
            "'data-parallel'; did you mean data_parallel?",
        ),
        ({"seed": -1}, "the seed must be from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "the seed must be from 0 to 4294967295, got 4294967296"),
        (
            {"learning_rate": float("nan")},
            "the learning rate must be a positive number, got nan; try 0.001",
        ),
        (
            {"learning_rate": float("inf")},
            "the learning rate must be a positive number, got inf; try 0.001",
        ),
        (
            {"learning_rate": -0.1},
            "the learning rate must be a positive number, got -0.1; try 0.001",
        ),
        ({"learning_rate": 0.0}, "the learning rate must be a positive number, got 0.0; try 0.001"),
        ({"image_size": 31}, "the image size must be at least 32 pixels, got 31"),
        (
            {"unfreeze": "last:0"},
            "unfreeze must be none, all or last:N with N at least 1, got 'last:0'"
            "; did you mean last:1?",
        ),
        (
            {"unfreeze": "al"},
            "unfreeze must be none, all or last:N with N at least 1, got 'al'; did you mean all?",
        ),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Settings(**{**GOOD, **change})


def test_another_way_with_bad_pictures_is_refused():
    settings = Settings(**GOOD)
    # Past the type checker, which the tests run with and a person doesn't.
    object.__setattr__(settings, "on_bad_picture", "skp")
    with pytest.raises(InputError, match=r"^on_bad_picture must be skip or stop, got 'skp'$"):
        settings.__post_init__()


@pytest.mark.parametrize(
    ("unfreeze", "count"), [("none", 0), ("last:1", 1), ("last:7", 7), ("all", 7)]
)
def test_unfrozen_stages_are_counted_from_the_last(unfreeze, count):
    assert Settings(**{**GOOD, "unfreeze": unfreeze}).unfrozen_stages(7) == count


def test_more_stages_than_there_are_is_refused():
    message = "efficientnet_lite0 has 7 stages, so unfreeze must be at most last:7, got last:8"
    with pytest.raises(InputError, match=message):
        Settings(**{**GOOD, "unfreeze": "last:8"}).unfrozen_stages(7)


def test_json_holds_every_setting():
    assert Settings(**GOOD).to_json() == GOOD
