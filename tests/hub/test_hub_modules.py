"""Modules: published, loaded, called, differentiated, put into models and published again."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

import jgraph as jg
from jgraph.hub import Frozen
from jgraph.hub._weights import Part, grow
from jgraph.models import EfficientNetLite, EfficientNetLiteConfig
from jgraph.models._build import new_network
from tests.hub.hub_net import X, Y, make_net

FEATURES = [
    "blocks/0/bias",
    "blocks/0/kernel",
    "blocks/1/bias",
    "blocks/1/kernel",
    "first/bias",
    "first/kernel",
    "norm/bias",
    "norm/scale",
]


@pytest.fixture(scope="module")
def net():
    return make_net()


@pytest.fixture(scope="module")
def folder(net, tmp_path_factory):
    return jg.hub.publish(tmp_path_factory.mktemp("hub") / "net", net, inputs={"x": X})


@pytest.fixture
def module(folder):
    return jg.hub.load(folder)


def params_of(model):
    return {"/".join(map(str, p)): v for p, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}


class Tuned(nnx.Module):
    """A new head on a module's features."""

    def __init__(self, module, trainable: bool | str = True):
        self.backbone = module.as_nnx("features", trainable=trainable, rngs=nnx.Rngs(3))
        self.head = nnx.Linear(8, 2, rngs=nnx.Rngs(4))

    def __call__(self, x):
        return self.head(self.backbone(x))


class TunedWithSource(nnx.Module):
    """The same, of the network itself."""

    def __init__(self, net):
        self.backbone = net
        self.head = nnx.Linear(8, 2, rngs=nnx.Rngs(4))

    def __call__(self, x):
        return self.head(self.backbone.features(x))


def loss_fn(model, batch):
    return jg.losses.sparse_softmax_cross_entropy(model(batch["x"]), batch["y"])


def train(model, strategy=None, steps=5):
    data = [{"x": X, "y": Y}]
    spec = jg.TrainSpec(data, steps, log_every=1)
    return jg.train_and_evaluate(model, loss_fn, optax.sgd(0.1), train=spec, strategy=strategy)


# A black box.


def test_signatures_are_described(module):
    assert module.signatures == ("default", "features")
    info = module.info("features")
    assert info.inputs == {"x": {"shape": ["b", 4], "dtype": "float32"}}
    assert info.outputs == {"result": {"shape": ["b", 8], "dtype": "float32"}}
    assert info.has_train
    assert info.weights == 4 * 8 + 8 + 4 * 8 + 2 * (8 * 8 + 8)
    with pytest.raises(jg.hub.SignatureError, match="one of default, features, got 'feature'; did"):
        module.info("feature")


def test_outputs_are_the_networks(module, net):
    for rows in (1, 8):
        assert (module(X[:rows]) == net(X[:rows])).all()
    assert (module(X, signature="features") == net.features(X)).all()


def test_the_same_model_gives_the_same_bytes(folder, net, tmp_path):
    again = jg.hub.publish(tmp_path / "net", net, inputs={"x": X})
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert [str(name) for name in names] == [
        "README.md",
        "module.json",
        "programs/default.graph",
        "programs/default.train.graph",
        "programs/features.graph",
        "programs/features.train.graph",
        "weights.safetensors",
    ]
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_publishing_changes_nothing(tmp_path):
    net = make_net()
    before = {k: np.asarray(v.get_value()) for k, v in params_of(net).items()}
    net.train()
    jg.hub.publish(tmp_path / "net", net, inputs={"x": X})
    assert not net.drop.deterministic
    assert all((np.asarray(v.get_value()) == before[k]).all() for k, v in params_of(net).items())


# A pure function.


def test_apply_is_pure(module, net):
    features = module.apply("features")
    want = net.features(X)
    assert (features(module.params, module.state, X) == want).all()
    assert jnp.allclose(jax.jit(features)(module.params, module.state, X), want, atol=1e-6)
    rows = jax.vmap(lambda x: features(module.params, module.state, x[None])[0])(X)
    assert jnp.allclose(rows, want, atol=1e-5)
    found = jax.grad(lambda p: features(p, module.state, X).sum())(module.params)
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    wanted = jax.grad(lambda p: nnx.merge(graphdef, p, rest).features(X).sum())(params)
    for path, value in nnx.to_flat_state(wanted):
        assert jnp.allclose(found["/".join(map(str, path))], value[...], atol=1e-4), path


