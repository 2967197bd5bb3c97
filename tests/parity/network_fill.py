"""Weights that every library makes alike: drawn by the name and shape of each tensor.

`numpy.random.RandomState` is frozen: its numbers are the same in every version of NumPy.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

PICTURES = (2, 97, 128, 3)
"""An odd height and an even width: both ways to pad at stride 2."""
LARGE_PICTURES = (2, 299, 299, 3)
"""Of Inception V3: its second head needs them, and its statistics in float32.

Of `PICTURES` its last normalisations see four numbers each, and a training step's rounding in
float32 grows to 1e-3: torch's own is 5e-4 from its float64.
"""
CLASSES = 10


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return normal numbers, float32, that depend on the name alone."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return random.standard_normal(shape).astype(np.float32)


def fill(name: str, kind: str, shape: tuple[int, ...], fan_in: int = 1) -> np.ndarray:
    """Return a tensor for a layer, such that activations neither vanish nor explode.

    Args:
        name: of the tensor, in its library.
        kind: "kernel" (He's spread), "scale" and "var" (about 1, positive), "bias" or "mean".
        shape: in its library.
        fan_in: numbers that one output of a kernel is summed of.
    """
    values = draw(name, shape)
    if kind == "kernel":
        return values * np.float32(math.sqrt(2 / fan_in))
    if kind in ("scale", "var"):
        return 1 + np.float32(0.3) * np.tanh(values)
    return np.float32(0.1) * values


def pictures(seed: str = "pictures", shape: tuple[int, ...] = PICTURES) -> np.ndarray:
    """Return normalised pictures, NHWC and RGB, float32."""
    return draw(seed, shape)


def probe(name: str, gradient: np.ndarray) -> np.ndarray:
    """Return what stands for a gradient: its length and its product with numbers of its own."""
    flat = gradient.astype(np.float64).ravel()
    other = draw(f"probe {name}", (flat.size,)).astype(np.float64)
    return np.array([np.linalg.norm(flat), flat @ other])
