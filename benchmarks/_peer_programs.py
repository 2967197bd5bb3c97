"""What other libraries do, as a process of their own Python: `_peer_programs.py NAME JSON`.

Each program is made once from the JSON arguments and prints one line of JSON a turn: the CPU
seconds it took. A turn starts when a line arrives on standard input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

SIZE, SHORT_SIDE = 224, 256

# Expansion, channels, repeats, stride, kernel (arXiv:1905.11946, without squeeze and excitation).
BLOCKS = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def tf_data(files: list[str]) -> Callable[[], float]:
    """Decode pictures as in `decode_picture` by tf.data."""
    batches = _batches(files, [0] * len(files))

    def turn() -> float:
        start = time.process_time()
        for _ in batches:
            pass
        return time.process_time() - start

    return turn


def keras(backend: str, files: list[str], labels: list[int]) -> Callable[[], float]:
    """Train the head of a frozen EfficientNet-Lite0: one epoch a turn, from files."""
    os.environ["KERAS_BACKEND"] = backend
    import keras

    backbone = _lite0(keras)
    backbone.trainable = False
    inputs = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 128, -127 / 128)(inputs)
    outputs = keras.layers.Dense(max(labels) + 1)(backbone(x, training=False))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    batches = _batches(files, labels)

    def turn() -> float:
        start = time.process_time()
        model.fit(batches, epochs=1, verbose=0)
        return time.process_time() - start

    return turn


def _lite0(keras: Any) -> Any:
    layers = keras.layers

    def normalised(x: Any, *, relu: bool = True) -> Any:
        x = layers.BatchNormalization(epsilon=1e-3)(x)
        return layers.ReLU(6.0)(x) if relu else x

    def convolved(x: Any, channels: int, kernel: int = 1, stride: int = 1) -> Any:
        return layers.Conv2D(channels, kernel, stride, padding="same", use_bias=False)(x)

    x = inputs = keras.Input((SIZE, SIZE, 3))
    x = normalised(convolved(x, 32, 3, 2))
    for expansion, channels, repeats, first_stride, kernel in BLOCKS:
        for i in range(repeats):
            stride = first_stride if i == 0 else 1
            y = x if expansion == 1 else normalised(convolved(x, expansion * x.shape[-1]))
            y = layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False)(y)
            y = normalised(convolved(normalised(y), channels), relu=False)
            x = layers.Add()([x, y]) if stride == 1 and x.shape[-1] == channels else y
    x = normalised(convolved(x, 1280))
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))


def _batches(files: list[str], labels: list[int]) -> Any:
    import tensorflow as tf

    def decoded(path: Any, label: Any) -> Any:
        picture = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        size = tf.cast(tf.shape(picture)[:2], tf.float32)
        size = tf.cast(tf.round(size * SHORT_SIDE / tf.reduce_min(size)), tf.int32)
        picture = tf.image.resize(picture, size, "bicubic", antialias=True)
        picture = tf.image.resize_with_crop_or_pad(picture, SIZE, SIZE)
        return tf.cast(tf.clip_by_value(tf.round(picture), 0, 255), tf.uint8), label

    data = tf.data.Dataset.from_tensor_slices((files, labels))
    return data.map(decoded, num_parallel_calls=tf.data.AUTOTUNE).batch(32).prefetch(2)


PROGRAMS: dict[str, Callable[..., Callable[[], Any]]] = {"tf_data": tf_data, "keras": keras}


def main() -> None:
    """Make a program, then take turns until standard input ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries print where they like
    turn = PROGRAMS[sys.argv[1]](**json.loads(sys.argv[2]))
    with os.fdopen(answers, "w") as out:
        for _ in sys.stdin:
            print(json.dumps(turn()), file=out, flush=True)


if __name__ == "__main__":
    main()
