"""The network that features come from: one of jgraph's own, or any module of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array

from jgraph import hub, models
from jgraph._errors import InputError
from jgraph._preprocessing import Preprocessing

SIGNATURE = "features"


class Origin(NamedTuple):
    """Where a backbone's weights come from, and what their publisher grants."""

    handle: str
    sha256: str
    licence: str


class ModuleBackbone(hub.Layer):
    """The signature "features" of a hub module, as the backbone of a classifier."""

    @property
    def takes_pictures(self) -> bool:
        """Whether it takes uint8 pictures as they are, and normalises them itself."""
        return self._input["dtype"] == "uint8"

    @property
    def feature_size(self) -> int:
        """The length of its feature vectors."""
        (output,) = self.source.info(SIGNATURE).outputs.values()
        return output["shape"][-1]

    @property
    def stages(self) -> tuple[tuple[nnx.Module, ...], ...]:
        """What is unfrozen together; all of it where its publisher didn't say."""
        stages = [
            tuple(part for key in stage if (part := self.part(key)) is not None)
            for stage in self.source.manifest.get("stages", [])
        ]
        return tuple(stage for stage in stages if stage) or ((self,),)

    @property
    def picture_size(self) -> int | None:
        """The side of the pictures it takes, None for any."""
        size = self._input["shape"][1]
        return size if isinstance(size, int) else None

    @property
    def _input(self) -> dict[str, Any]:
        (found,) = self.source.info(SIGNATURE).inputs.values()
        return found

    def features(self, x_BHWC: Array) -> Array:
        """Return one feature vector per picture, [B, D]."""
        return self(x_BHWC)


def is_handle(backbone: str) -> bool:
    """Return whether a backbone is a module rather than the name of a network."""
    return backbone not in models.names() and (
        ":" in backbone or Path(backbone).expanduser().exists()
    )


def module_backbone(module: hub.Module, *, below: str = "") -> ModuleBackbone:
    """Return a module's features as a backbone.

    Args:
        module: needs a signature "features" of one input of pictures and one output [b, D].
        below: what its weights' keys begin with, which is left out.

    Raises:
        InputError: it has no such signature.
    """
    if SIGNATURE not in module.signatures:
        raise InputError(
            f"a backbone must have the signature {SIGNATURE!r}, {module.folder} has "
            f"{', '.join(module.signatures)}"
        )
    info = module.info(SIGNATURE)
    takes = [x["shape"] for x in info.inputs.values()]
    gives = [x["shape"] for x in info.outputs.values()]
    if [len(shape) for shape in takes] != [4] or [len(shape) for shape in gives] != [2]:
        raise InputError(
            f"{SIGNATURE!r} of a backbone must take pictures [b, H, W, 3] and give [b, D], that of "
            f"{module.folder} takes {takes} and gives {gives}"
        )
    if module.preprocessing is None:
        raise InputError(f"{module.folder} doesn't say how pictures become its input")
    return module.as_nnx(SIGNATURE, trainable=True, below=below, kind=ModuleBackbone)


def pretrained(backbone: str, image_size: int | None) -> tuple[models.Backbone, Preprocessing]:
    """Return a backbone with its weights, in evaluation mode, and how it wants its pictures.

    Args:
        backbone: a network's name, or the handle of a module.
        image_size: side of the pictures, None for its own.

    Raises:
        InputError: there is no such network or module, or it takes pictures of another size.
    """
    if not is_handle(backbone):
        network = models.create(backbone, num_classes=0, weights="pretrained")
        preprocessing = network.preprocessing
        return network, preprocessing if image_size is None else preprocessing.at(image_size)
    layer = module_backbone(hub.load(backbone))
    preprocessing = layer.source.preprocessing
    assert preprocessing is not None, "module_backbone sees to it"
    if image_size is not None and layer.picture_size not in (None, image_size):
        raise InputError(
            f"{backbone} takes pictures of {layer.picture_size} px, got an image size of "
            f"{image_size}; leave it out"
        )
    return layer, preprocessing if image_size is None else preprocessing.at(image_size)


def origin(backbone: str, network: Any) -> Origin:
    """Return where a backbone comes from."""
    if isinstance(network, ModuleBackbone):
        manifest = network.source.manifest
        licence = "; ".join(manifest.get("licence", {}).values()) or "not stated by the publisher"
        return Origin(backbone, manifest["sha256"], licence)
    published = models.published(backbone)
    assert published is not None, "only published weights are fine-tuned"
    return Origin(published.handle, published.sha256, published.licence)


def usable() -> Sequence[str]:
    """Return the networks that have published weights."""
    return [name for name in models.names() if models.published(name)]
