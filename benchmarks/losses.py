"""Cross entropy beside optax: value and gradient, at the logits and with the layer before them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from benchmarks._paired import paired
from jgraph.losses import (
    linear_softmax_cross_entropy,
    mean,
    softmax_cross_entropy,
    sparse_softmax_cross_entropy,
)

TOKENS, FEATURES = 4096, 512
MEMORY = (32_768, 131_072)


def run(rounds: int) -> Iterator[str]:
    """Yield the report's lines. The last pairs take seconds each, so they are fewer."""
    yield from memory()
    for shape in ((256, 1000), (4096, 1000), (64, 32_768)):
        yield f"logits {shape}, class ids: CPU time over optax {logit_level(shape, rounds)}"
        yield f"logits {shape}, soft labels: {soft_labels(shape, rounds)}"
    few = max(rounds // 5, 1)
    for over in ("tokens", "vocabulary"):
        yield f"linear over {over}, 1024 x 512 x 8192: {chunked(over, (1024, 512, 8192), few)}"


def memory() -> Iterator[str]:
    """Yield the compiled programs' temporary memory; nothing is run."""
    for classes in MEMORY:
        shapes = (
            jax.ShapeDtypeStruct((TOKENS, FEATURES), jnp.float32),
            jax.ShapeDtypeStruct((FEATURES, classes), jnp.float32),
            jax.ShapeDtypeStruct((TOKENS,), jnp.int32),
        )
        found = [
            f"{name} {program.lower(*shapes).compile().memory_analysis().temp_size_in_bytes >> 20}"
            for name, program in programs().items()
        ]
        yield f"MiB for {TOKENS} x {FEATURES} x {classes}: {', '.join(found)}"


def programs() -> dict[str, Any]:
    """Return the jitted value-and-gradient in features and weight, by name."""
    return {
        "optax": _compile(_optax_linear),
        **{
            over: _compile(functools.partial(_fused, over=over))
            for over in ("tokens", "vocabulary")
        },
    }


def chunked(over: str, shape: tuple[int, int, int], rounds: int) -> str:
    """Return the ratio of the fused loss to a matmul followed by optax."""
    n, d, v = shape
    x = jax.random.normal(jax.random.key(0), (n, d))
    w = jax.random.normal(jax.random.key(1), (d, v)) / d**0.5
    labels = jax.random.randint(jax.random.key(2), (n,), 0, v)
    ours, theirs = programs()[over], programs()["optax"]
    return str(paired(lambda: ours(x, w, labels), lambda: theirs(x, w, labels), rounds))


def logit_level(shape: tuple[int, int], rounds: int) -> str:
    """Return the ratio of jgraph's loss to optax's on logits [n, k]."""
    labels = jax.random.randint(jax.random.key(1), shape[:1], 0, shape[1])
    theirs = optax.losses.softmax_cross_entropy_with_integer_labels
    return _ratio(sparse_softmax_cross_entropy, theirs, labels, shape, rounds)


def soft_labels(shape: tuple[int, int], rounds: int) -> str:
    """Return the same for probabilities as labels, which jgraph alone checks."""
    probs = jax.nn.softmax(jax.random.normal(jax.random.key(1), shape))
    return _ratio(softmax_cross_entropy, optax.losses.softmax_cross_entropy, probs, shape, rounds)


def _ratio(
    first: Callable[..., Array],
    second: Callable[..., Array],
    targets: Array,
    shape: tuple[int, int],
    rounds: int,
) -> str:
    z = 3 * jax.random.normal(jax.random.key(0), shape)

    def objective(loss: Callable[..., Array]) -> Any:
        return jax.jit(jax.value_and_grad(lambda z, y: loss(z, y).mean()))

    ours, theirs = objective(first), objective(second)
    return str(paired(lambda: ours(z, targets), lambda: theirs(z, targets), rounds))


def _compile(objective: Callable[..., Array]) -> Any:
    return jax.jit(jax.value_and_grad(objective, (0, 1)))


def _fused(x: Array, w: Array, labels: Array, over: Any) -> Array:
    return mean(linear_softmax_cross_entropy(x, w, labels, over=over)).value()


def _optax_linear(x: Array, w: Array, labels: Array) -> Array:
    return optax.losses.softmax_cross_entropy_with_integer_labels(x @ w, labels).mean()
