"""Weight tables against the names and shapes that the peers wrote down, and strict loading."""

import jax
import jaxtyping
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from jgraph._errors import InputError, ModuleWeightsError
from jgraph.models import (
    InceptionV3,
    InceptionV3Config,
    MobileNetV2,
    MobileNetV2Config,
    ResNet,
    ResNetConfig,
    create,
    load_weights,
    weights_of,
)
from jgraph.models._build import load_network, new_network
from jgraph.models._create import _NETWORKS
from tests.models.network_outputs import counted, parameters
from tests.models.network_references import LAYOUTS, described, torch_tensors
from tests.parity.network_fill import CLASSES

KERAS = [name for name in LAYOUTS if name.endswith("-keras")]


def zeros(layout: str, file_format: str) -> dict[str, np.ndarray]:
    """Return zeros by the names in a file, as the readers give them."""
    if "tensors" in described(layout):
        rows = described(layout)["tensors"].items()
    elif file_format == "v3":
        rows = described(layout)["v3"].items()
    else:
        layers = described(layout)["h5"]
        rows = [(f"{k}/{w.split('/')[-1]}", v) for k, row in layers.items() for w, v in row.items()]
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in rows}


@pytest.mark.parametrize(
    ("layout", "file_format", "name"),
    [
        *((name, "h5", "Keras .h5") for name in KERAS),
        *((name, "v3", "Keras v3") for name in KERAS),
        *((name, "torch", "torchvision") for name in LAYOUTS if name.endswith("-torchvision")),
        ("mobilenet_v2-timm", "torch", "timm"),
    ],
)
def test_every_tensor_of_a_peer_has_its_variable(layout, file_format, name):
    network = _NETWORKS[layout.partition("-")[0]]
    tensors = zeros(layout, file_format)
    model, loaded = load_network(
        network.make,
        network.layouts,
        tensors,
        num_classes=None,
        rngs=nnx.Rngs(0),
        source="file",
    )
    assert loaded.layout == name
    assert model.config.num_classes == CLASSES
    assert model.config.origin == ("keras" if file_format in ("h5", "v3") else "torchvision")
    assert set(loaded.loaded) == set(weights_of(model))
    assert loaded.kept == ()
    assert all(name.startswith("AuxLogits.") for name in loaded.left_out)
    assert parameters(model) == counted(layout)


@pytest.mark.parametrize("network", ["inception_v3", "resnet50"])
def test_timm_names_tensors_as_torchvision_does(network):
    timm, torchvision = (described(f"{network}-{x}")["tensors"] for x in ("timm", "torchvision"))
    left_out = {n: row for n, row in torchvision.items() if n.startswith("AuxLogits.")}
    assert timm | left_out == torchvision


@pytest.mark.parametrize("layout", KERAS)
def test_both_keras_formats_name_the_same_layer(layout):
    # The newer format counts the layers of a kind in the order in which the older one lists them.
    network = _NETWORKS[layout.partition("-")[0]]
    tables = {entry.name: entry.names(entry.config(1)) for entry in network.layouts}
    old, new = (tables[name].backbone for name in ("Keras .h5", "Keras v3"))
    listed: dict[str, list[str]] = {}
    for layer, weights in described(layout)["h5"].items():
        leaves = {name.split("/")[-1] for name in weights}
        kind = "batch_normalization" if "beta" in leaves else "conv2d"
        listed.setdefault(
            "depthwise_conv2d" if "depthwise" in layer and kind == "conv2d" else kind, []
        ).append(layer)
    assert old.keys() == new.keys()
    for path, row in old.items():
        position = new[path].name.split("/")[1]
        kind = (
            position.rstrip("0123456789").removesuffix("_") if position[-2:] != "2d" else position
        )
        index = int(position.removeprefix(kind).removeprefix("_") or 0)
        assert listed[kind][index] == row.name.split("/")[0], path


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    """A file of torchvision's MobileNetV2 with ten classes."""
    path = tmp_path_factory.mktemp("weights") / "mobilenet.safetensors"
    safetensors.numpy.save_file(torch_tensors("mobilenet_v2-torchvision"), path)
    return path


def test_another_number_of_classes_gets_a_new_head(mobilenet):
    tensors = torch_tensors("mobilenet_v2-torchvision")
    for num_classes in (3, 0):
        model = create("mobilenet_v2", num_classes=num_classes, weights=mobilenet)
        np.testing.assert_array_equal(
            weights_of(model)["stem/conv/kernel"],
            tensors["features.0.0.weight"].transpose(2, 3, 1, 0),
        )
        assert jax.eval_shape(model, np.zeros((1, 32, 32, 3), np.float32)).shape == (
            1,
            num_classes or 1280,
        )
        assert model.class_names == ()


