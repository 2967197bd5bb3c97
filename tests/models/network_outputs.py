"""What our networks compute beside what their peers do, in the peers' names and layouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jgraph.models import PictureNetwork, weights_of
from jgraph.models._create import _NETWORKS
from jgraph.models._weights import Layout, TensorName
from tests.models.network_references import described
from tests.parity.network_fill import pictures, probe

FEATURES = 32
MOMENTUM = 0.9  # of torchvision's networks, whose statistics differ


def layout_of(name: str) -> Layout:
    """Return the weight table of a layout such as "resnet50-keras"."""
    network, _, origin = name.partition("-")
    layouts = {layout.name: layout for layout in _NETWORKS[network].layouts}
    wanted = "Keras .h5" if origin == "keras" else origin
    return layouts.get(wanted, layouts["torchvision"])


def names_of(name: str, config: Any) -> dict[str, TensorName]:
    """Return the peer's names of its tensors by the paths of our variables."""
    names = layout_of(name).names(config)
    return dict(names.backbone) | dict(names.classifier)


def evaluated(model: PictureNetwork) -> dict[str, np.ndarray]:
    """Return logits and features in eval mode."""
    model.eval()
    graph, state = nnx.split(model)

    @jax.jit
    def forward(state: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, state)
        features = model.features(x)
        return model._classify(features), features

    logits, features = forward(state, _pictures(model))
    return {"logits": np.asarray(logits), "features": np.asarray(features)[:, :FEATURES]}


def trained(model: PictureNetwork, name: str, counts: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return logits, gradients and statistics of one step in train mode, without dropout.

    Args:
        model: with the weights of the peer.
        name: of the layout.
        counts: of how many numbers each variance of torch's is; None for Keras.
    """
    before = weights_of(model)
    model.train()
    model.dropout.deterministic = True
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def step(params: Any, x: jax.Array) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(graph, params, rest, copy=True)
            logits = model(x)
            return jnp.mean(jnp.square(logits)), (logits, nnx.state(model, nnx.BatchStat))

        return jax.grad(loss, has_aux=True)(params)

    gradients, (logits, statistics) = step(params, _pictures(model))
    rows = names_of(name, model.config)
    theirs = _in_their_layout(gradients, rows)
    moved = _in_their_layout(statistics, rows)
    if counts is not None:
        variances = sorted(n for n in moved if n.endswith("running_var"))
        old = {rows[path].name: value for path, value in before.items() if path in rows}
        for variance, n in zip(variances, counts, strict=True):
            biased = moved[variance] - MOMENTUM * old[variance]
            moved[variance] = MOMENTUM * old[variance] + biased * (n / (n - 1))
    return {
        "train_logits": np.asarray(logits),
        "gradients": np.stack([probe(n, g) for n, g in sorted(theirs.items())]),
        "statistics": np.stack([probe(n, v) for n, v in sorted(moved.items())]),
    }


def trained_logits(model: PictureNetwork, x_BHWC: jax.Array) -> np.ndarray:
    """Return the logits in train mode, without dropout."""
    model.train()
    model.dropout.deterministic = True
    graph, state = nnx.split(model)
    return np.asarray(jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x_BHWC))


def in_float64(model: PictureNetwork) -> PictureNetwork:
    """Return the model, changed to compute in float64, under `jax.enable_x64`.

    There is no doubt about gradients then: in float32 a number beside the kink of a ReLU may fall
    on its other side, and the biases before a normalisation have gradients of rounding alone.
    """
    for _, module in nnx.iter_graph(model):
        if isinstance(module, nnx.Conv | nnx.BatchNorm | nnx.Linear):
            module.dtype = module.param_dtype = jnp.float64
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    nnx.update(model, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), state))
    return model


def _pictures(model: PictureNetwork) -> jax.Array:
    assert model.classifier is not None
    return jnp.asarray(pictures(), model.classifier.kernel[...].dtype)


def _in_their_layout(state: Any, rows: Mapping[str, TensorName]) -> dict[str, np.ndarray]:
    found = {}
    for keys, leaf in nnx.to_flat_state(state):
        path = "/".join(map(str, keys))
        if path not in rows:
            continue  # the auxiliary head, which takes no part
        row, value = rows[path], np.asarray(leaf[...])
        if row.reverse is not None:
            value = np.flip(value, row.reverse)
        if row.transpose is not None:
            value = value.transpose(np.argsort(row.transpose))
        found[row.name] = value
    return found


def errors(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return how far each value is off: of the largest logit or feature, or of a tensor's length.

    A probe is a tensor's length and its product with normal numbers, whose spread is that length.
    The worst tensor counts; gradients of less than a millionth of the largest are rounding.
    """
    off = {}
    for name, value in found.items():
        wanted = expected[name]
        scale = np.abs(wanted).max()
        if name in ("gradients", "statistics"):
            scale = wanted[:, :1] + 1e-6 * wanted[:, :1].max()
        off[name] = float(np.max(np.abs(value - wanted) / scale))
    return off


def parameters(model: PictureNetwork) -> int:
    """Return how many trained numbers a network has."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def counted(name: str) -> int:
    """Return how many the peer has, torchvision's auxiliary head not counted."""
    tensors = described(name).get("tensors", {})
    auxiliary = sum(
        int(np.prod(shape))
        for tensor, (shape, _) in tensors.items()
        if tensor.startswith("AuxLogits") and tensor.endswith(("weight", "bias"))
    )
    return described(name)["parameters"] - auxiliary
