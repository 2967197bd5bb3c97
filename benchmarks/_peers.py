"""The networks of `benchmarks.dispatch` and `.loop` in other libraries, where installed."""

from __future__ import annotations

import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Step = Callable[[np.ndarray, np.ndarray], Any]


def steps(layers: int, width: int) -> Iterator[tuple[str, Step]]:
    """Yield (name, a train step on two arrays) of each library there is."""
    for name, needs, build in (
        ("torch, eager", "torch", _torch),  # before TensorFlow, or it crashes
        ("Keras 3 on JAX, train_on_batch", "keras", _keras),
        ("tf.function", "tensorflow", _tensorflow),
    ):
        if importlib.util.find_spec(needs) is not None:
            yield name, build(layers, width)


def _keras(layers: int, width: int) -> Step:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    x = inputs = keras.Input((width,))
    for _ in range(layers):
        x = keras.layers.Add()([x, keras.ops.tanh(keras.layers.Dense(width)(x)) * 0.1])
    model = keras.Model(inputs, x)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    return model.train_on_batch


def _tensorflow(layers: int, width: int) -> Step:
    import tensorflow as tf

    kernels = [tf.Variable(tf.random.normal((width, width)) / width) for _ in range(layers)]
    biases = [tf.Variable(tf.zeros(width)) for _ in range(layers)]
    variables = [*kernels, *biases]
    means = [tf.Variable(tf.zeros_like(v)) for v in variables]
    squares = [tf.Variable(tf.zeros_like(v)) for v in variables]
    count = tf.Variable(0.0)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            for kernel, bias in zip(kernels, biases, strict=True):
                x = x + 0.1 * tf.tanh(x @ kernel + bias)
            loss = tf.reduce_mean((x - y) ** 2)
        count.assign_add(1.0)
        for v, m, s, g in zip(
            variables, means, squares, tape.gradient(loss, variables), strict=True
        ):
            m.assign(0.9 * m + 0.1 * g)
            s.assign(0.999 * s + 0.001 * g * g)
            rate = 1e-3 * tf.sqrt(1 - 0.999**count) / (1 - 0.9**count)
            v.assign_sub(rate * m / (tf.sqrt(s) + 1e-8))
        return loss

    return lambda x, y: step(x, y).numpy()


def _torch(layers: int, width: int) -> Step:
    import torch

    linears = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))
    optimizer = torch.optim.Adam(linears.parameters(), 1e-3)

    def step(x: np.ndarray, y: np.ndarray) -> float:
        z = torch.from_numpy(x)
        for linear in linears:
            z = z + 0.1 * torch.tanh(linear(z))
        loss = ((z - torch.from_numpy(y)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def keras_fit() -> Callable[..., Callable[[int], float]] | None:
    """Return `build(layers, width, rate, batches)`, which gives `turn(steps) -> seconds`."""
    if importlib.util.find_spec("keras") is None:
        return None
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, *_: Any) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, *_: Any) -> None:
            self.seconds = time.perf_counter() - self.start

    def build(layers: int, width: int, rate: float, batches: list[Any]) -> Callable[[int], float]:
        x = inputs = keras.Input((width,))
        for i in range(layers):
            x = keras.layers.Dense(width, activation="relu" if i < layers - 1 else None)(x)
        model = keras.Model(inputs, x)
        model.compile(keras.optimizers.Adam(rate), "mse")
        clock, pairs = Clock(), [(batch["x"], batch["y"]) for batch in batches]

        def turn(steps: int) -> float:
            # What fit does before an epoch and after it isn't counted; the wait for numbers is.
            data = (pair for pair in itertools.cycle(pairs))  # fit takes no other iterator
            model.fit(data, steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=[clock])
            return clock.seconds

        return turn

    return build
