"""The embedded default: tiles of real photographs that come with scikit-image."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import secrets
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from jgraph._errors import InputError

DEMO_NAME = "jgraph-demo-1"
"""Name of the demo pictures with the number of their recipe; a good name for their folder."""

TRAIN_TILES, TEST_TILES = 20, 12
SMALLEST, LARGEST = 64, 128  # pixels per side of a tile
TRAIN_SHARE, GAP = 0.58, 16  # part of the photograph to train on; pixels that no tile shows


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photograph of scikit-image, and what its documentation says about it.

    Args:
        class_name: what the tiles are called.
        file: name in scikit-image's data folder.
        shows: what there is to see.
        licence: on which terms it may be used.
        source: where scikit-image has it from.
        axis: along which the parts lie: 0 one above the other, 1 side by side.
        test_first: whether the top or left part is the one to test on.
        margin: pixels to leave out on all sides.
    """

    class_name: str
    file: str
    shows: str
    licence: str
    source: str
    axis: int = 1
    test_first: bool = False
    margin: int = 0


CC0, UNRESTRICTED = "CC0 1.0", "no known copyright restrictions"

PHOTOGRAPHS = (
    Photograph("brick", "brick.png", "a brick wall", CC0, "CC0Textures, Bricks25"),
    # The right side is half background, which nobody would call a cat.
    Photograph(
        "cat", "chelsea.png", "Chelsea the cat", CC0, "Stefan van der Walt", test_first=True
    ),
    # Cup above, saucer and spoon below; side by side, one part would be a table.
    Photograph(
        "coffee",
        "coffee.png",
        "a cup of espresso",
        CC0,
        "Rachel Michetti, courtesy of Pikolo Espresso Bar",
        axis=0,
    ),
    Photograph(
        "coins",
        "coins.png",
        "Greek coins from Pompeii",
        UNRESTRICTED,
        "Brooklyn Museum Collection, image 51611",
    ),
    Photograph(
        "galaxies",
        "hubble_deep_field.jpg",
        "the Hubble eXtreme Deep Field",
        "public domain",
        "NASA, HubbleSite release 2012-37",
    ),
    Photograph("grass", "grass.png", "a lawn", CC0, "DeviantArt, linolafett, Grass 01"),
    Photograph("gravel", "gravel.png", "gravel", CC0, "CC0Textures, Gravel04"),
    # The largest square inside the round picture: the corners are plain black.
    Photograph(
        "retina",
        "retina.jpg",
        "the back of a human eye",
        CC0,
        "Mikael Häggström, Wikimedia Commons",
        margin=210,
    ),
    Photograph(
        "tissue",
        "ihc.png",
        "stained glands of the colon",
        UNRESTRICTED,
        "Center for Microscopy and Molecular Imaging (CMMI)",
    ),
)


def write_demo(folder: str | Path) -> Path:
    """Write the demo pictures as an ordinary folder, once.

    Nine classes, each cut from one photograph: `train/CLASS/NN.jpg` from one part of it and
    `test/CLASS/NN.jpg` from another, a gap between, so that no pixel is in both. README.md beside
    them states source and licence of each photograph. The folder appears whole or not at all.

    Args:
        folder: where; nothing is done if the demo pictures are there already.

    Returns:
        The folder.

    Raises:
        InputError: scikit-image is not installed, or `folder` holds something else.

    Source:
        The photographs of `skimage.data`, with the licences its documentation states.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     folder = write_demo(Path(parent) / DEMO_NAME)
        ...     sorted(path.name for path in (folder / "test").iterdir())[:3]
        ['brick', 'cat', 'coffee']
    """
    folder = Path(folder).expanduser()
    if is_demo(folder):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} is there and does not hold the pictures of {DEMO_NAME}; "
            "name another folder or remove it"
        )
    files = photograph_files()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        for number, photograph in enumerate(PHOTOGRAPHS):
            write_tiles(draft, photograph, files[number], np.random.default_rng(number))
        (draft / "README.md").write_text(readme(), encoding="utf-8")
        publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def is_demo(folder: Path) -> bool:
    """Whether the folder holds the demo pictures of this recipe."""
    # A cleaner of caches may have taken some of the tiles and left the rest.
    tiles = len(PHOTOGRAPHS) * (TRAIN_TILES + TEST_TILES)
    if sum(1 for _ in folder.glob("*/*/*.jpg")) != tiles:
        return False
    readme_file = folder / "README.md"
    return readme_file.is_file() and readme_file.read_text("utf-8").startswith(f"# {DEMO_NAME}\n")


