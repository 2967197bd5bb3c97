"""The network itself; its values against the reference are in tests/parity."""

import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from jgraph._errors import InputError
from jgraph.models import EfficientNetLite, EfficientNetLiteConfig
from jgraph.models._build import new_network
from jgraph.models._layers import ConvNorm, NormConfig

SMALL = EfficientNetLiteConfig(0.25, 0.3, 32, dropout_rate=0.5, num_classes=5)
NORM = NormConfig(momentum=0.99, epsilon=1e-3)


@pytest.fixture
def model() -> EfficientNetLite:
    return new_network(EfficientNetLite, SMALL, nnx.Rngs(0))


@pytest.fixture
def pictures() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (4, 40, 33, 3))


@pytest.mark.parametrize(
    ("preset", "millions", "image_size", "blocks"),
    [
        # Table of the original's README; the number of blocks from its builder's depths.
        ("lite0", 4.7, 224, 16),
        ("lite1", 5.4, 240, 21),
        ("lite2", 6.1, 260, 21),
        ("lite3", 8.2, 280, 24),
        ("lite4", 13.0, 300, 30),
    ],
)
def test_presets_have_the_published_sizes(preset, millions, image_size, blocks):
    config = getattr(EfficientNetLiteConfig, preset)()
    model = nnx.eval_shape(lambda: EfficientNetLite(config, rngs=nnx.Rngs(0)))
    params = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert round(params / 1e6, 1) == millions
    assert len(model.blocks) == blocks
    assert model.preprocessing.image_size == image_size
    assert model.preprocessing.resize_size == image_size + 32


def test_widths_are_rounded_as_published():
    # efficientnet-lite4: 1.4 times 16, 24, 40, 80, 112, 192, 320 to multiples of eight.
    widths = [spec.out_channels for spec in EfficientNetLiteConfig.lite4().blocks]
    assert sorted(set(widths)) == [24, 32, 56, 112, 160, 272, 448]
    # A tenth below is too far: 0.25 * 40 = 10 becomes 16, not 8.
    assert SMALL.blocks[2].out_channels == 16


