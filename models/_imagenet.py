"""The names of ImageNet's thousand classes."""

from __future__ import annotations

import functools
import importlib.resources


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