def test_apply_in_another_type(module, net):
    features = module.apply("features", dtype=jnp.bfloat16)
    found = features(module.params, module.state, X)
    assert found.dtype == jnp.bfloat16
    assert jnp.allclose(found.astype(jnp.float32), net.features(X), atol=0.05, rtol=0.05)


def test_apply_in_training_mode_returns_the_statistics(tmp_path):
    net = make_net(drop=0.0)
    module = jg.hub.load(jg.hub.publish(tmp_path / "net", net, inputs={"x": X}))
    outputs, state = module.apply("features", train=True)(module.params, module.state, X)
    net.train()
    assert jnp.allclose(outputs, net.features(X), atol=1e-5)
    assert jnp.allclose(state["norm/mean"], net.norm.mean[...], atol=1e-6)
    assert not jnp.allclose(state["norm/mean"], module.state["norm/mean"])


def test_a_weight_that_lacks_is_named(module):
    params = dict(module.params)
    del params["first/bias"]
    with pytest.raises(jg.hub.SignatureError, match=r"'features' uses .* lack 'first/bias'"):
        module.apply("features")(params, module.state, X)


# A part of a model.


def test_the_params_are_the_weights_that_the_signature_uses(module):
    layer = module.as_nnx("features", trainable=True)
    assert sorted(params_of(layer)) == FEATURES
    assert sorted(params_of(module.as_nnx("features"))) == []
    some = module.as_nnx("features", trainable=["blocks/1/*", "norm/*"])
    assert sorted(params_of(some)) == FEATURES[2:4] + FEATURES[6:]
    frozen = nnx.to_flat_state(nnx.state(some, Frozen))
    assert sorted("/".join(map(str, path)) for path, _ in frozen) == FEATURES[:2] + FEATURES[4:6]
    with pytest.raises(jg.InputError, match=r"'block/\*' matches none of .*; did you mean"):
        module.as_nnx("features", trainable="block/*")


def test_a_layer_has_both_modes(module, net):
    layer = module.as_nnx("features", trainable=True, rngs=nnx.Rngs(1))
    assert (layer(X) == net.features(X)).all()
    before = layer.norm.mean[...]
    layer.train()
    first, second = layer(X), layer(X)
    assert (first == 0).mean() > 0.3  # dropout
    assert (first != second).any()
    assert (layer.norm.mean[...] != before).all()
    layer.eval()
    assert (layer(X) == layer(X)).all()


def test_random_streams_follow_the_rngs(module):
    layers = [module.as_nnx("features", rngs=nnx.Rngs(seed)) for seed in (1, 1, 2)]
    for layer in layers:
        layer.train()
    first, same, other = (layer(X) for layer in layers)
    assert (first == same).all()
    assert (first != other).any()


def test_training_equals_training_with_the_source(tmp_path):
    net = make_net(drop=0.0)
    module = jg.hub.load(jg.hub.publish(tmp_path / "net", net, inputs={"x": X}))
    ours, theirs = Tuned(module), TunedWithSource(net)
    for model in (ours, theirs):
        model.train()
    losses = [[row["loss"] for row in train(model).history] for model in (ours, theirs)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0][-1] < losses[0][0]
    with_source = params_of(theirs)
    for key, value in params_of(ours).items():
        assert jnp.allclose(value[...], with_source[key][...], atol=1e-5), key
    assert jnp.allclose(ours.backbone.norm.mean[...], net.norm.mean[...], atol=1e-5)


