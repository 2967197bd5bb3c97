"""Where the tensors of torchvision's, timm's and Keras's ResNets belong, as data."""

from __future__ import annotations

from collections.abc import Iterator

from jgraph.models._weights._tables import (
    Layout,
    Row,
    TensorName,
    WeightNames,
    keras_table,
    torch_table,
)
from jgraph.models.resnet._config import ResNetConfig

_PARTS = ("narrow", "filter", "widen")
_STEM_KERNEL = "stem/conv/kernel"
# Keras lists the layers of a block by how far they are from its end.
_KERAS_PARTS = (("narrow", 1), ("filter", 2), ("shortcut", 0), ("widen", 3))


def _blocks(config: ResNetConfig) -> Iterator[tuple[str, int, int]]:
    """Yield the path, the stage and the place in the stage of every block."""
    index = 0
    for stage, depth in enumerate(config.depths):
        for place in range(depth):
            yield f"blocks/{index}", stage, place
            index += 1


def _torch(config: ResNetConfig) -> WeightNames:
    rows = [Row("stem/conv", "conv", "conv1"), Row("stem/norm", "norm", "bn1")]
    for path, stage, place in _blocks(config):
        theirs = f"layer{stage + 1}.{place}"
        for number, part in enumerate(_PARTS, start=1):
            rows.append(Row(f"{path}/{part}/conv", "conv", f"{theirs}.conv{number}"))
            rows.append(Row(f"{path}/{part}/norm", "norm", f"{theirs}.bn{number}"))
        if place == 0:
            rows.append(Row(f"{path}/shortcut/conv", "conv", f"{theirs}.downsample.0"))
            rows.append(Row(f"{path}/shortcut/norm", "norm", f"{theirs}.downsample.1"))
    return torch_table(rows, [Row("classifier", "linear", "fc")])


def _keras(config: ResNetConfig, *, v3: bool) -> WeightNames:
    rows = [Row("stem/conv", "conv", "conv1_conv"), Row("stem/norm", "norm", "conv1_bn")]
    for path, stage, place in _blocks(config):
        theirs = f"conv{stage + 2}_block{place + 1}"
        for part, number in _KERAS_PARTS:
            if part != "shortcut" or place == 0:
                rows.append(Row(f"{path}/{part}/conv", "conv", f"{theirs}_{number}_conv"))
                rows.append(Row(f"{path}/{part}/norm", "norm", f"{theirs}_{number}_bn"))
    names = keras_table(rows, [Row("classifier", "linear", "predictions")], v3=v3, use_bias=True)
    # Keras's network takes blue first.
    name, transpose, _ = names.backbone[_STEM_KERNEL]
    flipped = {_STEM_KERNEL: TensorName(name, transpose, reverse=2)}
    return WeightNames(
        dict(names.backbone) | flipped, names.classifier, ignored_suffixes=names.ignored_suffixes
    )


RESNET50_LAYOUTS = (
    Layout("torchvision", ResNetConfig.resnet50, _torch),
    Layout("Keras .h5", ResNetConfig.keras_resnet50, lambda config: _keras(config, v3=False)),
    Layout("Keras v3", ResNetConfig.keras_resnet50, lambda config: _keras(config, v3=True)),
)
