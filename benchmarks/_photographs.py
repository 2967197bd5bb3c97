"""JPEGs of 500x375 pixels, as common data sets have them, from photographs of scikit-image."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("chelsea.png", "coffee.png", "motorcycle_left.png")  # a cat, a cup, a motorcycle
SIZE, QUALITY = (500, 375), 90


def write(folder: Path, count: int) -> tuple[list[str], list[int]]:
    """Write pictures, parts of the photographs, into a folder for each class.

    Returns:
        The files and their classes.

    Raises:
        RuntimeError: scikit-image isn't installed.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise RuntimeError("this needs photographs: pip install '.[demo]'")
    rng = np.random.default_rng(0)
    originals = [Image.open(Path(spec.origin).parent / "data" / n).convert("RGB") for n in NAMES]
    files, labels = [], []
    for i in range(count):
        label = i % len(NAMES)
        photograph = originals[label]
        width = rng.uniform(0.85, 1) * min(photograph.width, photograph.height * 4 / 3)
        left = rng.uniform(0, photograph.width - width)
        top = rng.uniform(0, photograph.height - width * 3 / 4)
        box = (left, top, left + width, top + width * 3 / 4)
        path = folder / Path(NAMES[label]).stem / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.resize(SIZE, Image.Resampling.LANCZOS, box).save(path, quality=QUALITY)
        files.append(str(path))
        labels.append(label)
    return files, labels
