"""The pictures of a run: which ones train, which ones check, and their features."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64

from jgraph._errors import PictureError
from jgraph._finetune._console import Console
from jgraph._finetune._features import embed
from jgraph._finetune._settings import BATCH_SIZE, Settings
from jgraph.data import (
    PictureSet,
    Splits,
    check_trainable,
    stratified_folds,
    stratified_holdout,
)
from jgraph.debug import compiled_mode
from jgraph.models import Classifier
from jgraph.train import LogisticFit, balanced_weights, fit_logistic

# Below this a fifth is too few to measure with and too many to lose.
SMALLEST_TO_HOLD_OUT = 50
HELD_OUT_FRACTION = 0.2
FOLDS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """All pictures that could be read, with their features and their roles.

    Args:
        paths: N files.
        labels: int32 `[N]`.
        class_names: K names.
        roles: `[N]` of "train", "val", "held-out" and "test".
        features: unit-length features, float32 `[N, D]`.
        skipped: files that could not be read, with the reason.
    """

    paths: tuple[Path, ...]
    labels: Int32[np.ndarray, " n"]
    class_names: tuple[str, ...]
    roles: np.ndarray
    features: Float[np.ndarray, "n d"]
    skipped: dict[str, str]

    def rows(self, role: str) -> Bool[np.ndarray, " n"]:
        """Return which pictures have the role, bool `[N]`."""
        return self.roles == role

    def has(self, role: str) -> bool:
        """Return whether any picture has the role."""
        return bool(self.rows(role).any())

    def pictures_of(self, rows: Bool[np.ndarray, " n"]) -> PictureSet:
        """Return the chosen pictures."""
        chosen = np.flatnonzero(rows)
        paths = tuple(self.paths[i] for i in chosen)
        return PictureSet(paths, self.labels[chosen], self.class_names)

    @property
    def headline(self) -> str | None:
        """The set whose accuracy is the run's: the most independent one; None: none but train."""
        return next((role for role in ("test", "val", "held-out") if self.has(role)), None)

    @property
    def monitor(self) -> str | None:
        """The set that decides between head and fine-tuned network; never the test set."""
        return next((role for role in ("val", "held-out") if self.has(role)), None)

    @property
    def weights(self) -> Float[np.ndarray, " n"]:
        """What each training picture counts, classes balanced where lopsided; 1 for all others."""
        train = self.rows("train")
        weights = np.ones(self.labels.shape, np.float32)
        weights[train] = balanced_weights(self.labels[train], len(self.class_names))
        return weights

    def fit_head(self, rows: Bool[np.ndarray, " n"], **arguments: Any) -> LogisticFit:
        """Fit the head to the features of the chosen pictures, arguments as in `fit_logistic`."""
        # With jit even to debug: the network is what a person steps through, this takes minutes.
        with compiled_mode():
            return fit_logistic(
                self.features[rows],
                self.labels[rows],
                len(self.class_names),
                weights_N=self.weights[rows],
                **arguments,
            )

    def folds(self, seed: int) -> Int32[np.ndarray, " n"]:
        """Return the cross-validation fold of each training picture, -1 for all others."""
        train = self.rows("train")
        folds = np.full(self.labels.shape, -1, np.int32)
        folds[train] = stratified_folds(self.labels[train], FOLDS, seed)
        return folds


def gather(model: Classifier, splits: Splits, settings: Settings, console: Console) -> Corpus:
    """Get every picture's features, leave out what can't be read, and give out the roles.

    Raises:
        PictureError: a file can't be read and the settings say stop, or none can be read.
        InputError: too few readable pictures to train on.
    """
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    found = {role: part for role, part in parts.items() if part is not None}
    paths = tuple(path for part in found.values() for path in part.paths)
    labels = np.concatenate([part.labels for part in found.values()])
    roles = np.repeat(list(found), [len(part) for part in found.values()]).astype("<U8")
    if settings.batch_size > len(paths) and settings.batch_size != BATCH_SIZE:
        console.notice(
            f"the batch size {settings.batch_size} is more than the {len(paths)} pictures; "
            f"{len(paths)} is used"
        )
    features, good, bad = embed(model, paths, settings, console)
    skipped = {str(paths[i]): reason for i, reason in sorted(bad.items())}
    for reason in skipped.values():
        console.notice(f"left out: {reason}")
    if not good.any():
        raise PictureError(f"none of the {len(paths)} pictures can be read")
    corpus = Corpus(
        tuple(path for path, is_good in zip(paths, good, strict=True) if is_good),
        labels[good],
        splits.train.class_names,
        roles[good],
        features[good],
        skipped,
    )
    check_trainable(corpus.pictures_of(corpus.rows("train")))
    train = np.flatnonzero(corpus.rows("train"))
    given = {role for role in ("val", "test") if corpus.has(role)}
    if holds_out(given, train.size, settings):
        return _hold_out(corpus, train, settings)
    if holds_out(given, len(splits.train), settings):
        console.notice(
            f"only {train.size} training pictures can be read, fewer than {SMALLEST_TO_HOLD_OUT}: "
            "none is held out, cross-validation measures"
        )
    return corpus


def holds_out(given: Collection[str], train: int, settings: Settings) -> bool:
    """Return whether a fifth of `train` pictures is held out: where no `given` set can answer.

    Which network is best is never asked of the test set.
    """
    answered = "val" in given or ("test" in given and settings.unfreeze == "none")
    return not answered and train >= SMALLEST_TO_HOLD_OUT


def _hold_out(corpus: Corpus, train: Int64[np.ndarray, " m"], settings: Settings) -> Corpus:
    """Hold out a fifth of every class of the pictures at the indices `train`."""
    _, held = stratified_holdout(corpus.labels[train], HELD_OUT_FRACTION, settings.seed)
    roles = corpus.roles.copy()
    roles[train[held]] = "held-out"
    return dataclasses.replace(corpus, roles=roles)
