"""Fine-tuning a module of the hub as the backbone, without its source."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jgraph as jg
from jgraph import models
from jgraph._finetune import _recipe

pytestmark = pytest.mark.usefixtures("workplace", "tiny")


@pytest.fixture
def pictures(paint):
    return paint(Path("big"), {"dots": 12, "plain": 12}, noise=60)


@pytest.fixture
def module():
    """A module of the very network that the name stands for in these tests."""
    network = models.create("efficientnet_lite0", num_classes=0, weights="pretrained")
    assert not isinstance(network, models.EfficientNetLite)  # the tiny one

    def features(model, pictures):
        return model.features(model.preprocessing.normalize(pictures))

    return jg.hub.publish(
        "module", network, signatures={"features": features}, licence="MIT, by nobody"
    )


@pytest.mark.parametrize(
    "unfreeze", ["none", *(pytest.param(x, marks=pytest.mark.slow) for x in ("last:1", "all"))]
)
def test_a_module_gives_what_its_source_gives(pictures, module, unfreeze):
    runs = [
        jg.finetune(
            pictures, backbone=name, unfreeze=unfreeze, epochs=2, batch_size=8, verbose=False
        )
        for name in ("efficientnet_lite0", str(module))
    ]
    with_source, without = runs
    assert without.metrics["accuracy"] == with_source.metrics["accuracy"]
    first, second = (
        np.stack([p.probabilities for p in run.predict(str(pictures))]) for run in runs
    )
    np.testing.assert_allclose(first, second, atol=2e-4)


def test_the_run_is_a_module_itself(pictures, module):
    run = jg.finetune(pictures, backbone=str(module), verbose=False)
    again = jg.hub.load(run.folder)
    assert again.labels == ("dots", "plain")
    picture = next(Path(pictures).rglob("*.png"))
    logits = again(str(picture))
    (prediction,) = run.predict(picture)
    np.testing.assert_allclose(jax.nn.softmax(logits)[0], prediction.probabilities, atol=1e-5)
    assert again.manifest["licence"] == {"backbone": "MIT, by nobody"}
    first = jg.hub.load(module)
    assert again.manifest["provenance"]["sha256"] == first.manifest["sha256"]
    third = jg.finetune(pictures, backbone=str(run.folder), verbose=False)
    assert third.metrics["count"] == run.metrics["count"]
    assert "MIT, by nobody" in (run.folder / "README.md").read_text()


class Flat(nnx.Module):
    """A network whose features aren't vectors."""

    def __init__(self) -> None:
        self.kernel = nnx.Param(jnp.ones(3))

    def __call__(self, x):
        return x * self.kernel[...].sum()


class Vectors(Flat):
    """A network whose features are vectors, without preprocessing."""

    def __call__(self, x):
        return super().__call__(x).mean((1, 2))


def test_what_cannot_be_a_backbone(pictures):
    jg.hub.publish("other", Flat(), inputs={"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(jg.InputError, match="signature 'features', other has default"):
        jg.finetune(pictures, backbone="other", verbose=False)
    jg.hub.publish(
        "flat",
        Flat(),
        signatures={"features": "__call__"},
        inputs={"x": np.zeros((1, 8, 8, 3), np.float32)},
    )
    with pytest.raises(jg.InputError, match=r"must take pictures \[b, H, W, 3\] and give \[b, D\]"):
        jg.finetune(pictures, backbone="flat", verbose=False)
    jg.hub.publish(
        "blind",
        Vectors(),
        signatures={"features": "__call__"},
        inputs={"x": np.zeros((1, 8, 8, 3), np.float32)},
    )
    with pytest.raises(jg.InputError, match="blind doesn't say how pictures become its input"):
        jg.finetune(pictures, backbone="blind", verbose=False)
    with pytest.raises(jg.InputError, match="or the handle of a module, got 'no_such'"):
        jg.finetune(pictures, backbone="no_such", verbose=False)


def test_a_size_that_the_module_does_not_take(pictures, module):
    with pytest.raises(jg.InputError, match="takes pictures of 32 px, got an image size of 64"):
        jg.finetune(pictures, backbone=str(module), image_size=64, verbose=False)
    assert _recipe.RUNS.exists() is False
