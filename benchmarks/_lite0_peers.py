"""EfficientNet-Lite0 in other libraries, where installed: train steps and forward calls."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jgraph.models import EfficientNetLiteConfig

Step = Callable[[np.ndarray, np.ndarray], Any]
Forward = Callable[[np.ndarray], Any]

_CONFIG = EfficientNetLiteConfig.lite0()
_EPSILON, _KEPT = 1e-3, 0.99  # of BatchNorm


def train_steps(classes: int) -> Iterator[tuple[str, Step]]:
    """Yield (name, a step with momentum on pictures and labels) of each library there is."""
    if importlib.util.find_spec("torch") is not None:  # before TensorFlow, or it crashes
        yield "torch, channels_last", _torch_step(classes)
    if importlib.util.find_spec("keras") is not None:
        yield "Keras 3 on JAX, train_on_batch", _keras_model(classes, None).train_on_batch


def forwards(classes: int, size: int) -> Iterator[tuple[str, Forward]]:
    """Yield (name, the call on pictures in eval mode) of each library there is."""
    if importlib.util.find_spec("torch") is not None:
        yield "torch, channels_last", _torch_forward(classes)
    if importlib.util.find_spec("keras") is not None:
        yield "Keras 3 on JAX, predict_on_batch", _keras_model(classes, size).predict_on_batch
    if importlib.util.find_spec("tensorflow") is not None:
        yield "tf.function", _tensorflow_forward(classes)


def _keras_model(classes: int, size: int | None) -> Any:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    from keras import layers

    def norm(x: Any, *, relu: bool = True) -> Any:
        x = layers.BatchNormalization(momentum=_KEPT, epsilon=_EPSILON)(x)
        return layers.ReLU(6.0)(x) if relu else x

    def conv(x: Any, channels: int, window: int = 1, stride: int = 1) -> Any:
        options = {"padding": "same", "use_bias": False}
        return layers.Conv2D(channels, window, stride, **options)(x)

    x = inputs = keras.Input((size, size, 3))
    x = norm(conv(x, 32, 3, 2))
    for spec in _CONFIG.blocks:
        y = x
        if spec.expansion != 1:
            y = norm(conv(y, spec.in_channels * spec.expansion))
        options = {"padding": "same", "use_bias": False}
        y = norm(layers.DepthwiseConv2D(spec.kernel_size, spec.stride, **options)(y))
        y = norm(conv(y, spec.out_channels), relu=False)
        x = layers.Add()([x, y]) if spec.has_skip else y
    x = layers.GlobalAveragePooling2D()(norm(conv(x, _CONFIG.feature_size)))
    model = keras.Model(inputs, layers.Dense(classes)(layers.Dropout(_CONFIG.dropout_rate)(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    return model


def _torch_model(classes: int) -> Any:
    import torch
    from torch import nn

    torch.set_num_threads(len(os.sched_getaffinity(0)))

    def layer(
        i: int, o: int, window: int = 1, stride: int = 1, groups: int = 1, *, relu: bool = True
    ) -> nn.Sequential:
        conv = nn.Conv2d(i, o, window, stride, window // 2, groups=groups, bias=False)
        norm = nn.BatchNorm2d(o, _EPSILON, 1 - _KEPT)
        return nn.Sequential(conv, norm, *([nn.ReLU6(inplace=True)] if relu else []))

    class Block(nn.Module):
        def __init__(self, spec: Any) -> None:
            super().__init__()
            inner = spec.in_channels * spec.expansion
            self.layers = nn.Sequential(
                *([layer(spec.in_channels, inner)] if spec.expansion != 1 else []),
                layer(inner, inner, spec.kernel_size, spec.stride, inner),
                layer(inner, spec.out_channels, relu=False),
            )
            self.has_skip = spec.has_skip

        def forward(self, x: Any) -> Any:
            return x + self.layers(x) if self.has_skip else self.layers(x)

    model = nn.Sequential(
        layer(3, 32, 3, 2),
        *map(Block, _CONFIG.blocks),
        layer(_CONFIG.blocks[-1].out_channels, _CONFIG.feature_size),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(_CONFIG.dropout_rate),
        nn.Linear(_CONFIG.feature_size, classes),
    )
    return model.to(memory_format=torch.channels_last)


def _torch_input(x: np.ndarray) -> Any:
    import torch

    # The same memory: pictures by rows, which torch calls channels last.
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def _torch_step(classes: int) -> Step:
    import torch

    model = _torch_model(classes).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step(x: np.ndarray, y: np.ndarray) -> float:
        labels = torch.from_numpy(y).long()
        loss = torch.nn.functional.cross_entropy(model(_torch_input(x)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _torch_forward(classes: int) -> Forward:
    import torch

    model = _torch_model(classes).eval()

    def forward(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(_torch_input(x)).numpy()

    return forward


def _tensorflow_forward(classes: int) -> Forward:
    import tensorflow as tf

    def weights(*shape: int) -> Any:
        return tf.Variable(tf.random.normal(shape) / np.sqrt(np.prod(shape[:-1])))

    def layer(i: int, o: int, window: int = 1, stride: int = 1, *, relu: bool = True) -> Any:
        kernel, by_channel = weights(window, window, i, o), weights(window, window, i, 1)
        scale, mean = tf.Variable(tf.ones(o)), tf.Variable(tf.zeros(o))
        bias, var = tf.Variable(tf.zeros(o)), tf.Variable(tf.ones(o))
        steps = [1, stride, stride, 1]

        def run(x: Any, *, depthwise: bool = False) -> Any:
            if depthwise:
                x = tf.nn.depthwise_conv2d(x, by_channel, steps, "SAME")
            else:
                x = tf.nn.conv2d(x, kernel, steps, "SAME")
            x, *_ = tf.compat.v1.nn.fused_batch_norm(
                x, scale, bias, mean, var, _EPSILON, is_training=False
            )
            return tf.nn.relu6(x) if relu else x

        return run

    def block(spec: Any) -> Any:
        inner = spec.in_channels * spec.expansion
        expand = layer(spec.in_channels, inner) if spec.expansion != 1 else None
        filtered = layer(inner, inner, spec.kernel_size, spec.stride)
        project = layer(inner, spec.out_channels, relu=False)

        def run(x: Any) -> Any:
            y = x if expand is None else expand(x)
            y = project(filtered(y, depthwise=True))
            return x + y if spec.has_skip else y

        return run

    stem, blocks = layer(3, 32, 3, 2), [block(spec) for spec in _CONFIG.blocks]
    head = layer(_CONFIG.blocks[-1].out_channels, _CONFIG.feature_size)
    kernel, bias = weights(_CONFIG.feature_size, classes), tf.Variable(tf.zeros(classes))

    @tf.function
    def forward(x: Any) -> Any:
        x = stem(x)
        for run in blocks:
            x = run(x)
        return tf.reduce_mean(head(x), [1, 2]) @ kernel + bias

    return lambda x: forward(x).numpy()
