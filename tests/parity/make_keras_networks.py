"""The recipe of tests/data/networks/*-keras.*: the networks of keras.applications.

    python -m venv peers && . peers/bin/activate
    pip install keras==3.15.1 tensorflow-cpu==2.21.0 h5py
    export PYTHONPATH=. KERAS_BACKEND=tensorflow
    python tests/parity/make_keras_networks.py tests/data/networks FOLDER

For each network: a .json with the names, shapes and types of its weights in both formats and its
number of parameters, and a .npz with what it computes with the weights of network_fill.py, in
float64. In FOLDER, the weights as Keras writes them, for compare_networks.py. A small file of each
format, with a layer of every kind, is in tests/data/keras_files.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportIndexIssue=false
# The reference libraries are in no extra of jgraph.

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]

from tests.parity.network_fill import CLASSES, LARGE_PICTURES, PICTURES, fill, pictures, probe

NETWORKS = {
    "inception_v3": keras.applications.InceptionV3,
    "resnet50": keras.applications.ResNet50,
    "mobilenet_v2": keras.applications.MobileNetV2,
}
KINDS = {
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
}


def make(name: str, dtype: str, shape: tuple[int, ...] = PICTURES) -> keras.Model:
    """Return the network with its weights, as in a new process: layers are counted from 0."""
    keras.backend.clear_session()
    keras.config.set_floatx(dtype)
    model = NETWORKS[name](
        weights=None, classes=CLASSES, input_shape=shape[1:], classifier_activation=None
    )
    for layer in model.layers:
        for weight in layer.weights:
            shape = tuple(weight.shape)
            fan_in = int(np.prod(shape[:2] if "depthwise" in layer.name else shape[:-1]))
            kind = KINDS.get(weight.name, weight.name)
            weight.assign(fill(f"{layer.name}/{weight.name}", kind, shape, fan_in))
    return model


def names(variables: list, layers: dict[int, str]) -> list[str]:
    return [f"{layers[id(v)]}/{v.name}" for v in variables]


def reference(name: str) -> dict[str, np.ndarray]:
    model = make(name, "float64")
    layers = {id(v): layer.name for layer in model.layers for v in layer.weights}
    x = pictures().astype(np.float64)
    if name == "resnet50":
        x = x[..., ::-1]  # it takes blue first; our pictures are RGB
    features = keras.Model(model.inputs, model.layers[-2].output)
    found = {
        "logits": np.asarray(model(x, training=False)),
        "features": np.asarray(features(x, training=False))[:, :32],
    }
    with tf.GradientTape() as tape:
        logits = model(x, training=True)
        loss = tf.reduce_mean(tf.square(logits))
    variables = [v.value for v in model.trainable_variables]
    gradients = tape.gradient(loss, variables)
    named = zip(names(model.trainable_variables, layers), gradients, strict=True)
    found["train_logits"] = np.asarray(logits)
    found["gradients"] = np.stack(
        [probe(n, np.asarray(g)) for n, g in sorted(named, key=lambda i: i[0])]
    )
    moved = [v for v in model.non_trainable_variables if v.name.startswith("moving_")]
    state = zip(names(moved, layers), moved, strict=True)
    found["statistics"] = np.stack(
        [probe(n, np.asarray(v)) for n, v in sorted(state, key=lambda i: i[0])]
    )
    return found


def h5_names(path: Path) -> dict[str, Any]:
    """Return the layers of a .h5 file in their order, with their arrays."""
    with h5py.File(path) as file:
        root: Any = file.get("model_weights", file)
        layers = {}
        for layer in root.attrs["layer_names"]:
            group = root[layer]
            weights = [
                w.decode() if isinstance(w, bytes) else w for w in group.attrs["weight_names"]
            ]
            if weights:
                layers[layer.decode() if isinstance(layer, bytes) else layer] = {
                    w: [list(group[w].shape), str(group[w].dtype)] for w in weights
                }
        return layers


def v3_names(path: Path) -> dict[str, Any]:
    found = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = [list(item.shape), str(item.dtype)]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def small() -> keras.Model:
    """Return a model with every kind of layer that our networks have, and one of each trap."""
    keras.backend.clear_session()
    keras.config.set_floatx("float32")
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(4, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, use_bias=False, name="own_name"),
            layers.BatchNormalization(scale=False),
            layers.Dropout(0.5),
            layers.Conv2D(2, 1),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, name="predictions"),
        ]
    )
    for layer in model.layers:
        for weight in layer.weights:
            if weight.dtype == "float32":
                weight.assign(fill(f"{layer.name}/{weight.name}", "bias", tuple(weight.shape)))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def main(folder: Path, whole: Path) -> None:
    for path in (folder, whole, folder.parent / "keras_files"):
        path.mkdir(exist_ok=True)
    for name in NETWORKS:
        model = make(name, "float32")
        for ending in (".h5", ".weights.h5", ".keras"):
            path = whole / f"{name}-keras{ending}"
            model.save_weights(path) if ending == ".weights.h5" else model.save(path)
        described = {
            "parameters": sum(int(np.prod(v.shape)) for v in model.trainable_variables),
            "h5": h5_names(whole / f"{name}-keras.h5"),
            "v3": v3_names(whole / f"{name}-keras.weights.h5"),
        }
        (folder / f"{name}-keras.json").write_text(json.dumps(described) + "\n")
        found = reference(name)
        if name == "inception_v3":
            model = make(name, "float64", LARGE_PICTURES)
            x = pictures("large", LARGE_PICTURES).astype(np.float64)
            found["large_train_logits"] = np.asarray(model(x, training=True))
        np.savez_compressed(folder / f"{name}-keras.npz", **found)
        print(name, described["parameters"], float(np.abs(found["logits"]).max()))
    model = small()
    model.save(folder.parent / "keras_files" / "small.h5")
    model.save(folder.parent / "keras_files" / "small.keras")
    model.save_weights(folder.parent / "keras_files" / "small.weights.h5")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
