"""EfficientNet-Lite0 on one picture of 224 px, on a CPU: jg.function beside other libraries.

CPU time; `--cores 1` for one thread. The last line is what folding BatchNorm into the convolution
before it could gain at most: jg.function on a network whose weights were folded beforehand.

What must hold with one core: 1/6 of Keras 3 on JAX, 0.9 of tf.function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks import _lite0_peers
from benchmarks._paired import paired
from jgraph import models
from jgraph.graph import function

SIZE, CLASSES = 224, 1000


def run(rounds: int) -> Iterator[str]:
    """Yield the report's lines."""
    x = np.random.default_rng(0).standard_normal((1, SIZE, SIZE, 3), np.float32)
    peers = dict(_lite0_peers.forwards(CLASSES, SIZE))
    model = models.create("efficientnet_lite0", num_classes=CLASSES, rngs=nnx.Rngs(0))
    ours = compiled(model, x)
    structure, state = nnx.split(model)
    plain = jax.jit(lambda state, x: nnx.merge(structure, state)(x))
    yield f"jg.function over jax.jit: {paired(ours, lambda: plain(state, x), rounds)}"
    for name, call in peers.items():
        yield f"jg.function over {name}: {paired(ours, lambda call=call: call(x), rounds)}"
    without = compiled(folded(nnx.clone(model)), x)
    np.testing.assert_allclose(without(), ours(), rtol=1e-4, atol=1e-4)
    yield f"BatchNorm folded beforehand over as it is: {paired(without, ours, rounds)}"


def compiled(model: nnx.Module, x: np.ndarray) -> Callable[[], jax.Array]:
    """Return the call of a network."""
    forward = function(lambda model, x: model(x))
    return lambda: forward(model, x)


class Bias(nnx.Module):
    """Adds a number to each channel: bias is (1, 1, 1, channels)."""

    def __init__(self, bias: jax.Array) -> None:
        self.bias = nnx.Param(bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the sum, of the shape of x."""
        return x + self.bias


def folded(model: nnx.Module) -> nnx.Module:
    """Fold, in place, each BatchNorm of a network in eval mode into the convolution before it."""
    blocks: list[Any] = [x for _, x in nnx.iter_modules(model) if hasattr(x, "norm")]
    for block in blocks:
        norm = block.norm
        scale = norm.scale * jax.lax.rsqrt(norm.var + norm.epsilon)
        block.conv.kernel[...] = block.conv.kernel * scale[None, None, None]
        block.norm = Bias((norm.bias - norm.mean * scale)[None, None, None])
    return model
