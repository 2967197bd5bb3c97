"""Where the tensors of torchvision's, timm's and Keras's Inception V3 belong, as data."""

from __future__ import annotations

from collections.abc import Iterable

from jgraph.models._weights._tables import Layout, Row, WeightNames, keras_table, torch_table
from jgraph.models.inception_v3._config import BLOCKS, InceptionBlockSpec, InceptionV3Config

_TORCH_STEM = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    *("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
)
# Keras makes its layers, without names of their own, in the order of ours. Its newer files list
# those of a block by how far they are from its end: the convolutions of each kind of block, by
# torchvision's names, in that order.
_KERAS_ORDERS = (
    (
        *("branch3x3dbl_1", "branch5x5_1", "branch3x3dbl_2", "branch1x1"),
        *("branch5x5_2", "branch3x3dbl_3", "branch_pool"),
    ),
    ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3", "branch3x3dbl_3"),
    (
        *("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7_1", "branch7x7dbl_3", "branch7x7_2"),
        *("branch7x7dbl_4", "branch1x1", "branch7x7_3", "branch7x7dbl_5", "branch_pool"),
    ),
    (
        *("branch7x7x3_1", "branch7x7x3_2", "branch3x3_1", "branch7x7x3_3"),
        *("branch3x3_2", "branch7x7x3_4"),
    ),
    (
        *("branch3x3dbl_1", "branch3x3_1", "branch3x3dbl_2", "branch3x3_2a", "branch3x3_2b"),
        *("branch3x3dbl_3a", "branch3x3dbl_3b", "branch1x1", "branch_pool"),
    ),
)


def _conv_norm(path: str, name: str) -> tuple[Row, Row]:
    return (
        Row(f"{path}/conv", "conv", name and f"{name}.conv"),
        Row(f"{path}/norm", "norm", name and f"{name}.bn"),
    )


def _names(spec: InceptionBlockSpec) -> tuple[str, ...]:
    return tuple(c.name for branch in spec.branches for c in (*branch.convs, *branch.split))


def _block(index: int, spec: InceptionBlockSpec) -> Iterable[Row]:
    for name in _names(spec):
        yield from _conv_norm(f"blocks/{index}/{name}", f"{spec.name}.{name}")


def _torch(config: InceptionV3Config) -> WeightNames:
    rows = [row for i, name in enumerate(_TORCH_STEM) for row in _conv_norm(f"stem/{i}", name)]
    rows += [row for index, spec in enumerate(BLOCKS) for row in _block(index, spec)]
    auxiliary = [
        *_conv_norm("auxiliary/conv0", "AuxLogits.conv0"),
        *_conv_norm("auxiliary/conv1", "AuxLogits.conv1"),
        Row("auxiliary/classifier", "linear", "AuxLogits.fc"),
    ]
    return torch_table(rows, [Row("classifier", "linear", "fc")], auxiliary)


def _keras_order(spec: InceptionBlockSpec) -> tuple[str, ...]:
    return next(order for order in _KERAS_ORDERS if set(order) == set(_names(spec)))


def _keras(config: InceptionV3Config, *, v3: bool) -> WeightNames:
    rows = [row for index in range(len(_TORCH_STEM)) for row in _conv_norm(f"stem/{index}", "")]
    for index, spec in enumerate(BLOCKS):
        for name in _keras_order(spec) if v3 else _names(spec):
            rows += _conv_norm(f"blocks/{index}/{name}", "")
    classifier = [Row("classifier", "linear", "predictions")]
    return keras_table(rows, classifier, v3=v3, use_scale=config.norm.use_scale)


INCEPTION_V3_LAYOUTS = (
    Layout("torchvision", InceptionV3Config.inception_v3, _torch),
    Layout(
        "Keras .h5",
        InceptionV3Config.keras_inception_v3,
        lambda config: _keras(config, v3=False),
    ),
    Layout(
        "Keras v3", InceptionV3Config.keras_inception_v3, lambda config: _keras(config, v3=True)
    ),
)
