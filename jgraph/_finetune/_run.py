"""A finished run: its folder, its model, what it measured, and what can be asked of it."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx
from jaxtyping import Float
from PIL import Image

from jgraph import hub, models
from jgraph._errors import InputError, ModuleFormatError, PictureError
from jgraph._finetune._backbone import module_backbone
from jgraph._finetune._inference import Forward
from jgraph._finetune._network import network_graph
from jgraph._finetune._score import Score
from jgraph._preprocessing import Preprocessing
from jgraph._suggest import did_you_mean_path
from jgraph.data import Pictures, PictureSource, find_splits, list_pictures
from jgraph.debug import debuggable
from jgraph.graph import Graph
from jgraph.models import Classifier

_FILES = ("config.json", "metrics.json", "split.json")

OnBadPicture = Literal["skip", "stop"]


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What a classifier says of one picture.

    Args:
        source: the file, or the position of a picture given as an array.
        class_names: K names.
        probabilities: float32 `[K]`, summing to 1.
    """

    source: str
    class_names: tuple[str, ...]
    probabilities: Float[np.ndarray, " k"]

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.class_names[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """The probability of `label`."""
        return float(self.probabilities.max())

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the `count` most probable classes with their probabilities, highest first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.class_names[i], float(self.probabilities[i])) for i in order]


class Run:
    """A trained classifier with its figures.

    Args:
        folder: where it lies.
        model: the classifier, in eval mode.
        manifest: module.json of its folder.

    Attributes:
        folder: where it lies.
        model: the classifier; `run.model(pictures)` gives logits of uint8 `[B, S, S, 3]`.
        metrics: figures of the run, such as `metrics["accuracy"]` and `metrics["count"]`.
        class_names: names of the classes, in the order of the logits.
        config: the settings it was made with.
        skipped: pictures that could not be read, with the reason, of the last call.
    """

    def __init__(self, folder: Path, model: Classifier, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.model = model
        self.metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text("utf-8"))
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        self.class_names: tuple[str, ...] = model.class_names
        self.skipped: dict[str, str] = {}
        self._network: str = manifest["network"]["name"]
        self._logits = Forward(model, Classifier.__call__)

    @property
    def network(self) -> str:
        """The name of its backbone, as `jgraph.models.create` takes it."""
        return self._network

    def graph(self) -> Graph:
        """Return the graph of its network, from one picture to logits: to draw, cost, export."""
        return network_graph(self.model)

    @debuggable
    def predict(
        self,
        pictures: PictureSource | Sequence[PictureSource],
        *,
        batch_size: int = 32,
        on_bad_picture: OnBadPicture = "stop",
    ) -> list[Prediction]:
        """Classify pictures.

        Args:
            pictures: a file, a folder (with everything below it), an array `[H, W, 3]` uint8, a
                Pillow image, or a sequence of those.
            batch_size: pictures that go through the network together.
            on_bad_picture: "stop" raises on a file that is no picture; "skip" leaves it out and
                notes it in `skipped`.

        Returns:
            One prediction per picture, in order; folders in the order of their sorted names.

        Raises:
            InputError: a path doesn't exist, or a folder has no pictures.
            PictureError: a picture can't be read and `on_bad_picture` is "stop".
        """
        sources = list(_expand(pictures))
        if not sources:
            self.skipped = {}
            return []
        rows, good = self._run(sources, None, batch_size, on_bad_picture)
        return [
            Prediction(_shown(sources, i), self.class_names, _softmax(rows[i]))
            for i in np.flatnonzero(good).tolist()
        ]

    @debuggable
    def evaluate(
        self,
        data: str | os.PathLike[str],
        *,
        batch_size: int = 32,
        on_bad_picture: OnBadPicture = "skip",
    ) -> Score:
        """Measure the classifier on a folder of class folders.

        Args:
            data: class/name.jpg with the run's classes (the score's set is then "given"), or a
                folder with test/ (else val/).
            batch_size: pictures that go through the network together.
            on_bad_picture: as in `predict`.

        Returns:
            The score; `str(score)` reads "0.983, 118 of 120, 0.94-1.00".

        Raises:
            InputError: no such folder, no pictures, or classes that the run doesn't have.
            PictureError: a picture can't be read and `on_bad_picture` is "stop".
        """
        splits = find_splits(Path(data), self.class_names)
        name, pictures = next(
            (name, part)
            for name, part in (("test", splits.test), ("val", splits.val), ("given", splits.train))
            if part is not None
        )
        rows, good = self._run(list(pictures.paths), pictures.labels, batch_size, on_bad_picture)
        if not good.any():
            raise PictureError(f"none of the {len(pictures)} pictures in {data} can be read")
        score = Score.of_logits(name, self.class_names, pictures.labels[good], rows[good])
        files = pictures.subset(np.flatnonzero(good)).paths
        return dataclasses.replace(score, trained_on=self._count_trained_on(files))

    def _count_trained_on(self, files: Sequence[Path]) -> int:
        split = json.loads((self.folder / "split.json").read_text("utf-8"))
        start = Path(self.config["working_folder"])
        trained = {(start / name).resolve() for name in split["train"]}
        return sum(path.resolve() in trained for path in files)

    def _run(
        self,
        sources: list[PictureSource],
        labels: np.ndarray | None,
        batch_size: int,
        on_bad_picture: OnBadPicture,
    ) -> tuple[np.ndarray, np.ndarray]:
        pictures = Pictures(
            sources,
            labels,
            self.model.preprocessing,
            min(batch_size, len(sources)),
            on_bad_picture=on_bad_picture,
        )
        rows, good = self._logits(pictures)
        self.skipped = {_shown(sources, i): why for i, why in sorted(pictures.bad.items())}
        return rows, good


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Load a run folder after checking every file in it.

    Args:
        folder: a folder that `jgraph finetune` wrote, such as "runs/latest".

    Returns:
        The run.

    Raises:
        ModuleFormatError: no run folder, or one of another format.
        ModuleIntegrityError: a file is missing or changed; all of them are named.
        ModuleWeightsError: a weight is missing, left over or of another shape.
    """
    path = Path(folder).expanduser()
    if not path.exists():
        raise ModuleFormatError(f"there is no run folder {path}{did_you_mean_path(path)}")
    manifest, weights = hub.read_module(path)
    _check_run(path, manifest)
    try:
        network = _network(path, manifest, weights)
        preprocessing = Preprocessing.from_json(manifest["preprocess"])
        model = Classifier(network, manifest["labels"], preprocessing, rngs=nnx.Rngs(0))
    except InputError as error:
        raise ModuleFormatError(f"{path / 'module.json'}: {error}") from error
    model.eval()
    models.set_weights(model, weights, source=str(path))
    return Run(path, model, manifest)


def _network(
    path: Path, manifest: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> models.Backbone:
    """Return the backbone: by its name, or from the run's own programs."""
    if "variables" not in manifest:
        return models.create(manifest["network"]["name"], num_classes=0)
    return module_backbone(hub.Module(path, manifest, weights), below="backbone/")


