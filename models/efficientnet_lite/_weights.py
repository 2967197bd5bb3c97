"""Where the tensors of the published PyTorch files belong, as data.

Source of the names: the package efficientnet-lite-pytorch 0.1.0.
"""

from __future__ import annotations

from jgraph.models._weights._assign import TensorName, WeightNames
from jgraph.models.efficientnet_lite._config import EfficientNetLiteConfig

# Leaf, its name in the file, and the transpose that makes the file's layout ours
# (PyTorch: output, input, height, width; here: height, width, input, output).
_CONV = (("kernel", "weight", (2, 3, 1, 0)),)
_NORM = (
    ("scale", "weight", None),
    ("bias", "bias", None),
    ("mean", "running_mean", None),
    ("var", "running_var", None),
)
_LINEAR = (("kernel", "weight", (1, 0)), ("bias", "bias", None))

_ENDS = (
    ("stem/conv", "_conv_stem", _CONV),
    ("stem/norm", "_bn0", _NORM),
    ("head/conv", "_conv_head", _CONV),
    ("head/norm", "_bn1", _NORM),
)
_EXPAND = (("expand/conv", "_expand_conv", _CONV), ("expand/norm", "_bn0", _NORM))
_BLOCK = (
    ("depthwise/conv", "_depthwise_conv", _CONV),
    ("depthwise/norm", "_bn1", _NORM),
    ("project/conv", "_project_conv", _CONV),
    ("project/norm", "_bn2", _NORM),
)
_CLASSIFIER = (("classifier", "_fc", _LINEAR),)


def weight_names(config: EfficientNetLiteConfig) -> WeightNames:
    """Return the table of the tensors of an EfficientNet-Lite of these sizes.

    Args:
        config: the sizes.

    Returns:
        The names of the backbone's and the classification head's tensors, by our path.

    Example:
        >>> names = weight_names(EfficientNetLiteConfig.lite0())
        >>> names.backbone["stem/conv/kernel"]
        TensorName(name='_conv_stem.weight', transpose=(2, 3, 1, 0))
    """
    backbone = _rows(_ENDS)
    for index, spec in enumerate(config.blocks):
        table = _BLOCK if spec.expansion == 1 else _EXPAND + _BLOCK
        backbone |= _rows(table, f"blocks/{index}/", f"_blocks.{index}.")
    return WeightNames(backbone, _rows(_CLASSIFIER), ignored_suffixes=(".num_batches_tracked",))


def _rows(table: tuple, path: str = "", name: str = "") -> dict[str, TensorName]:
    return {
        f"{path}{module}/{leaf}": TensorName(f"{name}{torch_module}.{tensor}", transpose)
        for module, torch_module, leaves in table
        for leaf, tensor, transpose in leaves
    }
