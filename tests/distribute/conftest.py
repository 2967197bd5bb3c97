"""Three small tasks, each with what makes strategies differ, and what tests ask of a strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import Array

import jgraph as jg

Batch = dict[str, np.ndarray]

CLASSES, TOKENS, WIDTH = 4, 32, 16


class Perceptron(nnx.Module):
    """A network without statistics and random state."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(6, 32, rngs=rngs)
        self.second = nnx.Linear(32, 16, rngs=rngs)
        self.head = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x_BF: Array) -> Array:
        return self.head(jnp.tanh(self.second(jnp.tanh(self.first(x_BF)))))


class ConvNet(nnx.Module):
    """Convolutions, each followed by statistics of the whole batch."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.convs = nnx.List(
            [
                nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs),
                nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs),
            ]
        )
        self.norms = nnx.List(
            [nnx.BatchNorm(8, momentum=0.9, rngs=rngs), nnx.BatchNorm(16, momentum=0.9, rngs=rngs)]
        )
        self.head = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x_BHWC: Array) -> Array:
        x = x_BHWC
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(x.mean((1, 2)))


class Transformer(nnx.Module):
    """A GPT of one block; the output shares the embedding's array."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(TOKENS, WIDTH, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, tokens_BT: Array) -> Array:
        x = self.embed(tokens_BT)
        x = x + self.attention(self.norms[0](x), mask=nnx.make_causal_mask(tokens_BT))
        x = x + self.down(nnx.gelu(self.up(self.norms[1](x))))
        return self.embed.attend(x)


def classify(model: Any, batch: Any) -> tuple[Array, dict[str, Array]]:
    logits = model(batch["x"])
    values = jg.losses.sparse_softmax_cross_entropy(logits, batch["y"])
    return values, {"accuracy": logits.argmax(-1) == batch["y"]}


def next_token(model: Any, batch: Any) -> jg.losses.Mean:
    logits = model(batch["tokens"][:, :-1])
    values = jg.losses.sparse_softmax_cross_entropy(logits, batch["tokens"][:, 1:])
    return jg.losses.mean(values, batch["mask"])


def labelled(count: int, size: int, shape: tuple[int, ...]) -> list[Batch]:
    rng = np.random.default_rng(0)
    return [
        {
            "x": rng.standard_normal((size, *shape)).astype(np.float32),
            "y": rng.integers(0, CLASSES, size, dtype=np.int32),
        }
        for _ in range(count)
    ]


def sentences(count: int, size: int) -> list[Batch]:
    """Sentences of all lengths, sorted, so that each replica has another number of tokens."""
    rng = np.random.default_rng(0)
    lengths = np.linspace(1, 7, size).round()
    return [
        {
            "tokens": rng.integers(0, TOKENS, (size, 8), dtype=np.int32),
            "mask": (np.arange(7) < lengths[:, None]).astype(np.float32),
        }
        for _ in range(count)
    ]


class Task(NamedTuple):
    model: Callable[[], Any]
    loss: Callable[[Any, Any], Any]
    optimizer: optax.GradientTransformation
    batches: Callable[..., list[Batch]]
    """`batches(count, size)`."""


# Adam divides by the gradient's own size. Where that is zero but for rounding, as for a bias before
# BatchNorm and for the keys' bias in attention, any order of summing gives another step of full
# length: so the networks that have such parameters are trained with momentum.
MOMENTUM = optax.sgd(0.05, momentum=0.9)

TASKS = {
    "mlp": Task(Perceptron, classify, optax.adam(1e-2), lambda n, size: labelled(n, size, (6,))),
    "cnn": Task(ConvNet, classify, MOMENTUM, lambda n, size: labelled(n, size, (8, 8, 3))),
    "gpt": Task(Transformer, next_token, MOMENTUM, sentences),
}

STRATEGIES = {
    "DataParallel": jg.distribute.DataParallel,
    "FSDP": lambda: jg.distribute.FSDP(min_size=64),
    "Pmap": jg.distribute.Pmap,
}
