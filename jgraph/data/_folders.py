"""Folders of pictures, one sub-folder per class: found, listed and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32

from jgraph._errors import InputError
from jgraph._suggest import did_you_mean_path
from jgraph.data._decode import PICTURE_EXTENSIONS

LAYOUT = "a folder of pictures holds one sub-folder per class, such as cat/001.jpg and dog/001.jpg"


@dataclasses.dataclass(frozen=True, eq=False)
class PictureSet:
    """Pictures with their classes.

    Args:
        paths: the picture files, N of them.
        labels: class of each picture as an index into `class_names`, int32 [N].
        class_names: names of the K classes.
        ignored: what was found beside the pictures and is not used.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> paths = (Path("cat/1.jpg"), Path("cat/2.jpg"), Path("dog/1.jpg"))
        >>> pictures = PictureSet(paths, np.array([0, 0, 1], np.int32), ("cat", "dog"))
        >>> len(pictures), pictures.counts.tolist()
        (3, [2, 1])
    """

    paths: tuple[Path, ...]
    labels: Int32[np.ndarray, " n"]
    class_names: tuple[str, ...]
    ignored: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def counts(self) -> Int32[np.ndarray, " k"]:
        """Number of pictures of each class, int32 [K]."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int32)

    def subset(self, indices: Sequence[int] | Int[np.ndarray, " m"]) -> PictureSet:
        """Return the pictures at `indices` (int [M]), in that order, with the same classes.

        Example:
            >>> from pathlib import Path
            >>> import numpy as np
            >>> paths = (Path("cat/1.jpg"), Path("dog/1.jpg"))
            >>> pictures = PictureSet(paths, np.array([0, 1], np.int32), ("cat", "dog"))
            >>> pictures.subset([1]).labels.tolist()
            [1]
        """
        chosen = np.asarray(indices, np.int64)
        paths = tuple(self.paths[i] for i in chosen)
        return PictureSet(paths, self.labels[chosen], self.class_names)


def scan(folder: str | Path, class_names: Sequence[str] | None = None) -> PictureSet:
    """List the pictures of `folder`, whose sub-folders are the classes.

    Sub-folders of a class folder belong to the class, links are followed, hidden files and folders
    are passed over. The order is that of the sorted names, on every machine.

    Args:
        folder: holds one sub-folder per class.
        class_names: the classes and their order; None: the sub-folders, sorted.

    Returns:
        The N pictures with int32 labels [N]. Files of other kinds are in `ignored`.

    Raises:
        InputError: `folder` is missing, is not a folder, holds no picture, or holds pictures of
            classes that are not in `class_names`.

    Source:
        The layout of `torchvision.datasets.ImageFolder`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         (Path(folder) / name).mkdir()
        ...         Image.new("RGB", (8, 8)).save(Path(folder) / name / "1.png")
        ...     scan(folder).class_names
        ('cat', 'dog')
    """
    folder = check_folder(folder)
    found = {child.name: list_pictures(child) for child in class_folders(folder)}
    names = tuple(found) if class_names is None else tuple(class_names)
    unknown = [name for name, (paths, _) in found.items() if paths and name not in names]
    if unknown:
        raise InputError(
            f"{folder} holds classes the model was not trained on: {quoted(unknown)}; its classes "
            f"are {quoted(names)}; rename or remove those folders"
        )
    paths = [(path, i) for i, name in enumerate(names) for path in found.get(name, ((), ()))[0]]
    loose = [child for child in visible_children(folder) if not child.is_dir()]
    if not paths:
        raise InputError(no_pictures(folder, [path for path in loose if is_picture_name(path)]))
    ignored = [path for _, others in found.values() for path in others]
    return PictureSet(
        tuple(path for path, _ in paths),
        np.array([label for _, label in paths], np.int32),
        names,
        tuple(loose + ignored),
    )


def check_trainable(pictures: PictureSet) -> None:
    """Refuse a set that nothing can be learned from.

    Args:
        pictures: the training set.

    Raises:
        InputError: there is one class only, or a class has fewer than two pictures (one to learn
            from, one to check with).

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> check_trainable(PictureSet((Path("cat/1.jpg"),), np.array([0], np.int32), ("cat",)))
        Traceback (most recent call last):
        ...
        jgraph._errors.InputError: training needs at least two classes, got one ('cat'); ...
    """
    if len(pictures.class_names) < 2:
        raise InputError(
            f"training needs at least two classes, got one ({quoted(pictures.class_names)}); "
            + LAYOUT
        )
    few = [
        f"'{name}' has {count}"
        for name, count in zip(pictures.class_names, pictures.counts.tolist(), strict=True)
        if count < 2
    ]
    if few:
        raise InputError(
            f"every class needs at least two pictures, one to learn from and one to check with; "
            f"{', '.join(few)}; add pictures or remove the folder"
        )


def check_folder(folder: str | Path) -> Path:
    """Return `folder` as a path, or refuse with the name that was probably meant."""
    folder = Path(folder).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{folder} is a file; {LAYOUT}")
    raise InputError(f"there is no folder {folder}{did_you_mean_path(folder)}")


def class_folders(folder: Path) -> list[Path]:
    """Return the visible sub-folders, sorted by name."""
    return [child for child in visible_children(folder) if child.is_dir()]


def visible_children(folder: Path) -> list[Path]:
    """Return what lies in `folder` and was put there by the person, sorted by name."""
    # macOS adds __MACOSX to archives: copies of every name, none of them a picture.
    return sorted(
        child
        for child in folder.iterdir()
        if not child.name.startswith(".") and child.name != "__MACOSX"
    )


def is_picture_name(path: Path) -> bool:
    """Whether the file's name is that of a picture."""
    return path.suffix.lower() in PICTURE_EXTENSIONS


def list_pictures(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the pictures and the other files below a folder, each sorted.

    Links are followed; hidden files and folders are passed over.

    Args:
        folder: any folder.

    Returns:
        The files whose names end like a picture's, and all others.
    """
    files = sorted(walk(folder, ()))
    # A pipe called x.jpg would block whoever reads it; a broken link is a broken picture.
    usable = [p for p in files if is_picture_name(p) and (p.is_file() or not p.exists())]
    return tuple(usable), tuple(path for path in files if path not in set(usable))


def walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files below `folder`; a link back to a folder above is not followed again."""
    real = folder.resolve()
    if real in above:
        return
    for child in visible_children(folder):
        if child.is_dir():
            yield from walk(child, (*above, real))
        else:
            yield child


def no_pictures(folder: Path, loose: list[Path]) -> str:
    """Return the message for a folder without a picture in any class."""
    if loose:
        return (
            f"{folder} holds {len(loose)} pictures directly, such as {loose[0].name}, and no class "
            f"folders; {LAYOUT}"
        )
    endings = ", ".join(PICTURE_EXTENSIONS)
    return f"there are no pictures ({endings}) in {folder}; {LAYOUT}"


def quoted(names: Sequence[str]) -> str:
    """Return the names in quotes, cut after ten."""
    shown = ", ".join(f"'{name}'" for name in names[:10])
    return shown if len(names) <= 10 else f"{shown}, … ({len(names)} in all)"
