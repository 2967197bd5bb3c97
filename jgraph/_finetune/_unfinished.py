"""What is kept of a run while it fine-tunes, so that a run that was stopped can go on."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

from jgraph._digests import value_digest
from jgraph._errors import InputError
from jgraph._finetune._corpus import Corpus
from jgraph._finetune._settings import Settings
from jgraph._suggest import did_you_mean_path
from jgraph.train import Checkpoint

SUFFIX = ".unfinished"

_SETTINGS, _PICTURES = "settings.json", "pictures.json"
_EVERY_SECS = 60.0


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """The folder RUN.unfinished: the settings, and checkpoints of each training.

    Args:
        run: the run folder that will be written.
        points_latest: whether runs/latest shall point to it then.
    """

    run: Path
    points_latest: bool

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.run.with_name(self.run.name + SUFFIX)

    @property
    def command(self) -> str:
        """What a person types to go on."""
        return f"jgraph finetune --resume {shlex.quote(str(self.run))}"

    def begin(self, settings: Settings) -> None:
        """Make the folder.

        Raises:
            InputError: there is one already.
        """
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError:
            raise InputError(
                f"{self.folder} holds an unfinished run; go on with it by {self.command}, or "
                "remove it"
            ) from None
        kept = {
            "settings": settings.to_json(),
            "working_folder": str(Path.cwd()),
            "points_latest": self.points_latest,
        }
        (self.folder / _SETTINGS).write_text(json.dumps(kept, indent=1), "utf-8")

    def checkpoint(self, name: str) -> Checkpoint:
        """Return where a training of this run is saved."""
        return Checkpoint(self.folder / name, every_secs=_EVERY_SECS, keep=2)

    def check_pictures(self, corpus: Corpus) -> None:
        """Refuse to go on with other pictures than the run began with.

        Raises:
            InputError: they have changed.
        """
        sizes = [path.stat().st_size for path in corpus.paths]
        names = [str(path) for path in corpus.paths]
        seen = {"names": names, "sizes": sizes, "labels": corpus.labels.tolist()}
        path = self.folder / _PICTURES
        if not path.exists():
            path.write_text(json.dumps(value_digest(seen)), "utf-8")
        elif json.loads(path.read_text("utf-8")) != value_digest(seen):
            raise InputError(
                f"the pictures must be those that {self.run} began with, and they have changed; "
                f"start anew, and remove {self.folder}"
            )

    @property
    def has_checkpoints(self) -> bool:
        """Whether anything was saved that a run can go on from."""
        return any(self.folder.glob("*/*/manifest.json"))

    def remove(self) -> None:
        """Remove the folder, when the run is written or there is nothing to go on from."""
        shutil.rmtree(self.folder, ignore_errors=True)


def reserve(runs: Path, name: str, settings: Settings) -> Unfinished:
    """Begin the next free runs/NAME-001."""
    while True:
        unfinished = Unfinished(runs / f"{name}-{next_number(runs, name):03d}", True)
        try:
            unfinished.begin(settings)
        except InputError:
            continue  # another run took the number meanwhile
        return unfinished


def next_number(runs: Path, name: str) -> int:
    """Return the number after all that runs of a name have, finished or not."""
    pattern = re.compile(re.escape(name) + rf"-(\d{{3,}})(?:{re.escape(SUFFIX)})?")
    entries = [path.name for path in runs.iterdir()] if runs.is_dir() else []
    return max((int(m[1]) for m in map(pattern.fullmatch, entries) if m), default=0) + 1


def reopen(run: Path) -> tuple[Unfinished, Settings]:
    """Return an unfinished run and what it was asked to do.

    Args:
        run: the run's folder, or the unfinished one.

    Raises:
        InputError: there is none, it is another version's, or it began in another folder.
    """
    run = run.with_name(run.name.removesuffix(SUFFIX))
    path = run.with_name(run.name + SUFFIX) / _SETTINGS
    if (run / "module.json").is_file():
        shutil.rmtree(path.parent, ignore_errors=True)  # where it was killed just before that
        raise InputError(f"{run} is finished: there is nothing to go on with")
    if not path.is_file():
        raise InputError(
            f"there is no unfinished run {run}{did_you_mean_path(path.parent)}; only runs with "
            "unfreeze are saved on the way, once they train the network"
        )
    try:
        kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
        settings = Settings(**kept["settings"])
        place, latest = kept["working_folder"], bool(kept["points_latest"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} must be as this jgraph writes it: {error}") from error
    if place != str(Path.cwd()):
        raise InputError(
            f"a run goes on in the folder that it began in, {place}; the present one is "
            f"{Path.cwd()}"
        )
    return Unfinished(run, latest), settings
