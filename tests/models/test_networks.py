"""Inception V3, ResNet-50 and MobileNetV2: sizes, heads, stages, preprocessing, values."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from jgraph._errors import InputError
from jgraph.models import (
    InceptionV3,
    InceptionV3Config,
    MobileNetV2,
    MobileNetV2Config,
    PictureNetwork,
    ResNet,
    ResNetConfig,
)
from jgraph.models._build import fill_network, load_network, new_network
from jgraph.models._create import _NETWORKS
from tests.models.network_outputs import (
    errors,
    evaluated,
    in_float64,
    parameters,
    trained,
    trained_logits,
)
from tests.models.network_references import LAYOUTS, expected, keras_tensors, torch_tensors
from tests.parity.network_fill import LARGE_PICTURES, pictures

PRESETS = {
    "inception_v3": (InceptionV3, InceptionV3Config.inception_v3),
    "inception_v3 keras": (InceptionV3, InceptionV3Config.keras_inception_v3),
    "resnet50": (ResNet, ResNetConfig.resnet50),
    "resnet50 keras": (ResNet, ResNetConfig.keras_resnet50),
    "mobilenet_v2": (MobileNetV2, MobileNetV2Config.mobilenet_v2),
    "mobilenet_v2 keras": (MobileNetV2, MobileNetV2Config.keras_mobilenet_v2),
}


@functools.cache
def abstract(name: str) -> PictureNetwork:
    make, preset = PRESETS[name]
    return nnx.eval_shape(lambda: make(preset(), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("name", "count", "features", "size", "resize"),
    [
        # Torchvision's documentation; 27,161,264 of Inception V3 are with the auxiliary head.
        ("inception_v3", 27161264 - 3326696, 2048, 299, 342),
        ("resnet50", 25557032, 2048, 224, 256),
        ("mobilenet_v2", 3504872, 1280, 224, 256),
        # Keras's `summary`, trained parameters.
        ("inception_v3 keras", 23817352, 2048, 299, 342),
        ("resnet50 keras", 25583592, 2048, 224, 256),
        ("mobilenet_v2 keras", 3504872, 1280, 224, 256),
    ],
)
def test_networks_have_the_published_sizes(name, count, features, size, resize):
    model = abstract(name)
    assert parameters(model) == count
    assert model.feature_size == features
    assert model.preprocessing.image_size == size
    assert model.preprocessing.resize_size == resize


@pytest.mark.parametrize(
    ("name", "black", "white"),
    [
        # (0 - 0.485) / 0.229 and so on: torchvision's transform.
        ("resnet50", (-2.1179, -2.0357, -1.8044), (2.2489, 2.4286, 2.64)),
        ("mobilenet_v2", (-2.1179, -2.0357, -1.8044), (2.2489, 2.4286, 2.64)),
        ("inception_v3", (-1, -1, -1), (1, 1, 1)),
        ("inception_v3 keras", (-1, -1, -1), (1, 1, 1)),
        ("mobilenet_v2 keras", (-1, -1, -1), (1, 1, 1)),
        # Keras's mode "caffe", turned around.
        ("resnet50 keras", (-123.68, -116.779, -103.939), (131.32, 138.221, 151.061)),
    ],
)
def test_pictures_are_normalised_as_published(name, black, white):
    pictures = jnp.array([[[0, 0, 0], [255, 255, 255]]], jnp.uint8)
    found = abstract(name).preprocessing.normalize(pictures)
    np.testing.assert_allclose(found[0], [black, white], rtol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_stages_cover_the_backbone(name):
    model = abstract(name)
    in_stages = [module for stage in model.stages for module in stage]
    found = sum(len(jax.tree.leaves(nnx.state(module, nnx.Param))) for module in in_stages)
    assert found + 2 == len(jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert len(model.stages) == 1 + len(model.blocks)


@pytest.mark.parametrize("name", ["inception_v3", "resnet50", "mobilenet_v2 keras"])
def test_feature_maps_have_their_shapes(name):
    graph, state = nnx.split(abstract(name))
    x = jax.ShapeDtypeStruct((2, 97, 128, 3), jnp.float32)
    maps = jax.eval_shape(lambda state, x: nnx.merge(graph, state).feature_map(x), state, x)
    # Inception's first layers have no padding; the others round up at each of five halvings.
    places = (1, 2) if name == "inception_v3" else (4, 4)
    assert maps.shape == (2, *places, abstract(name).feature_size)


@pytest.mark.slow
def test_auxiliary_logits_come_from_the_middle():
    config = InceptionV3Config.inception_v3(7, auxiliary=True)

    def run(x):
        return InceptionV3(config, rngs=nnx.Rngs(0)).with_auxiliary(x)

    x = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
    logits, auxiliary = jax.eval_shape(run, x)
    assert logits.shape == auxiliary.shape == (2, 7)
    with pytest.raises(InputError, match=r"pictures of 299 pixels or more here, got 299x298"):
        jax.eval_shape(run, jax.ShapeDtypeStruct((2, 299, 298, 3), jnp.float32))
    with pytest.raises(InputError, match="needs the auxiliary head: make the network with"):
        abstract("inception_v3").with_auxiliary(jnp.zeros((1, 299, 299, 3)))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"pictures of 75 pixels or more here, got 74x99"):
        abstract("inception_v3").features(jnp.zeros((1, 74, 99, 3)))


@pytest.mark.parametrize(
    ("config", "choices", "message"),
    [
        (ResNetConfig, {"depths": (3, 4, 6)}, r"depths must be .* of four stages, got \(3, 4, 6\)"),
        (MobileNetV2Config, {"origin": "caffe"}, "origin must be one of torchvision, keras, got '"),
        (MobileNetV2Config, {"width": 0.0}, "width must be positive, got 0.0"),
        (MobileNetV2Config, {"num_classes": -1}, "num_classes must be 0 .* got -1"),
        (InceptionV3Config, {"origin": "keras", "auxiliary": True}, "auxiliary needs origin 'torc"),
        (InceptionV3Config, {"num_classes": 0, "auxiliary": True}, "num_classes of 1 or more"),
    ],
)
def test_configs_must_make_sense(config, choices, message, monkeypatch):
    # Without the types of the tests, as a user runs it.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match=message):
        config(**choices)


def test_widths_of_mobilenet_are_rounded_as_published():
    # torchvision.models.mobilenet_v2(width_mult=0.35) and keras's alpha=0.35: 96 x 0.35 = 33.6.
    for config in (MobileNetV2Config(0.35), MobileNetV2Config(0.35, "keras")):
        assert [b.out_channels for b in config.blocks[-5:]] == [32, 56, 56, 56, 112]
        assert (config.stem_channels, config.feature_size) == (16, 1280)
    assert MobileNetV2Config(1.4).feature_size == 1792
    # 24 x 0.371 = 8.9, more than a tenth above 8; Keras cuts it off to 8 first.
    assert MobileNetV2Config(0.371).blocks[1].out_channels == 16
    assert MobileNetV2Config(0.371, "keras").blocks[1].out_channels == 8


def load(name: str) -> PictureNetwork:
    network = _NETWORKS[name.partition("-")[0]]
    tensors = keras_tensors(name) if name.endswith("-keras") else torch_tensors(name)
    model, _ = load_network(
        network.make,
        network.layouts,
        tensors,
        num_classes=None,
        rngs=nnx.Rngs(0),
        source=name,
    )
    return model


def marked(names: tuple[str, ...], quick: tuple[str, ...]) -> list:
    return [pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in names]


@pytest.mark.parametrize(
    "name", marked(LAYOUTS, ("mobilenet_v2-torchvision", "mobilenet_v2-keras"))
)
def test_logits_and_features_equal_the_peers(name):
    off = errors(evaluated(load(name)), expected(name))
    # Rounding of float32 through fifty layers, against float64.
    assert max(off.values()) <= 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LAYOUTS if not name.endswith("-timm")])
def test_a_training_step_equals_the_peers(name):
    wanted = expected(name)
    # Flax's BatchNorm mixes float64 and float32.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        found = trained(in_float64(load(name)), name, wanted.get("counts"))
    off = errors(found, wanted)
    assert off["train_logits"] <= 1e-10
    assert off["statistics"] <= 1e-10
    # Deviations of the logits reach gradients through a hundred normalisations.
    assert off["gradients"] <= 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LAYOUTS if not name.endswith("-timm")])
def test_training_logits_in_float32_equal_the_peers(name):
    wanted = expected(name)
    x = pictures("large", LARGE_PICTURES) if "large_train_logits" in wanted else pictures()
    logits = trained_logits(load(name), jnp.asarray(x))
    wanted_logits = wanted.get("large_train_logits", wanted["train_logits"])
    assert errors({"logits": logits}, {"logits": wanted_logits})["logits"] <= 1e-4


@pytest.mark.slow
def test_auxiliary_logits_equal_torchvisions():
    tensors = torch_tensors("inception_v3-torchvision")
    config = InceptionV3Config.inception_v3(10, auxiliary=True)
    model = new_network(InceptionV3, config, nnx.Rngs(0))
    fill_network(model, _NETWORKS["inception_v3"].layouts, tensors, partial=False, source="file")
    model.eval()
    x = jnp.asarray(pictures("large", LARGE_PICTURES))
    found = nnx.jit(lambda model, x: model.with_auxiliary(x)[1])(model, x)
    wanted = expected("inception_v3-torchvision")["auxiliary"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception_v3", "resnet50", "mobilenet_v2"])
def test_new_networks_pass_their_signal_on(name):
    make, preset = PRESETS[name]
    model = new_network(make, preset(5), nnx.Rngs(0))
    model.train()
    x = jax.random.normal(jax.random.key(0), (4, 80, 80, 3))
    logits = nnx.jit(lambda model, x: model(x))(model, x)
    assert logits.shape == (4, 5)
    assert 1e-2 < float(jnp.std(logits)) < 100
