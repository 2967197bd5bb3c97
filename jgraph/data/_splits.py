"""Which pictures train and which ones check: found in the folder, or drawn per class."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32, Int64

from jgraph._errors import InputError
from jgraph.data._folders import (
    PictureSet,
    check_folder,
    class_folders,
    list_pictures,
    quoted,
    scan,
)

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """The training pictures, and the held-out ones the folder itself provides.

    Args:
        train: pictures to learn from; without a picture where the folder has none of them and the
            classes were given.
        val: pictures to choose settings with, or None.
        test: pictures for the final figure, or None.

    Example:
        >>> import numpy as np
        >>> Splits(PictureSet((), np.zeros(0, np.int32), ("cat", "dog")), None, None).test is None
        True
    """

    train: PictureSet
    val: PictureSet | None
    test: PictureSet | None


def find_splits(folder: str | Path, class_names: Sequence[str] | None = None) -> Splits:
    """Recognise train/ with val/ (valid/, validation/) and test/, in any combination.

    A folder without them is a set of class folders, all of it training pictures. All splits share
    the class ids of the training set.

    Args:
        folder: holds the splits, or the class folders themselves.
        class_names: the classes and their order, for a model that has them already; train/ may then
            be missing. None: the class folders of the training set, sorted.

    Returns:
        The splits that were found.

    Raises:
        InputError: the folder is missing or without pictures, val/ or test/ come without train/,
            a split is there twice under two names, holds pictures without classes, or holds a
            class that the training set lacks.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("train/cat", "train/dog", "test/dog"):
        ...         (Path(folder) / name).mkdir(parents=True)
        ...         Image.new("RGB", (8, 8)).save(Path(folder) / name / "1.png")
        ...     splits = find_splits(folder)
        >>> splits.test.class_names, splits.test.labels.tolist(), splits.val
        (('cat', 'dog'), [1], None)
    """
    folder = check_folder(folder)
    found = split_folders(folder)
    if not found:
        return Splits(scan(folder, class_names), None, None)
    if "train" in found:
        train = scan(found["train"], class_names)
        others = [c for c in class_folders(folder) if c not in found.values()]
        check_others(others)
        train = dataclasses.replace(train, ignored=(*train.ignored, *others))
    elif class_names is not None:
        train = PictureSet((), np.zeros(0, np.int32), tuple(class_names))
    else:
        there = ", ".join(f"{path.name}/" for path in found.values())
        raise InputError(f"{folder} has {there} but no train/; put the training pictures there")
    return Splits(
        train,
        held_out(found.get("val"), train.class_names),
        held_out(found.get("test"), train.class_names),
    )


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders that are splits by their name and hold class folders; {} if none is."""
    children = class_folders(folder)
    found: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        # A folder of pictures called "train" is a class: there are data sets of vehicles.
        there = [c for c in children if c.name.lower() in names and class_folders(c)]
        if len(there) > 1:
            both = " and ".join(f"{path.name}/" for path in there)
            raise InputError(
                f"{folder} has {both}, two names for one set of pictures; keep one of them"
            )
        if there:
            found[split] = there[0]
    others = [child for child in children if child not in found.values()]
    # Without train/, "test" beside other class folders is a class with sub-folders.
    return {} if "train" not in found and others else found


def check_others(others: Sequence[Path]) -> None:
    """Refuse a folder that is called like a split and holds its pictures without classes."""
    split_names = [name for names in SPLIT_NAMES.values() for name in names]
    for folder in others:
        if folder.name.lower() in split_names and list_pictures(folder)[0]:
            raise InputError(
                f"{folder} holds pictures directly, so their classes are unknown; put them into "
                "class folders, or rename the folder"
            )


def held_out(folder: Path | None, class_names: tuple[str, ...]) -> PictureSet | None:
    """Return the pictures of a split that must know no other classes, None without a folder."""
    if folder is None:
        return None
    unknown = [c.name for c in class_folders(folder) if c.name not in class_names]
    if unknown:
        raise InputError(
            f"{folder} has classes the training pictures lack: {quoted(unknown)}; the classes are "
            f"{quoted(class_names)}; rename or remove those folders"
        )
    return scan(folder, class_names)


def stratified_holdout(
    labels: Sequence[int] | Int[np.ndarray, " n"], fraction: float = 0.2, seed: int = 0
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " held"]]:
    """Draw a held-out part of every class.

    Of a class with n pictures, `fraction * n` are held out, rounded to the nearest, at least one,
    and at least two are left, which cross-validation needs: of two pictures none is held out. The
    draw of one class does not depend on the others.

    Args:
        labels: class of each picture, int [N].
        fraction: part to hold out, between 0 and 1.
        seed: chooses the draw, 0 or above.

    Returns:
        Indices of the training and of the held-out pictures, int64, each sorted.

    Raises:
        InputError: `fraction` is not between 0 and 1.

    Example:
        >>> train, held = stratified_holdout([0, 0, 0, 0, 0, 1, 1], fraction=0.2)
        >>> len(train), len(held)
        (6, 1)
    """
    if not 0 < fraction < 1:
        raise InputError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
    labels = np.asarray(labels, np.int64)
    is_held = np.zeros(labels.shape, bool)
    for label in np.unique(labels):
        members = shuffled_members(labels, int(label), seed)
        count = max(1, int(fraction * len(members) + 0.5))
        is_held[members[: max(0, min(count, len(members) - 2))]] = True
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def stratified_folds(
    labels: Sequence[int] | Int[np.ndarray, " n"], folds: int = 5, seed: int = 0
) -> Int32[np.ndarray, " n"]:
    """Deal the pictures of every class evenly onto folds for cross-validation.

    Args:
        labels: class of each picture, int [N].
        folds: number of folds F, at least two.
        seed: chooses the draw, 0 or above.

    Returns:
        Fold of each picture, int32 [N], 0 to F-1; -1 (never held out) for the single picture of a
        class, without which nothing of the class would be left to learn from.

    Raises:
        InputError: there are fewer than two folds.

    Example:
        >>> sorted(stratified_folds([0, 0, 0, 0, 1, 1, 2], folds=2).tolist())
        [-1, 0, 0, 0, 1, 1, 1]
    """
    if folds < 2:
        raise InputError(f"cross-validation needs at least two folds, got {folds}")
    labels = np.asarray(labels, np.int64)
    fold = np.full(labels.shape, -1, np.int32)
    dealt = 0
    for label in np.unique(labels):
        members = shuffled_members(labels, int(label), seed)
        if len(members) > 1:
            # Dealing goes on where the last class ended, so that small classes fill all folds.
            fold[members] = (dealt + np.arange(len(members))) % folds
            dealt += len(members)
    return fold


def shuffled_members(labels: Int64[np.ndarray, " n"], label: int, seed: int) -> np.ndarray:
    """Return the indices of one class in an order drawn from the seed and the class alone."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(label,)))
    return rng.permutation(np.flatnonzero(labels == label))