def publish(draft: Path, folder: Path) -> None:
    """Move the finished draft to its place, unless another process was first."""
    try:
        os.replace(draft, folder)
    except OSError:
        if not is_demo(folder):
            raise


def photograph_files() -> list[Path]:
    """Return the files of the photographs in the installed scikit-image, which is not imported."""
    folders = [
        Path(place) / "data"
        for package in ("skimage", "_skimage2")  # later versions keep the data in the second
        if (spec := importlib.util.find_spec(package)) is not None
        for place in spec.submodule_search_locations or ()
    ]
    return [photograph_file(photograph.file, folders) for photograph in PHOTOGRAPHS]


def photograph_file(name: str, folders: list[Path]) -> Path:
    """Return the photograph in the first folder that has it."""
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"the demo pictures are cut from photographs of scikit-image, and {name} is not there; "
        "run pip install 'jgraph[demo]', or name a folder of your own pictures"
    )


def write_tiles(folder: Path, photograph: Photograph, file: Path, rng: np.random.Generator) -> None:
    """Write the tiles of one photograph below train/ and test/."""
    with Image.open(file) as picture:
        pixels = np.asarray(picture)
    train, test = parts(photograph, pixels)
    for split, part, count in (("train", train, TRAIN_TILES), ("test", test, TEST_TILES)):
        place = folder / split / photograph.class_name
        place.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(random_tile(part, rng)).save(place / f"{number:02}.jpg", quality=90)


def parts(photograph: Photograph, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the part to train on and the part to test on, a gap between them."""
    inner = np.s_[photograph.margin : -photograph.margin or None]
    pixels = pixels[inner, inner]
    along = np.moveaxis(pixels, photograph.axis, 0)
    if photograph.test_first:
        along = along[::-1]
    end = round((len(along) - GAP) * TRAIN_SHARE)
    two = along[:end], along[end + GAP :]
    if photograph.test_first:
        two = two[0][::-1], two[1][::-1]
    train, test = (np.moveaxis(part, 0, photograph.axis) for part in two)
    return train, test


def random_tile(part: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a square of the part at its own resolution."""
    height, width = part.shape[:2]
    side = int(rng.integers(SMALLEST, min(LARGEST, height, width), endpoint=True))
    top = int(rng.integers(height - side, endpoint=True))
    left = int(rng.integers(width - side, endpoint=True))
    return np.ascontiguousarray(part[top : top + side, left : left + side])


def readme() -> str:
    """Return the text that states where the pictures are from."""
    rows = "\n".join(
        f"| {p.class_name} | {p.file} | {p.shows} | {p.source} | {p.licence} |" for p in PHOTOGRAPHS
    )
    return f"""# {DEMO_NAME}

Tiles of photographs that come with scikit-image, written by `jgraph.data.write_demo`:
{TRAIN_TILES} a class in train/, {TEST_TILES} in test/, {SMALLEST} to {LARGEST} pixels a side.
The tiles in train/ are from one part of each photograph, those in test/ from another, with {GAP}
pixels between. Tiles of one part may overlap.
Licences as the documentation of `skimage.data` states them.

| class | photograph | shows | source | licence |
|---|---|---|---|---|
{rows}
"""
