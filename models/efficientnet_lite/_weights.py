"""Where the tensors of the published PyTorch files belong, as data.

Source of the names: the package efficientnet-lite-pytorch 0.1.0.
"""

from __future__ import annotations

from jgraph.models._weights._tables import Row, WeightNames, torch_names
from jgraph.models.efficientnet_lite._config import EfficientNetLiteConfig

_STEM = (Row("stem/conv", "conv", "_conv_stem"), Row("stem/norm", "norm", "_bn0"))
_HEAD = (Row("head/conv", "conv", "_conv_head"), Row("head/norm", "norm", "_bn1"))
_EXPAND = (Row("expand/conv", "conv", "_expand_conv"), Row("expand/norm", "norm", "_bn0"))
_BLOCK = (
    Row("depthwise/conv", "depthwise", "_depthwise_conv"),
    Row("depthwise/norm", "norm", "_bn1"),
    Row("project/conv", "conv", "_project_conv"),
    Row("project/norm", "norm", "_bn2"),
)
_CLASSIFIER = (Row("classifier", "linear", "_fc"),)


def weight_names(config: EfficientNetLiteConfig) -> WeightNames:
    """Return the table of the tensors of an EfficientNet-Lite of these sizes.

    Args:
        config: the sizes.

    Returns:
        The names of the backbone's and the classification head's tensors, by our path.

    Example:
        >>> names = weight_names(EfficientNetLiteConfig.lite0())
        >>> names.backbone["stem/conv/kernel"].name
        '_conv_stem.weight'
    """
    rows = [*_STEM, *_HEAD]
    for index, spec in enumerate(config.blocks):
        rows += [
            Row(f"blocks/{index}/{row.path}", row.kind, f"_blocks.{index}.{row.name}")
            for row in (_BLOCK if spec.expansion == 1 else _EXPAND + _BLOCK)
        ]
    return WeightNames(
        torch_names(rows), torch_names(_CLASSIFIER), ignored_suffixes=(".num_batches_tracked",)
    )
