"""A backbone with a head for a person's own classes."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from jgraph._errors import InputError
from jgraph._preprocessing import Preprocessing
from jgraph.models import Classifier, EfficientNetLite, EfficientNetLiteConfig
from jgraph.models._build import new_network

PREPROCESSING = Preprocessing(8, 8, "bilinear", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
CLASSES = ("cat", "dog", "other")


class Colours(nnx.Module):
    """A backbone in two stages: the mean colour through two layers."""

    feature_size = 4

    def __init__(self) -> None:
        self.first = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(4, 4, rngs=nnx.Rngs(1))
        self.unstaged = nnx.Param(jnp.zeros(()))

    @property
    def stages(self) -> tuple[tuple[nnx.Module, ...], ...]:
        return ((self.first,), (self.second,))

    def features(self, x_BHWC: jax.Array) -> jax.Array:
        return self.second(self.first(x_BHWC.mean((1, 2))))


@pytest.fixture
def model() -> Classifier:
    return Classifier(Colours(), CLASSES, PREPROCESSING, rngs=nnx.Rngs(0))


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


def test_features_are_those_of_the_normalised_pictures(model, pictures):
    x_B3 = ((pictures.astype(np.float64) - 127) / 128).mean((1, 2))
    layers = [model.backbone.first, model.backbone.second]
    weights = [np.asarray(layer.kernel[...], np.float64) for layer in layers]
    expected = x_B3 @ weights[0] @ weights[1]
    np.testing.assert_allclose(model.features(pictures), expected, rtol=1e-5, atol=1e-6)
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed(pictures), expected / lengths, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.embed(jnp.asarray(pictures)), model.embed(pictures))


def test_logits_are_linear_in_the_features_of_unit_length(model, pictures):
    np.testing.assert_array_equal(model(pictures), np.zeros((5, 3)))
    assert model.head.kernel.shape == (4, 3)
    assert model.head.bias.shape == (3,)
    model.head.kernel[...] = jnp.arange(12.0).reshape(4, 3)
    model.head.bias[...] = jnp.array([1.0, 2.0, 3.0])
    expected = np.asarray(model.embed(pictures)) @ np.arange(12.0).reshape(4, 3) + [1, 2, 3]
    np.testing.assert_allclose(model(pictures), expected, rtol=1e-5, atol=1e-5)


def test_zero_features_have_finite_logits_and_gradients(model, pictures):
    model.backbone.second.kernel[...] = jnp.zeros((4, 4))
    model.head.kernel[...] = jnp.ones((4, 3))
    np.testing.assert_array_equal(model.embed(pictures), np.zeros((5, 4)))
    gradients = nnx.grad(lambda model: jnp.sum(model(pictures)))(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_what_it_was_made_of_is_kept(model):
    assert model.class_names == CLASSES
    assert model.preprocessing == PREPROCESSING


@pytest.mark.parametrize(("last", "layers"), [(0, []), (1, ["second"]), (2, ["first", "second"])])
def test_the_head_and_the_last_stages_are_trained(model, last, layers):
    state = nnx.to_pure_dict(nnx.state(model, model.trainable(last)))
    assert set(state["head"]) == {"kernel", "bias"}
    assert sorted(state.get("backbone", {})) == layers


def test_gradients_are_taken_of_the_trained_params_alone(model, pictures):
    trained = nnx.DiffState(0, model.trainable(1))
    gradients = nnx.grad(lambda model: jnp.sum(model(pictures)), argnums=trained)(model)
    assert set(nnx.to_pure_dict(gradients)["backbone"]) == {"second"}


@pytest.mark.parametrize("last", [-1, 3])
def test_there_must_be_as_many_stages(model, last):
    with pytest.raises(InputError, match=f"stages to train must be from 0 to 2, got {last}"):
        model.trainable(last)


def test_a_real_backbone_trains_its_last_stages_without_its_statistics():
    config = EfficientNetLiteConfig(0.25, 0.3, 32, dropout_rate=0.0, num_classes=0)
    backbone = new_network(EfficientNetLite, config, nnx.Rngs(0))
    model = Classifier(backbone, CLASSES, backbone.preprocessing, rngs=nnx.Rngs(0))
    state = nnx.state(model, model.trainable(2))
    assert all(isinstance(variable, nnx.Param) for _, variable in nnx.to_flat_state(state))
    trained = nnx.to_pure_dict(state)["backbone"]
    assert sorted(trained) == ["blocks", "head"]
    assert sorted(trained["blocks"]) == [len(backbone.blocks) - 2, len(backbone.blocks) - 1]


@pytest.mark.parametrize("names", [(), ("cat", "dog", "cat")])
def test_class_names_must_be_distinct(names):
    with pytest.raises(InputError, match="class_names must be one or more names without repeats"):
        Classifier(Colours(), names, PREPROCESSING, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("pictures", "got"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), r"float32 of shape \[1, 8, 8, 3\]"),
        (np.zeros((8, 8, 3), np.uint8), r"uint8 of shape \[8, 8, 3\]"),
        (np.zeros((1, 8, 8, 4), np.uint8), r"uint8 of shape \[1, 8, 8, 4\]"),
    ],
)
def test_other_pictures_are_refused(model, pictures, got):
    # Without the shape types of the tests, as a user runs it.
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(InputError, match=f"pictures must be uint8 .* got {got}"):
            model(pictures)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
