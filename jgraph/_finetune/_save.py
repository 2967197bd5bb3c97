"""Writing a run folder: module, figures, report and card, whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jgraph import hub, models
from jgraph._eager import jit_is_off
from jgraph._errors import ModuleFormatError
from jgraph._finetune._backbone import ModuleBackbone, origin
from jgraph._finetune._card import card
from jgraph._finetune._corpus import Corpus
from jgraph._finetune._network import network_graph
from jgraph._finetune._report import CurveRow, write_report
from jgraph._finetune._score import Score
from jgraph._finetune._settings import Settings
from jgraph._finetune._unfinished import next_number
from jgraph.models import Classifier

RUNS = Path("runs")


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """Everything a finished run leaves to be written.

    Args:
        name: of the data; runs/NAME-001 is made of it.
        model: the trained classifier.
        settings: what was asked for.
        corpus: the pictures and their roles.
        scores: the headline first.
        pictures: the file behind each row of the headline.
        curves: loss and accuracy per epoch, in the order of training.
        penalty: L2 penalty of the head.
        tuned: whether fine-tuned weights were kept; None if nothing was unfrozen.
        notices: what was unusual.
    """

    name: str
    model: Classifier
    settings: Settings
    corpus: Corpus
    scores: Sequence[Score]
    pictures: Sequence[Path]
    curves: Sequence[CurveRow]
    penalty: float
    tuned: bool | None
    notices: tuple[str, ...]

    def next_commands(self, folder: Path) -> list[str]:
        """Return commands a person may type next."""
        run, picture = shlex.quote(str(folder)), shlex.quote(str(self.corpus.paths[0]))
        commands = [f"jgraph predict {run} {picture}", f"jgraph evaluate {run} FOLDER"]
        if self.settings.unfreeze == "none" and self.settings.data is not None:
            data, stages = shlex.quote(self.settings.data), len(self.model.backbone.stages)
            what = "last:2" if stages > 2 else "all"
            backbone = ""
            if isinstance(self.model.backbone, ModuleBackbone):
                backbone = f" --backbone {shlex.quote(self.settings.backbone)}"
            commands.append(f"jgraph finetune {data}{backbone} --unfreeze {what}")
        return commands

    @property
    def summary(self) -> list[tuple[str, str]]:
        """What was done, as rows of name and value."""
        corpus, settings = self.corpus, self.settings
        roles = [role for role in ("train", "val", "held-out", "test") if corpus.has(role)]
        counts = ", ".join(f"{corpus.rows(role).sum()} {role}" for role in roles)
        side = self.model.preprocessing.image_size
        is_module = isinstance(self.model.backbone, ModuleBackbone)
        weights = "as published" if is_module else "ImageNet weights"
        rows = [
            ("Data", f"{self.name}: {counts}; {len(corpus.class_names)} classes"),
            ("Backbone", f"{settings.backbone}, {weights}, {side} px"),
            (
                "Head",
                f"multinomial logistic regression on unit-length features, L2 penalty "
                f"{self.penalty:g} by 5-fold cross-validation",
            ),
        ]
        if self.tuned is not None:
            batch_size = min(settings.batch_size, int(corpus.rows("train").sum()))
            kept = "kept" if self.tuned else "discarded: the head alone was better"
            rows.append(
                (
                    "Fine-tuning",
                    f"{settings.unfreeze}, {settings.epochs} epochs, batches of "
                    f"{batch_size}, rate {settings.learning_rate:g} (backbone a tenth); "
                    f"{kept}",
                )
            )
        rows.append(("Seed", str(settings.seed)))
        return rows


def save(finished: Finished, out: Path | None) -> Path:
    """Write the run folder.

    Args:
        finished: what to write.
        out: the folder; None for the next free runs/NAME-001, which runs/latest then points to.

    Returns:
        The folder.

    Raises:
        ModuleFormatError: `out` exists.
        OSError: it can't be written; nothing is left of it.
    """
    if out is not None:
        return _write(finished, out)
    while True:
        folder = RUNS / f"{finished.name}-{next_number(RUNS, finished.name):03d}"
        try:
            _write(finished, folder)
        except ModuleFormatError:
            if not folder.exists():
                raise
            continue  # another run took the number meanwhile
        point_latest(folder)
        return folder


def _draw(finished: Finished, path: Path) -> str:
    """Draw the network into an SVG file, and return its text."""
    network_graph(finished.model).draw(path, title=finished.settings.backbone)
    return path.read_text("utf-8")


def point_latest(folder: Path) -> None:
    """Have runs/latest point to a run."""
    link, fresh = RUNS / "latest", RUNS / f".latest-{os.getpid()}"
    if link.exists() and not link.is_symlink():
        return  # a person's own folder of that name is left alone
    # The run is written; where links can't be made, it is complete without one.
    with contextlib.suppress(OSError):
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(folder.name)
        fresh.replace(link)


def _write(finished: Finished, folder: Path) -> Path:
    model = finished.model
    source = origin(finished.settings.backbone, model.backbone)
    signatures, write_programs = _signatures(model)

    def write_files(unfinished: Path) -> None:
        _write_metrics(unfinished / "metrics.csv", finished.curves)
        headline, *others = (score.to_json() for score in finished.scores)
        _write_json(unfinished / "metrics.json", {**headline, "others": others})
        _write_json(unfinished / "config.json", _config(finished))
        _write_json(unfinished / "split.json", _split(finished.corpus))
        # While debugging nothing is traced: a breakpoint would stop at values that are none.
        picture = "" if jit_is_off() else _draw(finished, unfinished / "network.svg")
        write_report(
            unfinished / "report.html",
            title=folder.name,
            summary=finished.summary,
            scores=finished.scores,
            curves=finished.curves,
            pictures=finished.pictures,
            network=picture,
            next_commands=finished.next_commands(folder),
            notices=finished.notices,
        )
        text = card(
            folder,
            finished.summary,
            finished.scores,
            finished.corpus.paths[0],
            source.licence,
        )
        _write_text(unfinished / "README.md", text)
        write_programs(unfinished)

    manifest = {
        "network": {"name": finished.settings.backbone},
        **signatures,
        "preprocess": model.preprocessing.to_json(),
        "labels": list(model.class_names),
        "licence": {"backbone": source.licence},
        "provenance": {"backbone": source.handle, "sha256": source.sha256},
    }
    return hub.write_module(folder, manifest, models.weights_of(model), write_files=write_files)


def _signatures(model: Classifier) -> tuple[dict[str, Any], Callable[[Path], object]]:
    """Return what the manifest says of signatures, and what writes their programs.

    A run of one of jgraph's own networks has no programs: its source has them.
    """
    if isinstance(model.backbone, ModuleBackbone):
        described = hub.describe(model)
        return described.manifest, described.write_programs
    side, classes = model.preprocessing.image_size, len(model.class_names)
    inputs = {"pictures": {"shape": ["batch", side, side, 3], "dtype": "uint8"}}

    def outputs(name: str, size: int) -> dict[str, Any]:
        return {name: {"shape": ["batch", size], "dtype": "float32"}}

    size = model.backbone.feature_size
    signatures = {
        "default": {"inputs": inputs, "outputs": outputs("logits", classes)},
        "features": {"inputs": inputs, "outputs": outputs("features", size)},
    }
    return {"signatures": signatures}, lambda folder: None


def _config(finished: Finished) -> dict[str, Any]:
    return {
        **finished.settings.to_json(),
        "working_folder": str(Path.cwd()),  # the paths in split.json start here
        "penalty": finished.penalty,
        "fine_tuned": bool(finished.tuned),
        "skipped": finished.corpus.skipped,
    }


def _split(corpus: Corpus) -> dict[str, list[str]]:
    roles = ("train", "val", "held-out", "test")
    return {
        role: [str(path) for path in corpus.pictures_of(corpus.rows(role)).paths]
        for role in roles
        if corpus.has(role)
    }


def _write_text(path: Path, text: str) -> None:
    # A file's name needn't be UTF-8. In JSON the replacement is the escape for that very byte.
    path.write_bytes(text.encode("utf-8", "backslashreplace"))


def _write_json(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _write_metrics(path: Path, curves: Sequence[CurveRow]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(CurveRow._fields)
    writer.writerows(curves)
    _write_text(path, text.getvalue())
