"""What the peers' networks hold and compute: tests/parity/make_*_networks.py wrote it down."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.network_fill import fill

NETWORKS = Path(__file__).parents[1] / "data" / "networks"
LAYOUTS = (
    *("inception_v3-torchvision", "resnet50-torchvision", "mobilenet_v2-torchvision"),
    *("inception_v3-timm", "resnet50-timm", "mobilenet_v2-timm"),
    *("inception_v3-keras", "resnet50-keras", "mobilenet_v2-keras"),
)
_TORCH_KINDS: dict[str, str] = {"weight": "kernel", "running_mean": "mean", "running_var": "var"}
_KERAS_KINDS: dict[str, str] = {
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
}


@functools.cache
def described(layout: str) -> dict[str, Any]:
    """Return the names and shapes of a peer's tensors, and how many parameters it has."""
    return json.loads((NETWORKS / f"{layout}.json").read_text())


def expected(layout: str) -> dict[str, np.ndarray]:
    """Return what a peer computes with the weights of network_fill.py."""
    with np.load(NETWORKS / f"{layout}.npz") as file:
        return dict(file)


def torch_tensors(layout: str) -> dict[str, np.ndarray]:
    """Return a state dict as the peer was given it."""
    tensors = {}
    for name, (shape, _) in described(layout)["tensors"].items():
        path, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            tensors[name] = np.array(0)
            continue
        kind = _TORCH_KINDS.get(leaf) or leaf
        if leaf == "weight" and f"{path}.running_mean" in described(layout)["tensors"]:
            kind = "scale"
        tensors[name] = fill(name, kind, tuple(shape), int(np.prod(shape[1:])))
    return tensors


def keras_layers(layout: str) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield the layers of a .h5 file in its order, and their weights by the names in the file."""
    for layer, weights in described(layout)["h5"].items():
        arrays = {}
        for name, (shape, _) in weights.items():
            leaf = name.split("/")[-1]
            fan_in = int(np.prod(shape[:2] if "depthwise" in layer else shape[:-1]))
            kind = _KERAS_KINDS.get(leaf) or leaf
            arrays[name] = fill(f"{layer}/{leaf}", kind, tuple(shape), fan_in)
        yield layer, arrays


def keras_tensors(layout: str) -> dict[str, np.ndarray]:
    """Return the weights of a .h5 file by the names that the reader gives them."""
    return {
        f"{layer}/{name.split('/')[-1]}": array
        for layer, arrays in keras_layers(layout)
        for name, array in arrays.items()
    }
