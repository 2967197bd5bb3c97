"""What the benchmarks of convolutions time is what their lines say."""

from __future__ import annotations

import os
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import __main__ as command
from benchmarks import conv, inference
from jgraph.models._layers import ConvNorm, NormConfig


def test_equal_equations_are_one_shape() -> None:
    layer, other = conv.Layer(1, 4, 32, 32, 1), conv.Layer(1, 4, 32, 32, 1, stride=2)
    found = Counter(c for x in (layer, layer, other) for c in conv.convolutions(x.program()))
    # Result, gradient by x, gradient by the kernel: each twice and once.
    assert sorted(found.values()) == [1, 1, 1, 2, 2, 2]
    assert all(c.is_rewritten for c in found)
    assert str(next(iter(found))).startswith("(1, 4, 4, 32) (1, 1, 32, 32) (1, 1) ((0, 0), (0, 0))")


def test_a_layer_of_a_report_and_its_ratio() -> None:
    layer = conv.Layer(1, 6, 8, 8, 3, stride=2, groups=8)
    assert str(layer) == "depthwise 3x3 1x6x6x8 to 8, stride 2"
    ratio = conv.timed(layer.program(), 2)
    assert len(ratio.ratios) == 2
    assert min(ratio.seconds) > 0


def test_a_network_without_rewritten_shapes_says_so() -> None:
    found = Counter(conv.convolutions(conv.Layer(1, 4, 8, 8, 3).program()))
    assert list(conv.network("tiny", found, 1)) == ["tiny: none of 3 shapes is written otherwise"]


def test_folding_beforehand_changes_nothing() -> None:
    class Net(nnx.Module):
        def __init__(self) -> None:
            norm, rngs = NormConfig(0.9, 1e-3), nnx.Rngs(0)
            self.layer = ConvNorm(3, 4, 3, norm=norm, activation=nnx.relu6, rngs=rngs)

        def __call__(self, x: jnp.ndarray) -> jnp.ndarray:
            return self.layer(x)

    model, rng = Net(), np.random.default_rng(0)
    model.eval()
    norm = model.layer.norm
    assert norm.scale is not None
    assert norm.bias is not None
    for value in (norm.mean, norm.var, norm.scale, norm.bias):
        value[...] = jnp.asarray(rng.uniform(0.5, 1.5, 4), jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, 5, 5, 3)), jnp.float32)
    before = model(x)
    after = inference.folded(model)(x)
    assert isinstance(model.layer.norm, inference.Bias)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)


def test_options_that_a_benchmark_or_the_machine_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["losses", "--quick"])
    assert "losses has no --quick part" in capsys.readouterr().err
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(SystemExit):
        command.main(["losses", "--cores", str(cores + 1)])
    assert f"--cores must be 1 to {cores}" in capsys.readouterr().err
