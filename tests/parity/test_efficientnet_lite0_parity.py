"""EfficientNet-Lite0 against its reference; make_efficientnet_lite0_reference.py made the file."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jgraph.models import EfficientNetLite, create

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def model() -> EfficientNetLite:
    model = create("efficientnet_lite0", weights="pretrained")
    assert isinstance(model, EfficientNetLite)
    return model


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(DATA / "efficientnet_lite0_reference.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def outputs(model: EfficientNetLite, reference: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the logits, and the layers the file holds, of one forward pass."""
    pictures = np.asarray(model.preprocessing.normalize(jax.numpy.asarray(reference["pictures"])))
    noise = np.random.default_rng(int(reference["noise_seed"])).random((2, 224, 224, 3), np.float32)
    x_BHWC = np.concatenate([pictures, noise * 2 - 1])

    def forward(x_BHWC: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        # The reference records the first layer and the last before their ReLU6.
        layers = [model.stem.norm(model.stem.conv(x_BHWC))]
        y_BHWC = model.stem(x_BHWC)
        for block in model.blocks:
            y_BHWC = block(y_BHWC)
            layers.append(y_BHWC)
        layers.append(model.head.norm(model.head.conv(y_BHWC)))
        middles = [y[:, y.shape[1] // 2, y.shape[2] // 2, :16] for y in layers]
        return model(x_BHWC), middles

    logits, layers = jax.jit(forward)(x_BHWC)
    return {"logits": np.asarray(logits), "layers": np.stack(layers)}


def test_logits_equal_the_reference(outputs, reference):
    # float32 against the reference in float64; near 11 a unit in the last place is 1e-6.
    np.testing.assert_allclose(outputs["logits"], reference["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", range(18))
def test_every_layer_equals_the_reference(outputs, reference, layer):
    # Activations reach 30; rounding adds up over the layers.
    np.testing.assert_allclose(
        outputs["layers"][layer], reference["layers"][layer], rtol=1e-5, atol=3e-5
    )


def test_chelsea_is_a_cat_and_the_coffee_an_espresso(outputs, model):
    cat, coffee = (
        [model.class_names[index] for index in np.argsort(-logits)[:3]]
        for logits in outputs["logits"][:2]
    )
    assert set(cat) == {"tabby", "tiger cat", "Egyptian cat"}
    assert coffee[0] == "espresso"