def _check_run(path: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a module that is no run."""
    if not any(name in manifest["files"] for name in _FILES):
        raise ModuleFormatError(
            f"{path} must be a run that jgraph finetune wrote, and it is a module: jg.hub.load "
            f"takes it, and jgraph hub info {shlex.quote(str(path))} shows it"
        )
    network, labels = manifest.get("network"), manifest["labels"]
    missing = [
        what
        for what, is_there in (
            ("its network's name", isinstance(network, dict) and type(network.get("name")) is str),
            *((f"its {name}", name in manifest["files"]) for name in _FILES),
            ("its classes' names", labels and all(type(name) is str for name in labels)),
        )
        if not is_there
    ]
    if missing:
        raise ModuleFormatError(
            f"{path} must be a run that jgraph finetune wrote, but module.json lacks "
            f"{', '.join(missing)}"
        )


def _shown(sources: Sequence[PictureSource], index: int) -> str:
    """Return how a picture is named: its path, or its position where it has none."""
    source = sources[index]
    return str(source) if isinstance(source, str | Path) else f"picture {index}"


def _expand(pictures: Any) -> Iterable[PictureSource]:
    if isinstance(pictures, list | tuple):
        for item in pictures:
            yield from _expand(item)
    elif isinstance(pictures, str | os.PathLike):
        yield from _expand_path(Path(pictures).expanduser())
    elif isinstance(pictures, bytes | np.ndarray | Image.Image):
        yield pictures
    else:
        raise InputError(
            "pictures must be files, folders, arrays, Pillow images or a list of those, got "
            f"{type(pictures).__name__}"
        )


def _expand_path(path: Path) -> Iterable[Path]:
    if path.is_dir():
        found, _ = list_pictures(path)
        if not found:
            raise InputError(f"there are no pictures in {path}; name files or a folder of pictures")
        yield from found
    elif path.exists():
        yield path
    else:
        raise InputError(f"there is no picture or folder {path}{did_you_mean_path(path)}")


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max())
    return (shifted / shifted.sum()).astype(np.float32)
