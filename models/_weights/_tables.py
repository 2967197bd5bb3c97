"""Weight tables: where the tensors of other libraries' files belong, as data.

A module of ours that holds variables (a convolution, a normalisation, a linear layer) stands in a
row beside the module of theirs; what its tensors are called, and how they are transposed, is the
same for every module of a kind.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple


class TensorName(NamedTuple):
    """A tensor of a weight file.

    Args:
        name: its name in the file.
        transpose: the order of its axes that makes its layout ours; None keeps it.
        reverse: the axis of our layout that the file has in reverse order, such as the colours of
            a network for pictures in BGR; None for none.
    """

    name: str
    transpose: tuple[int, ...] | None
    reverse: int | None = None


@dataclasses.dataclass(frozen=True)
class WeightNames:
    """Which tensor of a file belongs to which variable of a network.

    Args:
        backbone: tensors by the path of their variable, such as `blocks/0/project/conv/kernel`.
        classifier: likewise, for the classification head.
        auxiliary: likewise, for a second head that not every network has. A network without one
            leaves these tensors of a file out.
        ignored_suffixes: endings of the names in the file that stand for nothing in the network.
    """

    backbone: Mapping[str, TensorName]
    classifier: Mapping[str, TensorName]
    auxiliary: Mapping[str, TensorName] = dataclasses.field(default_factory=dict)
    ignored_suffixes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way in which the weights of a network are published.

    Args:
        name: for messages, such as "torchvision" or "Keras .h5".
        config: makes the config of the network that such weights are of, from the number of
            classes.
        names: makes the weight table from that config.
    """

    name: str
    config: Callable[[int], Any]
    names: Callable[[Any], WeightNames]


class Row(NamedTuple):
    """A module of ours beside the module of theirs.

    Args:
        path: ours, such as `blocks/0/narrow/conv`.
        kind: "conv", "depthwise", "norm" or "linear".
        name: theirs, such as `layer1.0.conv1`.
    """

    path: str
    kind: str
    name: str


# Leaf, its name in the file, and the transpose that makes the file's layout ours
# (PyTorch: output, input, height, width; here: height, width, input, output).
_TORCH_CONV = (("kernel", "weight", (2, 3, 1, 0)), ("bias", "bias", None))
_TORCH_LEAVES = {
    "conv": _TORCH_CONV,
    "depthwise": _TORCH_CONV,
    "norm": (
        ("scale", "weight", None),
        ("bias", "bias", None),
        ("mean", "running_mean", None),
        ("var", "running_var", None),
    ),
    "linear": (("kernel", "weight", (1, 0)), ("bias", "bias", None)),
}
# Keras: depthwise kernels are height, width, channel, multiplier; the others are as ours.
_KERAS_LEAVES = {
    "conv": (("kernel", "kernel", None), ("bias", "bias", None)),
    "depthwise": (("kernel", "kernel", (0, 1, 3, 2)), ("bias", "bias", None)),
    "norm": (
        ("scale", "gamma", None),
        ("bias", "beta", None),
        ("mean", "moving_mean", None),
        ("var", "moving_variance", None),
    ),
    "linear": (("kernel", "kernel", None), ("bias", "bias", None)),
}
# What Keras calls the class of a layer.
_KERAS_CLASSES = {
    "conv": "conv2d",
    "depthwise": "depthwise_conv2d",
    "norm": "batch_normalization",
    "linear": "dense",
}


def torch_names(rows: Iterable[Row], *, use_bias: bool = False) -> dict[str, TensorName]:
    """Return the tensors of a PyTorch state dict.

    Args:
        rows: the modules.
        use_bias: whether convolutions have biases.

    Example:
        >>> torch_names([Row("classifier", "linear", "fc")])["classifier/kernel"]
        TensorName(name='fc.weight', transpose=(1, 0), reverse=None)
    """
    return {
        f"{row.path}/{leaf}": TensorName(f"{row.name}.{tensor}", transpose)
        for row in rows
        for leaf, tensor, transpose in _leaves(_TORCH_LEAVES, row.kind, use_bias, use_scale=True)
    }