@pytest.mark.parametrize(("width", "depth"), [(0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_sizes_must_be_positive(width, depth):
    with pytest.raises(InputError, match="width and depth must be positive, got width"):
        EfficientNetLiteConfig(width, depth, 224, 0.2)


def test_the_number_of_classes_must_not_be_negative(model):
    with pytest.raises(InputError, match=r"num_classes must be 0 .* or more, got -1"):
        EfficientNetLiteConfig.lite0(num_classes=-1)
    with pytest.raises(InputError, match=r"num_classes must be 0 .* or more, got -2"):
        model.reset_classifier(-2, rngs=nnx.Rngs(0))


def test_features_are_the_mean_of_the_feature_map(model, pictures):
    model.eval()
    feature_map, features, logits = jax.jit(
        lambda x: (model.feature_map(x), model.features(x), model(x))
    )(pictures)
    assert feature_map.shape == (4, 2, 2, 1280)
    np.testing.assert_allclose(features, np.mean(feature_map, (1, 2)), rtol=1e-5, atol=1e-6)
    head = model.classifier
    expected = np.asarray(features) @ np.asarray(head.kernel[...]) + np.asarray(head.bias[...])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_training_mode_drops_features_and_updates_the_statistics(model, pictures):
    step = nnx.jit(lambda model, x: model(x))
    before = np.asarray(model.stem.norm.mean[...])
    first, second = step(model, pictures), step(model, pictures)
    assert not np.allclose(first, second)
    x = model.stem.conv(pictures)
    expected = 0.99 * (0.99 * before + 0.01 * x.mean((0, 1, 2))) + 0.01 * x.mean((0, 1, 2))
    np.testing.assert_allclose(model.stem.norm.mean[...], expected, rtol=1e-4, atol=1e-6)


def test_eval_mode_changes_nothing(model, pictures):
    model.eval()
    step = nnx.jit(lambda model, x: model(x))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
    first, second = step(model, pictures), step(model, pictures)
    np.testing.assert_array_equal(first, second)
    after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.slow
def test_every_param_has_a_finite_gradient_that_is_not_zero(model, pictures):
    @nnx.jit
    def gradients(model):
        return nnx.grad(lambda model: jnp.sum(jnp.square(model(pictures))))(model)

    for path, gradient in nnx.to_flat_state(gradients(model)):
        value = np.asarray(gradient[...])
        assert np.isfinite(value).all(), path
        assert np.any(value != 0), path


def test_without_classes_the_call_returns_the_features(model, pictures):
    model.reset_classifier(0, rngs=nnx.Rngs(0))
    model.eval()
    assert model.classifier is None
    called, features = jax.jit(lambda x: (model(x), model.features(x)))(pictures)
    np.testing.assert_array_equal(called, features)
    model.reset_classifier(2, rngs=nnx.Rngs(0))
    assert model.classifier is not None
    assert model.classifier.kernel.shape == (1280, 2)
    assert model.config.num_classes == 2


def test_stages_are_in_forward_order_and_cover_the_backbone(model):
    stages = model.stages
    assert len(stages) == 1 + len(model.blocks)
    assert stages[0] == (model.stem,)
    assert stages[1] == (model.blocks[0],)
    assert stages[-1] == (model.blocks[-1], model.head)
    in_stages = sum(
        len(jax.tree.leaves(nnx.state(module, nnx.Param))) for stage in stages for module in stage
    )
    assert in_stages + 2 == len(jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
    ("pictures", "got"),
    [
        (jnp.zeros((1, 8, 8, 3), jnp.int32), r"int32 of shape \[1, 8, 8, 3\]"),
        (jnp.zeros((8, 8, 3), jnp.uint8), r"uint8 of shape \[8, 8, 3\]"),
        (jnp.zeros((8, 8, 3)), r"float32 of shape \[8, 8, 3\]"),
        (jnp.zeros((1, 3, 8, 8)), r"float32 of shape \[1, 3, 8, 8\]"),
    ],
)
def test_other_pictures_are_refused(model, pictures, got):
    # Without the shape types of the tests, as a user runs it.
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(InputError, match=rf"pictures of shape \[B, H, W, 3\], .*, got {got}"):
            model(pictures)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_plain_pictures_are_normalised(model):
    model.eval()
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    run = jax.jit(model)
    expected = run(model.preprocessing.normalize(jnp.asarray(pictures)))
    np.testing.assert_allclose(run(pictures), expected, atol=1e-6)


def test_new_kernels_are_spread_as_published():
    model = new_network(
        EfficientNetLite, EfficientNetLiteConfig.lite0(num_classes=100), nnx.Rngs(0)
    )
    head = np.asarray(model.head.conv.kernel[...])
    depthwise = np.asarray(model.blocks[12].depthwise.conv.kernel[...])
    # A spread estimated from n draws is off by 1 / sqrt(2 n), 0.001 and 0.004: five times that.
    assert head.std() == pytest.approx(math.sqrt(2 / 1280), rel=0.006)
    assert depthwise.shape == (5, 5, 1, 1152)
    assert depthwise.std() == pytest.approx(math.sqrt(2 / 25), rel=0.025)
    assert model.classifier is not None
    classifier = np.asarray(model.classifier.kernel[...])
    assert 0.0999 < classifier.max() <= 0.1
    assert -0.1 <= classifier.min() < -0.0999
    # The network that the constructor makes layer by layer is drawn alike.
    alone = ConvNorm(64, 512, 3, norm=NORM, activation=None, rngs=nnx.Rngs(0)).conv.kernel[...]
    assert float(jnp.std(alone)) == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.006)


def test_the_constructor_and_the_quick_way_make_the_same_variables(model):
    slow = nnx.eval_shape(lambda: EfficientNetLite(SMALL, rngs=nnx.Rngs(0)))

    def shapes(model: EfficientNetLite) -> list[tuple]:
        state = nnx.to_flat_state(nnx.state(model))
        return [(path, type(v), v.get_value().shape, v.get_value().dtype) for path, v in state]

    assert shapes(slow) == shapes(model)
    alone = ConvNorm(8, 1280, 1, norm=NORM, activation=None, rngs=nnx.Rngs(0)).norm
    for statistic in ("scale", "bias", "mean", "var"):
        np.testing.assert_array_equal(
            getattr(alone, statistic)[...], getattr(model.head.norm, statistic)[...]
        )