@pytest.mark.parametrize(
    "name", ["pmap", *(pytest.param(x, marks=pytest.mark.slow) for x in ("data_parallel", "fsdp"))]
)
def test_training_under_a_strategy_equals_one_device(name, tmp_path):
    module = jg.hub.load(jg.hub.publish(tmp_path / "net", make_net(drop=0.0), inputs={"x": X}))
    one, many = Tuned(module), Tuned(module)
    for model, strategy in ((one, None), (many, jg.distribute.create(name))):
        model.train()
        train(model, strategy)
    for key, value in params_of(one).items():
        assert jnp.allclose(value[...], params_of(many)[key][...], atol=1e-5), key
    assert jnp.allclose(one.backbone.norm.mean[...], many.backbone.norm.mean[...], atol=1e-5)


def test_frozen_weights_stay(module):
    model = Tuned(module, trainable="blocks/1/*")
    before = {k: v[...] for k, v in nnx.to_flat_state(nnx.state(model.backbone))}
    model.train()
    train(model)
    after = {k: v[...] for k, v in nnx.to_flat_state(nnx.state(model.backbone))}
    changed = {k[0] for k in before if k[0] != "drop" and (before[k] != after[k]).any()}
    assert changed == {"blocks", "norm"}  # the statistics follow the mode
    assert (before["blocks", "0", "kernel"] == after["blocks", "0", "kernel"]).all()


def test_freezing_by_path_rests_the_layer(module):
    model = Tuned(module)
    model.train()
    before = model.backbone.norm.mean[...]
    spec = jg.TrainSpec([{"x": X, "y": Y}], 2)
    jg.train_and_evaluate(model, loss_fn, optax.sgd(0.1), train=spec, freeze="backbone")
    assert (model.backbone.norm.mean[...] == before).all()


# Published again.


def test_a_model_with_a_layer_is_published(module, tmp_path):
    model = Tuned(module)
    model.train()
    train(model, steps=2)
    model.eval()
    again = jg.hub.load(
        jg.hub.publish(tmp_path / "tuned", model, inputs={"x": X}, labels=["no", "yes"])
    )
    assert again.labels == ("no", "yes")
    assert jnp.allclose(again(X), model(X), atol=1e-6)
    layer = again.as_nnx(trainable=True)
    assert "backbone/blocks/0/kernel" in params_of(layer)
    layer.train()
    assert (layer(X) != layer(X)).any()


def test_a_layer_gives_its_module_back(module, tmp_path):
    layer = module.as_nnx("features", trainable=True)
    layer.first.bias[...] = jnp.full(8, 0.5)
    tuned = jg.hub.load(jg.hub.publish(tmp_path / "tuned", layer.module()))
    assert tuned.signatures == module.signatures
    assert (tuned(X, signature="features") == layer(X)).all()
    assert (tuned.weights["head/kernel"] == module.weights["head/kernel"]).all()
    assert tuned.manifest["provenance"] == {"module": module.manifest["sha256"]}


def test_other_weights(module):
    with pytest.raises(
        jg.InputError, match=r"'first/bia' is no weight of .*did you mean first/bias"
    ):
        module.with_weights({"first/bia": np.zeros(8)})
    with pytest.raises(jg.InputError, match=r"'first/bias' must have the shape \(8,\), got \(7,\)"):
        module.with_weights({"first/bias": np.zeros(7)})


# What can't be published.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "inputs must say what the signatures take"),
        ({"inputs": {"x": 3}}, "'x' must be an example array or a jax.ShapeDtypeStruct, got int"),
        ({"signatures": {}}, "at least one"),
        ({"signatures": {"a b": "features"}}, "letters, digits and _, got 'a b'"),
        ({"signatures": {"default": "feature"}}, "no method 'feature'; did you mean features"),
        ({"inputs": {"default": {"x": X}}}, r"for \['default', 'features'\], got \['default'\]"),
    ],
)
def test_what_cannot_be_published(net, tmp_path, options, message):
    with pytest.raises(jg.InputError, match=message):
        jg.hub.publish(tmp_path / "net", net, **options)
    assert not list(tmp_path.iterdir())


def test_inputs_by_signature(net, tmp_path):
    path = jg.hub.publish(
        tmp_path / "net",
        net,
        signatures={"default": "__call__", "sum": lambda model, x, y: model(x + y).sum()},
        inputs={"default": {"x": X}, "sum": {"x": X, "y": X}},
    )
    module = jg.hub.load(path)
    assert jnp.allclose(module(X, X, signature="sum"), net(X + X).sum(), atol=1e-4)
    with pytest.raises(jg.hub.SignatureError, match="'sum' takes x, y, got 1 inputs"):
        module(X, signature="sum")


