"""EfficientNet-Lite made quickly: traced once with shapes only, then given its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jgraph.models._weights import assign_weights
from jgraph.models.efficientnet_lite._config import EfficientNetLiteConfig
from jgraph.models.efficientnet_lite._modeling import EfficientNetLite, kernel_std
from jgraph.models.efficientnet_lite._weights import weight_names

_CLASSIFIER_KERNEL = "_fc.weight"
_CONSTANTS = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}


def new_network(config: EfficientNetLiteConfig, rngs: nnx.Rngs) -> EfficientNetLite:
    """Return a new network, its values distributed as the constructor's.

    All kernels come out of one draw: the constructor's draw per layer compiles a program per
    shape, which takes ten seconds.

    Args:
        config: the sizes.
        rngs: source of the values and of dropout.

    Returns:
        The network, in training mode.

    Example:
        >>> from flax import nnx
        >>> model = new_network(EfficientNetLiteConfig.lite0(num_classes=0), nnx.Rngs(0))
        >>> float(model.stem.norm.scale[0])
        1.0
    """
    model = _abstract(config)
    model.reset_classifier(config.num_classes, rngs=rngs)
    backbone = [
        (path, variable)
        for path, variable in nnx.to_flat_state(nnx.state(model))
        if path[-2] in ("conv", "norm")
    ]
    sizes = [math.prod(v.get_value().shape) for path, v in backbone if path[-1] == "kernel"]
    normal = np.asarray(jax.random.normal(rngs.params(), (sum(sizes),)))
    draws = iter(np.split(normal, np.cumsum(sizes)[:-1]))
    new = []
    for path, variable in backbone:
        shape = variable.get_value().shape
        if path[-1] == "kernel":
            value = next(draws).reshape(shape) * np.float32(kernel_std(shape))
        else:
            value = np.full(shape, _CONSTANTS[str(path[-1])], np.float32)
        new.append((path, variable.replace(jnp.asarray(value))))
    nnx.update(model, nnx.from_flat_state(new))
    return model


def load_network(
    preset: Callable[[int], EfficientNetLiteConfig],
    tensors: Mapping[str, np.ndarray],
    *,
    num_classes: int | None,
    rngs: nnx.Rngs,
    source: str,
) -> EfficientNetLite:
    """Return a network with the backbone of a file, and its classification head if that fits.

    Args:
        preset: makes the sizes from the number of classes.
        tensors: what the file holds, by its published names.
        num_classes: outputs of the classification head; None for the file's.
        rngs: source of a new classification head and of dropout.
        source: the file, for error messages.

    Returns:
        The network, in training mode.

    Raises:
        ModuleWeightsError: the tensors are not the network's; each is named.
    """
    kernel = tensors.get(_CLASSIFIER_KERNEL)
    classes_in_file = kernel.shape[0] if kernel is not None and kernel.ndim else 1000
    wanted = classes_in_file if num_classes is None else num_classes
    with_classifier = num_classes is None or (kernel is not None and wanted == classes_in_file)
    config = preset(wanted)
    model = _abstract(config)
    assign_weights(
        model, tensors, weight_names(config), with_classifier=with_classifier, source=source
    )
    if with_classifier:
        model.reset_dropout(rngs=rngs)
    else:
        model.reset_classifier(wanted, rngs=rngs)
    return model


def _abstract(config: EfficientNetLiteConfig) -> EfficientNetLite:
    return nnx.eval_shape(lambda: EfficientNetLite(config, rngs=nnx.Rngs(0)))
