"""Fine-tuning the real network, which takes a minute to compile."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import jgraph as jg
from jgraph import models
from jgraph._finetune import _unfreeze


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("kept", [True, False])
def test_the_last_stage_is_trained_or_taken_back(kept, paint, monkeypatch):
    monkeypatch.setattr(_unfreeze, "_head_loss", lambda *_: math.inf if kept else -1.0)
    folder = paint(Path("pets"), {"dots": 20, "plain": 15, "rows": 15})
    run = jg.finetune(folder, unfreeze="last:1", epochs=2, image_size=32, verbose=False)
    network = models.create("efficientnet_lite0", num_classes=0, weights="pretrained")
    start, now = models.weights_of(network), models.weights_of(run.model)
    changed = {k for k, v in start.items() if not np.array_equal(v, now[f"backbone/{k}"])}
    last = {id(module) for module in network.stages[-1]}
    params = {
        f"{name}/{leaf}"
        for name, module in vars(network).items()
        if id(module) in last
        for leaf in models.weights_of(module)
    }
    params |= {
        f"blocks/{i}/{leaf}"
        for i, block in enumerate(network.blocks)
        if id(block) in last
        for leaf in models.weights_of(block)
    }
    # BatchNorm's statistics rest.
    trained = {name for name in params if not name.endswith(("/mean", "/var"))}
    assert trained
    assert changed == (trained if kept else set())