# Files that don't fit.


def change(folder, target, edit):
    """Write a copy of a module with another manifest, as somebody who means harm would."""
    import shutil

    from jgraph._digests import value_digest

    shutil.copytree(folder, target)
    manifest = json.loads((target / "module.json").read_text())
    edit(manifest)
    manifest["sha256"] = value_digest(manifest)
    (target / "module.json").write_text(json.dumps(manifest))
    return target


def first_program(manifest):
    return manifest["signatures"]["default"]["program"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: first_program(m).update(file="programs/x.graph"), "a program among its files"),
        (lambda m: first_program(m).update(file="../x"), "a program among its files"),
        (lambda m: first_program(m).update(weights=["no/weight"]), "'no/weight'.* no weight of it"),
        (lambda m: first_program(m)["weights"].pop(), "must use the weights that module.json"),
        (lambda m: first_program(m).update(file="weights.safetensors"), "must be a graph file"),
        (lambda m: first_program(m).update(weights=3), "signatures"),
        (lambda m: m["signatures"].update(default=3), "signatures"),
        (lambda m: m.update(variables=[]), "variables"),
    ],
)
def test_a_manifest_that_does_not_fit_its_files(folder, tmp_path, edit, message):
    path = change(folder, tmp_path / "bad", edit)
    with pytest.raises(jg.hub.ModuleFormatError, match=message):
        jg.hub.load(path)(X)


def test_weights_that_do_not_fit_the_programs(folder, tmp_path):
    with pytest.raises(jg.hub.ModuleWeightsError, match="has the unknown weight 'first/bias'"):
        jg.hub.load(change(folder, tmp_path / "a", lambda m: m["variables"].pop("first/bias")))

    def add(manifest):
        manifest["variables"]["more"] = {"kind": "Param"}

    with pytest.raises(jg.hub.ModuleWeightsError, match="lacks weight 'more'"):
        jg.hub.load(change(folder, tmp_path / "b", add))
    module = jg.hub.load(folder)
    weights = {**module.weights, "first/bias": np.zeros(9, np.float32)}
    other = jg.hub.Module(folder, module.manifest, weights)
    with pytest.raises(jg.hub.ModuleFormatError, match=r"takes 'first/bias' as float32\[8\]"):
        other(X)


# Without the source, and under the other JAX.

MODULES = Path(__file__).parents[1] / "data" / "modules"
CORPUS = sorted(path for path in MODULES.iterdir() if path.is_dir())

ALONE = """
import json, sys
sys.modules["jgraph.models"] = None  # any import of it fails
import jax, numpy as np, optax
from flax import nnx
import jgraph as jg

module = jg.hub.load(sys.argv[1])
wanted = json.load(open(sys.argv[1] + ".json"))
x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
for name, rows in wanted.items():
    np.testing.assert_allclose(module(x, signature=name), rows, rtol=1e-5, atol=1e-5)

class Tuned(nnx.Module):
    def __init__(self):
        self.backbone = module.as_nnx("features", trainable=True)
        self.head = nnx.Linear(8, 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.head(self.backbone(x))

model = Tuned()
model.train()
y = np.array([0, 1, 0, 1, 1, 0, 1, 0])
result = jg.train_and_evaluate(
    model,
    lambda model, batch: jg.losses.sparse_softmax_cross_entropy(model(batch["x"]), batch["y"]),
    optax.adam(0.03),
    train=jg.TrainSpec([{"x": x, "y": y}], 60, log_every=10),
)
losses = [row["loss"] for row in result.history]
assert losses[-1] < 0.6 * losses[0], losses
print(jax.__version__, "uses and trains", module.manifest["made_with"]["jax"])
"""


