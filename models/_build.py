"""Picture networks made quickly: traced once with shapes only, then given their values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from jgraph._arrays import from_numpy
from jgraph._errors import ModuleWeightsError
from jgraph.models._layers import kernel_std
from jgraph.models._network import PictureNetwork
from jgraph.models._weights import Layout, LoadedWeights, assign_weights

_CONSTANTS = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}

N = TypeVar("N", bound=PictureNetwork)


def new_network(make: Callable[..., N], config: Any, rngs: nnx.Rngs) -> N:
    """Return a new network, its values distributed as the constructor's.

    All kernels come out of one draw: the constructor's draw per layer compiles a program per
    shape, which takes ten seconds.

    Args:
        make: the class of the network.
        config: its config.
        rngs: source of the values and of dropout.

    Returns:
        The network, in training mode.

    Example:
        >>> from flax import nnx
        >>> from jgraph.models import EfficientNetLite, EfficientNetLiteConfig
        >>> config = EfficientNetLiteConfig.lite0(num_classes=0)
        >>> float(new_network(EfficientNetLite, config, nnx.Rngs(0)).stem.norm.scale[0])
        1.0
    """
    model = _abstract(make, config)
    backbone = [
        (path, variable)
        for path, variable in nnx.to_flat_state(nnx.state(model))
        if path[-2] in ("conv", "norm")
    ]
    model.reset_classifier(config.num_classes, rngs=rngs)
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
        new.append((path, variable.replace(from_numpy(value))))
    nnx.update(model, nnx.from_flat_state(new))
    return model


def load_network(
    make: Callable[..., N],
    layouts: Sequence[Layout],
    tensors: Mapping[str, np.ndarray],
    *,
    num_classes: int | None,
    rngs: nnx.Rngs,
    source: str,
) -> tuple[N, LoadedWeights]:
    """Return a network with the backbone of a file, and its classification head if that fits.

    Args:
        make: the class of the network.
        layouts: the ways in which its weights are published.
        tensors: what the file holds, by its names.
        num_classes: outputs of the classification head; None for the file's.
        rngs: source of a new classification head and of dropout.
        source: the file, for error messages.

    Returns:
        The network, in training mode, and what became of the file.

    Raises:
        ModuleWeightsError: the tensors are not the network's; each is named.
    """
    layout = nearest_layout(layouts, tensors)
    in_file = _classes_in_file(layout, tensors)
    wanted = (in_file or 1000) if num_classes is None else num_classes
    with_classifier = num_classes is None or wanted == in_file
    model = _abstract(make, layout.config(wanted))
    names = layout.names(model.config)
    loaded = assign_weights(model, tensors, names, with_classifier=with_classifier, source=source)
    if with_classifier:
        model.reset_dropout(rngs=rngs)
    else:
        model.reset_classifier(wanted, rngs=rngs)
    return model, dataclasses.replace(loaded, layout=layout.name)


def fill_network(
    model: PictureNetwork,
    layouts: Sequence[Layout],
    tensors: Mapping[str, np.ndarray],
    *,
    partial: bool,
    source: str,
) -> LoadedWeights:
    """Set the variables of a network, in place, from the tensors of a file.

    Args:
        model: the network.
        layouts: the ways in which its weights are published.
        tensors: what the file holds, by its names.
        partial: whether what doesn't fit is left out instead of refused.
        source: the file, for error messages.

    Returns:
        What was set, and what was not.

    Raises:
        ModuleWeightsError: the tensors are not the network's; each is named. Or they are of
            another version of the network, which would compute something else with them.
    """
    layout = nearest_layout(layouts, tensors)
    origin, own = (
        getattr(config, "origin", None)
        for config in (layout.config(model.config.num_classes), model.config)
    )
    if origin != own:
        raise ModuleWeightsError(
            f"the weights must be those of the {own} version of {type(model).__name__}, but "
            f"{source} has the layout {layout.name}; make the network with origin={origin!r}"
        )
    loaded = assign_weights(
        model,
        tensors,
        layout.names(model.config),
        with_classifier=model.classifier is not None,
        source=source,
        partial=partial,
    )
    return dataclasses.replace(loaded, layout=layout.name)


def nearest_layout(layouts: Sequence[Layout], tensors: Mapping[str, np.ndarray]) -> Layout:
    """Return the layout whose names are in a file most often; the first where none are."""

    def known(layout: Layout) -> int:
        names = layout.names(layout.config(1))
        rows = (*names.backbone.values(), *names.classifier.values())
        return sum(row.name in tensors for row in rows)

    return max(layouts, key=known)


def _classes_in_file(layout: Layout, tensors: Mapping[str, np.ndarray]) -> int | None:
    row = layout.names(layout.config(1)).classifier["classifier/bias"]
    bias = tensors.get(row.name)
    return bias.shape[0] if bias is not None and bias.ndim == 1 else None


def _abstract(make: Callable[..., N], config: Any) -> N:
    return nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0)))
