from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jgraph.distribute import FSDP, DataParallel, OneDevice, Pmap
from jgraph.graph import _passes, function


def doubled_tanh(eqn):
    return (
        (lambda x: [2 * lax.tanh_p.bind(x, **eqn.params)]) if eqn.primitive is lax.tanh_p else None
    )


@pytest.mark.parametrize("make", [OneDevice, DataParallel, FSDP, Pmap])
def test_passes_reach_the_program_of_every_strategy(make, monkeypatch):
    drop_no_ops = _passes.drop_no_ops
    change = lambda program: _passes.rewrite(drop_no_ops(program), doubled_tanh)  # noqa: E731
    monkeypatch.setattr(_passes, "drop_no_ops", change)
    strategy = make()
    model = strategy.put(nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    x = np.arange(64, dtype=np.float32).reshape(16, 4) / 64
    run = function(lambda model, x: jnp.tanh(model(x)), strategy=strategy)
    result = run(model, strategy.put_batch(x))
    expected = 2 * np.tanh(x @ np.asarray(model.kernel[...]))
    np.testing.assert_allclose(result, expected, atol=1e-6)
    (graph,) = run.graphs
    np.testing.assert_allclose(graph(x), expected, atol=1e-6)
    assert [op.name for op in graph.ops].count("tanh") == 1
    assert {op.scope for op in graph.ops if op.name == "dot_general"} == {("model",)}


@pytest.mark.parametrize(
    ("make", "folds"),
    [
        (OneDevice, True),
        (lambda: DataParallel(1), True),
        (DataParallel, False),
        (lambda: FSDP(min_size=8), False),
        (Pmap, False),
    ],
)
def test_batch_norms_are_folded_on_one_device(make, folds):
    """Over several, each device has the program that it had."""
    x = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
    texts, results = [], []
    for asked in (True, False):
        strategy = make()
        model = strategy.put(ConvNorm())
        run = function(lambda model, x: model(x), strategy=strategy, fold_batch_norms=asked)
        result = run(model, strategy.put_batch(x))
        results.append((np.asarray(result), result.sharding))
        (graph,) = run.graphs
        texts.append(graph.stablehlo)
    assert ("optimization_barrier" in texts[0], "optimization_barrier" in texts[1]) == (
        folds,
        False,
    )
    assert (texts[0] == texts[1]) == (not folds)
    (ours, sharding), (theirs, other) = results
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert sharding.is_equivalent_to(other, 4)


class ConvNorm(nnx.Module):
    """In evaluation mode."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs, use_running_average=True)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x)))