def test_there_are_modules_of_both_ends():
    made = {json.loads((p / "module.json").read_text())["made_with"]["jax"] for p in CORPUS}
    assert {version[:4] for version in made} == {"0.10", "0.12"}


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_a_process_without_any_source_uses_and_trains_it(path, tmp_path):
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    root = Path(jg.__file__).parents[1]
    shown = subprocess.run(
        [sys.executable, script, path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert f"{jax.__version__} uses and trains" in shown.stdout


class Recurrent(nnx.Module):
    """A network that draws random numbers in evaluation mode, too."""

    def __init__(self) -> None:
        self.rnn = nnx.RNN(nnx.SimpleCell(4, 8, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))

    def __call__(self, x) -> Any:
        return self.rnn(x)


def test_a_recurrent_network_is_a_black_box(tmp_path):
    x = X.reshape(2, 4, 4)
    model = Recurrent()
    model.eval()
    module = jg.hub.load(jg.hub.publish(tmp_path / "rnn", model, inputs={"x": x}))
    assert jnp.allclose(module(x), model(x), atol=1e-6)


def test_an_archive_is_made_by_push(net, tmp_path):
    with pytest.raises(jg.InputError, match=r"publish writes a folder, .*push\(folder, 'net.zip'"):
        jg.hub.publish(tmp_path / "net.zip", net, inputs={"x": X})


def test_what_is_no_model_is_not_published(tmp_path):
    publish = inspect.unwrap(jg.hub.publish)  # without the tests' check of its annotations
    with pytest.raises(jg.InputError, match=r"an nnx.Module or a module of the hub, got function"):
        publish(tmp_path / "net", lambda x: x, inputs={"x": X})


@pytest.mark.parametrize("labels", [["one"], ["a", "b", "c", "d"]])
def test_labels_are_as_many_as_the_classes(net, tmp_path, labels):
    message = rf"labels must be one for each class .* got {len(labels)} .*default .*\[b, 3\]"
    with pytest.raises(jg.InputError, match=message):
        jg.hub.publish(tmp_path / "net", net, inputs={"x": X}, labels=labels)
    assert not (tmp_path / "net").exists()


def test_one_logit_decides_between_two_classes(tmp_path):
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    folder = jg.hub.publish(
        tmp_path / "line", model, inputs={"x": jnp.zeros((1, 2))}, labels=["cat", "dog"]
    )
    assert jg.hub.load(folder).labels == ("cat", "dog")


def test_a_run_without_programs_says_how_to_get_them(folder, tmp_path):
    def as_a_run(manifest):
        for entry in manifest["signatures"].values():
            del entry["program"], entry["train"]

    run = jg.hub.load(change(folder, tmp_path / "run", as_a_run))
    with pytest.raises(jg.hub.SignatureError, match=r"without programs; .*: jgraph hub publish"):
        run(X)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a", "a/b"], "'a/b' lies below another weight"),
        (["a/b", "a"], "'a' is in the way of another"),
        (["_a/b"], "'_a/b' must have names that attributes can have"),
        (["a//b"], "'a//b' must have names that attributes can have"),
        (["train"], "'train' must have names that attributes can have"),
    ],
)
def test_keys_that_make_no_tree(keys, message):
    with pytest.raises(jg.hub.ModuleFormatError, match=message):
        grow(Part(), {key: nnx.Param(jnp.zeros(1)) for key in keys})


def test_a_network_is_published_as_it_is(tmp_path: Path) -> None:
    config = EfficientNetLiteConfig(0.25, 0.3, 32, dropout_rate=0.2, num_classes=5)
    model = new_network(EfficientNetLite, config, nnx.Rngs(0))
    model.eval()
    module = jg.hub.load(jg.hub.publish(tmp_path / "net", model, train=False))
    assert module.signatures == ("default", "features")
    pictures = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    expected = jg.function(lambda model, x: model(x))(model, pictures)
    np.testing.assert_allclose(module(pictures), expected, atol=1e-6)
    # Files go through its preprocessing, and what is no picture is named.
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    assert module([tmp_path / "a.png"]).shape == (1, 5)
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(jg.PictureError, match=r"b\.png[^;]*$"):
        module([tmp_path / "a.png", tmp_path / "b.png"])
