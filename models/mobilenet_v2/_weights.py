"""Where the tensors of torchvision's, timm's and Keras's MobileNetV2 belong, as data."""

from __future__ import annotations

from jgraph.models._weights._tables import Layout, Row, WeightNames, keras_table, torch_table
from jgraph.models.mobilenet_v2._config import STAGE_PLACES, MobileNetV2Config

_STEM = ("stem/conv", "conv"), ("stem/norm", "norm")
_HEAD = ("head/conv", "conv"), ("head/norm", "norm")
_BLOCK = (
    ("expand/conv", "conv"),
    ("expand/norm", "norm"),
    ("depthwise/conv", "depthwise"),
    ("depthwise/norm", "norm"),
    ("project/conv", "conv"),
    ("project/norm", "norm"),
)
# The names beside the rows of _BLOCK; the first block, which doesn't widen, has its own.
_TORCH_BLOCK = ("conv.0.0", "conv.0.1", "conv.1.0", "conv.1.1", "conv.2", "conv.3")
_TORCH_FIRST = ("conv.0.0", "conv.0.1", "conv.1", "conv.2")
_TIMM_BLOCK = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
_TIMM_FIRST = ("conv_dw", "bn1", "conv_pw", "bn2")
_KERAS_BLOCK = (
    *("expand", "expand_BN", "depthwise", "depthwise_BN"),
    *("project", "project_BN"),
)


def _rows(parts: tuple, names: tuple[str, ...], path: str = "", name: str = "") -> list[Row]:
    # The first block lacks the two rows at the beginning.
    return [
        Row(f"{path}{part}", kind, f"{name}{theirs}")
        for (part, kind), theirs in zip(parts[-len(names) :], names, strict=True)
    ]


def _torchvision(config: MobileNetV2Config) -> WeightNames:
    rows = _rows(_STEM, ("features.0.0", "features.0.1"))
    for index, spec in enumerate(config.blocks):
        names = _TORCH_FIRST if spec.expansion == 1 else _TORCH_BLOCK
        rows += _rows(_BLOCK, names, f"blocks/{index}/", f"features.{index + 1}.")
    last = len(config.blocks) + 1
    rows += _rows(_HEAD, (f"features.{last}.0", f"features.{last}.1"))
    return torch_table(rows, [Row("classifier", "linear", "classifier.1")])


def _timm(config: MobileNetV2Config) -> WeightNames:
    rows = _rows(_STEM, ("conv_stem", "bn1"))
    for index, (stage, place) in enumerate(STAGE_PLACES):
        spec = config.blocks[index]
        names = _TIMM_FIRST if spec.expansion == 1 else _TIMM_BLOCK
        rows += _rows(_BLOCK, names, f"blocks/{index}/", f"blocks.{stage}.{place}.")
    rows += _rows(_HEAD, ("conv_head", "bn2"))
    return torch_table(rows, [Row("classifier", "linear", "classifier")])


def _keras(config: MobileNetV2Config, head: str, *, v3: bool) -> WeightNames:
    rows = _rows(_STEM, ("Conv1", "bn_Conv1"))
    for index, spec in enumerate(config.blocks):
        names = _KERAS_BLOCK[2:] if spec.expansion == 1 else _KERAS_BLOCK
        theirs = f"block_{index}_" if index else "expanded_conv_"
        rows += _rows(_BLOCK, names, f"blocks/{index}/", theirs)
    rows += _rows(_HEAD, ("Conv_1", "Conv_1_bn"))
    return keras_table(rows, [Row("classifier", "linear", head)], v3=v3)


MOBILENET_V2_LAYOUTS = (
    Layout("torchvision", MobileNetV2Config.mobilenet_v2, _torchvision),
    Layout("timm", MobileNetV2Config.mobilenet_v2, _timm),
    Layout(
        "Keras .h5",
        MobileNetV2Config.keras_mobilenet_v2,
        lambda config: _keras(config, "predictions", v3=False),
    ),
    # keras-applications 1.0 called the head otherwise.
    Layout(
        "Keras .h5 of 2018",
        MobileNetV2Config.keras_mobilenet_v2,
        lambda config: _keras(config, "Logits", v3=False),
    ),
    Layout(
        "Keras v3",
        MobileNetV2Config.keras_mobilenet_v2,
        lambda config: _keras(config, "predictions", v3=True),
    ),
)
