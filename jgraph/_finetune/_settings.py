"""What a fine-tuning run was asked to do, checked before anything starts."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Literal

from jgraph import distribute
from jgraph._errors import InputError
from jgraph._finetune._backbone import is_handle, usable
from jgraph._finetune._run import OnBadPicture
from jgraph._suggest import did_you_mean

BATCH_SIZE = 32  # where nobody asks for another
_UNFREEZE = re.compile(r"none|all|last:([1-9][0-9]*)")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Args:
        data: the folder of pictures; None for the embedded default.
        backbone: one of `jgraph.models.names()` with published weights, or a module's handle.
        epochs: passes over the training pictures while unfrozen.
        batch_size: pictures per step.
        learning_rate: peak rate of the head while unfrozen; the backbone has a tenth.
        image_size: side of the square the network sees, in pixels; None for the backbone's own.
        unfreeze: "none", "all", or "last:N" for the last N stages of the backbone.
        seed: of every draw: held-out pictures, folds, order and augmentation; below 2^32.
        strategy: where the network runs, one of `jgraph.distribute.names()`.
        on_bad_picture: "skip" names a file that can't be read and goes on, "stop" raises.
        cache: whether features are kept and found in the user's cache folder, or another folder.

    Raises:
        InputError: a value is out of range.
    """

    data: str | None
    backbone: str
    epochs: int
    batch_size: int
    learning_rate: float
    image_size: int | None
    unfreeze: str
    seed: int
    strategy: str
    on_bad_picture: OnBadPicture
    cache: bool | str

    def __post_init__(self) -> None:
        if not is_handle(self.backbone) and self.backbone not in usable():
            raise InputError(
                f"the backbone must be one with published weights ({', '.join(usable())}) or the "
                f"handle of a module, got {self.backbone!r}{did_you_mean(self.backbone, usable())}"
            )
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"{name.replace('_', ' ')} must be at least 1, got {value}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"the seed must be from 0 to {2**32 - 1}, got {self.seed}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(
                f"the learning rate must be a positive number, got {self.learning_rate}; try 0.001"
            )
        if self.image_size is not None and self.image_size < 32:
            raise InputError(f"the image size must be at least 32 pixels, got {self.image_size}")
        if not _UNFREEZE.fullmatch(self.unfreeze):
            raise InputError(
                f"unfreeze must be none, all or last:N with N at least 1, got {self.unfreeze!r}"
                f"{did_you_mean(self.unfreeze, ('none', 'all', 'last:1'))}"
            )
        if self.strategy not in distribute.names():
            raise InputError(
                f"the strategy must be one of {', '.join(distribute.names())}, got "
                f"{self.strategy!r}{did_you_mean(self.strategy, distribute.names())}"
            )
        if self.on_bad_picture not in ("skip", "stop"):
            raise InputError(f"on_bad_picture must be skip or stop, got {self.on_bad_picture!r}")

    def places(self) -> distribute.Strategy:
        """Return the strategy."""
        return distribute.create(self.strategy)

    def unfrozen_stages(self, stages: int) -> int:
        """Return how many of the backbone's `stages`, counted from the last, are trained.

        Raises:
            InputError: the backbone has fewer.
        """
        match = _UNFREEZE.fullmatch(self.unfreeze)
        if self.unfreeze == "none" or match is None:
            return 0
        count = stages if self.unfreeze == "all" else int(match[1])
        if count > stages:
            raise InputError(
                f"{self.backbone} has {stages} stages, so unfreeze must be at most last:{stages}, "
                f"got {self.unfreeze}"
            )
        return count

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return dataclasses.asdict(self)


Role = Literal["train", "val", "held-out", "test"]
