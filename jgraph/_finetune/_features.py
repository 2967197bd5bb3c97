"""The features of a run's pictures: from the cache, or by the network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Float32, Int

from jgraph import data as jdata
from jgraph._eager import jit_is_off
from jgraph._finetune._backbone import origin
from jgraph._finetune._console import Console
from jgraph._finetune._inference import Forward
from jgraph._finetune._settings import Settings
from jgraph.models import Classifier

FEATURES_VERSION = 1
"""To be raised when jgraph computes other features from the same weights and pictures."""


class Features(NamedTuple):
    """What the network makes of N pictures.

    Args:
        rows: unit-length features, float32 `[N, D]`; zero where a picture couldn't be read.
        good: which pictures could be read, bool `[N]`.
        bad: what is wrong with the others, by position.
    """

    rows: Float[np.ndarray, "n d"]
    good: Bool[np.ndarray, " n"]
    bad: dict[int, str]


def embed(
    model: Classifier, paths: Sequence[Path], settings: Settings, console: Console
) -> Features:
    """Return the features of all pictures, each batch kept as soon as it is there.

    Raises:
        PictureError: a file can't be read, and the settings say stop.
    """
    cache, keys = _cache(model, settings), []
    found: dict[int, np.ndarray] = {}
    if cache is not None:
        keys = cache.keys(paths)
        found = cache.get(keys)
    if found:
        console.say(f"Features of {len(found)} pictures from the cache")
    left = np.array([i for i in range(len(paths)) if i not in found], np.int64)
    made: tuple[np.ndarray, np.ndarray] | None = None
    bad: dict[int, str] = {}
    if left.size:
        pictures = jdata.Pictures(
            [paths[i] for i in left],
            None,
            model.preprocessing,
            # As many as without a cache: the program of that size may be on disk, too.
            min(settings.batch_size, len(paths)),
            on_bad_picture=settings.on_bad_picture,
        )
        with console.bar("Embedding", left.size, " pictures") as count:

            def on_rows(index: Int[np.ndarray, " m"], rows: Float32[np.ndarray, "m d"]) -> None:
                count(len(index))
                if cache is not None:
                    cache.put([keys[left[i]] for i in index], rows)

            made = Forward(model, Classifier.embed, settings.places())(pictures, on_rows)
        bad = {int(left[i]): reason for i, reason in pictures.bad.items()}
    if cache is not None and cache.trouble is not None:
        console.notice(f"features aren't kept for the next run: {cache.trouble}")
    return _together(len(paths), found, left, made, bad)


def _together(
    count: int,
    found: dict[int, np.ndarray],
    left: Int[np.ndarray, " m"],
    made: tuple[np.ndarray, np.ndarray] | None,
    bad: dict[int, str],
) -> Features:
    size = made[0].shape[1] if made is not None else next(iter(found.values())).size
    rows, good = np.zeros((count, size), np.float32), np.ones(count, bool)
    for i, row in found.items():
        rows[i] = row
    if made is not None:
        rows[left], good[left] = made
    return Features(rows, good, bad)


def _cache(model: Classifier, settings: Settings) -> jdata.FeatureCache | None:
    # To debug is to step through the network: it has to run.
    if settings.cache is False or jit_is_off():
        return None
    folder = None if settings.cache is True else Path(settings.cache).expanduser()
    return jdata.FeatureCache(_recipe(model, settings), folder)


def _recipe(model: Classifier, settings: Settings) -> str:
    """Return all that decides which features a picture gets."""
    weights = hashlib.sha256()
    for path, leaf in sorted(nnx.to_flat_state(nnx.state(model.backbone)), key=lambda x: x[0]):
        value = leaf.get_value()
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            continue  # in evaluation mode nothing is drawn
        array = np.asarray(value)
        weights.update(f"{path} {array.dtype} {array.shape}".encode())
        weights.update(array.tobytes())
    recipe = {
        "version": FEATURES_VERSION,
        "backbone": origin(settings.backbone, model.backbone).sha256,
        "network": type(model.backbone).__qualname__,
        "weights": weights.hexdigest(),
        "preprocessing": model.preprocessing.to_json(),
        # They agree to rounding alone, and the same run is to give the same result.
        "decoded by": jdata.libraries(),
        "computed by": f"jax {jax.__version__}, {jax.default_backend()}, {settings.strategy}",
    }
    return json.dumps(recipe, sort_keys=True)