def keras_names(
    rows: Iterable[Row], *, use_bias: bool = False, use_scale: bool = True
) -> dict[str, TensorName]:
    """Return the tensors of Keras's older files (.h5): layers by their names.

    Args:
        rows: the layers. The name "" stands for one that Keras named: by its class and how many
            of them were made before.
        use_bias: whether convolutions have biases.
        use_scale: whether normalisations have scales.

    Example:
        >>> keras_names([Row("stem/conv", "conv", ""), Row("next/conv", "conv", "")]).popitem()
        ('next/conv/kernel', TensorName(name='conv2d_1/kernel', transpose=None, reverse=None))
    """
    return {
        f"{row.path}/{leaf}": TensorName(f"{row.name or position}/{tensor}", transpose)
        for row, position in _positions(rows)
        for leaf, tensor, transpose in _leaves(_KERAS_LEAVES, row.kind, use_bias, use_scale)
    }


def keras_v3_names(
    rows: Iterable[Row], *, use_bias: bool = False, use_scale: bool = True
) -> dict[str, TensorName]:
    """Return the tensors of Keras's newer files (.weights.h5, .keras): layers by their positions.

    Args:
        rows: the layers in the order of Keras's `model.layers`.
        use_bias: whether convolutions have biases.
        use_scale: whether normalisations have scales.

    Example:
        >>> rows = [Row("stem/conv", "conv", "conv1"), Row("next/conv", "conv", "conv2")]
        >>> keras_v3_names(rows)["next/conv/kernel"].name
        'layers/conv2d_1/vars/0'
    """
    return {
        f"{row.path}/{leaf}": TensorName(f"layers/{position}/vars/{index}", transpose)
        for row, position in _positions(rows)
        for index, (leaf, _, transpose) in enumerate(
            _leaves(_KERAS_LEAVES, row.kind, use_bias, use_scale)
        )
    }


def _positions(rows: Iterable[Row]) -> Iterable[tuple[Row, str]]:
    counts: Counter[str] = Counter()
    for row in rows:
        kind = _KERAS_CLASSES[row.kind]
        yield row, f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1


def _leaves(
    table: Mapping[str, tuple], kind: str, use_bias: bool, use_scale: bool
) -> list[tuple[str, str, tuple[int, ...] | None]]:
    left_out = set()
    if kind in ("conv", "depthwise") and not use_bias:
        left_out.add("bias")
    if kind == "norm" and not use_scale:
        left_out.add("scale")
    return [leaf for leaf in table[kind] if leaf[0] not in left_out]


def torch_table(
    backbone: Iterable[Row],
    classifier: Iterable[Row],
    auxiliary: Iterable[Row] = (),
    *,
    use_bias: bool = False,
) -> WeightNames:
    """Return the weight table of a PyTorch state dict; the counters of its batches are ignored."""
    return WeightNames(
        torch_names(backbone, use_bias=use_bias),
        torch_names(classifier),
        torch_names(auxiliary),
        ignored_suffixes=(".num_batches_tracked",),
    )


def keras_table(
    backbone: Iterable[Row],
    classifier: Iterable[Row],
    *,
    v3: bool,
    use_bias: bool = False,
    use_scale: bool = True,
) -> WeightNames:
    """Return the weight table of a Keras file, older (.h5) or newer (.weights.h5, .keras)."""
    names = keras_v3_names if v3 else keras_names
    return WeightNames(
        names(backbone, use_bias=use_bias, use_scale=use_scale),
        # Classification heads are the only dense layers: their position doesn't depend on others.
        names(classifier, use_bias=True),
        # The state of random layers, such as dropout.
        ignored_suffixes=("seed_generator/vars/0", "seed_generator_state"),
    )
