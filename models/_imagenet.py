"""The names of ImageNet's thousand classes."""

from __future__ import annotations

import functools
import importlib.resources

from jgraph._preprocessing import Preprocessing


@functools.cache
def imagenet_class_names() -> tuple[str, ...]:
    """Return the names of the 1000 classes of ILSVRC-2012, in the order of their ids.

    Returns:
        One short, distinct English name per class.

    Source:
        torchvision's list; see imagenet_classes.md beside the file.

    Example:
        >>> imagenet_class_names()[281]
        'tabby'
    """
    file = importlib.resources.files("jgraph.models") / "imagenet_classes.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())


def torchvision_preprocessing(image_size: int, resize_size: int) -> Preprocessing:
    """Return how torchvision prepares pictures: mean and deviation of ImageNet's colours.

    Source:
        `ImageClassification` of torchvision.transforms._presets, times 255.
    """
    return Preprocessing(
        image_size=image_size,
        resize_size=resize_size,
        interpolation="bilinear",
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    )


def symmetric_preprocessing(image_size: int, resize_size: int) -> Preprocessing:
    """Return how TensorFlow's MobileNet and Inception see pictures: between -1 and 1.

    Source:
        `preprocess_input` of keras.applications.imagenet_utils, mode "tf". Keras says nothing of
        the crop; TF-Slim, where these weights come from, takes seven eighths of the picture.
    """
    return Preprocessing(
        image_size=image_size,
        resize_size=resize_size,
        interpolation="bilinear",
        mean=(127.5, 127.5, 127.5),
        std=(127.5, 127.5, 127.5),
    )