def test_a_partial_load_says_what_it_left_out(mobilenet):
    model = create("mobilenet_v2", num_classes=3)
    with pytest.raises(ModuleWeightsError) as raised:
        load_weights(model, mobilenet)
    assert str(raised.value).splitlines()[1:] == [
        "  of another shape: classifier.1.weight, in our layout (1280, 10) instead of (1280, 3)",
        "  of another shape: classifier.1.bias, in our layout (10,) instead of (3,)",
    ]
    loaded = load_weights(model, mobilenet, partial=True)
    assert loaded.kept == ("classifier/bias", "classifier/kernel")
    assert loaded.left_out == tuple(str(raised.value).split("\n  ")[1:])
    assert len(loaded.loaded) == len(weights_of(model)) - 2
    assert str(loaded).splitlines() == [
        "260 variables loaded",
        "  kept: classifier/bias",
        "  kept: classifier/kernel",
        *(f"  left out: {line}" for line in loaded.left_out),
    ]


def test_every_misfit_is_named_with_the_nearest(mobilenet, tmp_path):
    tensors = torch_tensors("mobilenet_v2-torchvision")
    tensors["features.5.conv.1.1.wieght"] = tensors.pop("features.5.conv.1.1.weight")
    tensors["extra"] = np.zeros(3, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "net.safetensors")
    with pytest.raises(ModuleWeightsError) as raised:
        create("mobilenet_v2", weights=tmp_path / "net.safetensors")
    assert str(raised.value).splitlines()[1:] == [
        "  missing: features.5.conv.1.1.weight (nearest in the file: features.5.conv.1.1.wieght)",
        "  left over: extra",
        "  left over: features.5.conv.1.1.wieght",
    ]


def test_weights_of_another_version_are_refused(mobilenet):
    model = new_network(MobileNetV2, MobileNetV2Config.keras_mobilenet_v2(CLASSES), nnx.Rngs(0))
    message = "must be those of the keras version of MobileNetV2, .* layout torchvision; make .*"
    with pytest.raises(ModuleWeightsError, match=message + "origin='torchvision'"):
        load_weights(model, mobilenet)


def test_only_our_networks_are_loaded(mobilenet, monkeypatch):
    # Without the types of the tests, as a user runs it.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match=r"takes one of EfficientNetLite, .*, got Linear; set_w"):
        load_weights(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), mobilenet)  # type: ignore[arg-type]


def test_kernels_of_keras_resnet_take_blue_first():
    network = _NETWORKS["resnet50"]
    tensors = zeros("resnet50-keras", "h5")
    tensors["conv1_conv/kernel"][:, :, 0] = 1  # blue
    model, _ = load_network(
        ResNet, network.layouts, tensors, num_classes=0, rngs=nnx.Rngs(0), source="file"
    )
    kernel = weights_of(model)["stem/conv/kernel"]
    np.testing.assert_array_equal(kernel.sum((0, 1, 3)), [0, 0, 7 * 7 * 64])


def test_the_auxiliary_head_is_loaded_where_there_is_one(tmp_path):
    tensors = zeros("inception_v3-torchvision", "torch")
    tensors["AuxLogits.fc.bias"][:] = np.arange(CLASSES)
    safetensors.numpy.save_file(tensors, tmp_path / "net.safetensors")
    config = InceptionV3Config.inception_v3(CLASSES, auxiliary=True)
    model = nnx.eval_shape(lambda: InceptionV3(config, rngs=nnx.Rngs(0)))
    loaded = load_weights(model, tmp_path / "net.safetensors")
    assert loaded.left_out == loaded.kept == ()
    np.testing.assert_array_equal(
        weights_of(model)["auxiliary/classifier/bias"], np.arange(CLASSES)
    )
    model.reset_classifier(0, rngs=nnx.Rngs(0))
    assert model.auxiliary is None


def test_without_weights_networks_are_torchvisions():
    for name in ("resnet50", "mobilenet_v2"):
        model = create(name, num_classes=0)
        assert model.config.origin == "torchvision"
        assert model.classifier is None
    assert isinstance(model, MobileNetV2)
    assert ResNetConfig.resnet50().origin == "torchvision"
