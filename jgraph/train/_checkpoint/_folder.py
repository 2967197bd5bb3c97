"""The folder of checkpoints: one folder a step, which counts once its manifest is there.

    DIR/00001200/arrays/…        what Orbax writes
    DIR/00001200/manifest.json   every file with its SHA-256, every array with its type; last

Names of whole steps are digits; "00001300.aside" was set aside and doesn't count, and goes once a
step as late has been saved.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jgraph._digests import changed_files, folder_digests, value_digest
from jgraph._errors import CheckpointIntegrityError, CheckpointWriteError

ARRAYS = "arrays"
MANIFEST = "manifest.json"
FORMAT = "jgraph-checkpoint"
VERSION = 1
_ASIDE = ".aside"

_KINDS = {
    "step": int,
    "arrays": dict,
    "files": dict,
    "metrics": dict,
    "info": dict,
    "began_with": (list, type(None)),
}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a step's manifest says.

    Args:
        step: its number.
        arrays: `[dtype, shape]` of each array, by path.
        metrics: numbers of the evaluation at this step, such as `{"val/accuracy": 0.9}`.
        info: what else was saved, JSON.
        began_with: the parts that its run took from another run's checkpoint; None for a run that
            began anew or went on whole.
    """

    step: int
    arrays: Mapping[str, Sequence[Any]]
    metrics: Mapping[str, float]
    info: Mapping[str, Any]
    began_with: Sequence[str] | None = None


def step_folder(root: Path, step: int) -> Path:
    """Return the folder of a step."""
    return root / f"{step:08d}"


def steps_in(root: Path) -> list[int]:
    """Return the steps that have a folder, whole or not, in order."""
    names = os.listdir(root) if root.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit() and (root / name).is_dir())


def is_whole(root: Path, step: int) -> bool:
    """Return whether a step was written to its end."""
    return (step_folder(root, step) / MANIFEST).is_file()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder whose other files are all there, once the disk has them.

    Raises:
        OSError: the disk is full or can't be written.
    """
    values: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        **dataclasses.asdict(manifest),
        "files": folder_digests(folder, sync=True),
    }
    values["sha256"] = value_digest(values)
    for path in (p for p in folder.rglob("*") if p.is_dir()):
        _sync(path)
    unfinished = folder / f"{MANIFEST}.unfinished"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(values, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / MANIFEST)
    _sync(folder)
    _sync(folder.parent)


def read_manifest(folder: Path) -> Manifest:
    """Return a step's manifest without looking at the other files.

    Raises:
        CheckpointIntegrityError: there is none, or it isn't as it was written.
    """
    return _manifest(_read(folder))


def verified(folder: Path) -> Manifest:
    """Return a step's manifest after checking every file against it.

    Raises:
        CheckpointIntegrityError: what is wrong with the folder; all files are named.
    """
    values = _read(folder)
    bad = changed_files(folder, values["files"])
    if bad:
        raise CheckpointIntegrityError(f"{folder} is not as it was written: {'; '.join(bad)}")
    return _manifest(values)


def _manifest(values: Mapping[str, Any]) -> Manifest:
    return Manifest(**{field.name: values[field.name] for field in dataclasses.fields(Manifest)})


def _read(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointIntegrityError(
            f"{folder} has no {MANIFEST}: it wasn't written to its end, or has lost it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointIntegrityError(f"{path} can't be read: {error}") from error
    if not isinstance(values, dict) or values.get("sha256") != value_digest(values):
        raise CheckpointIntegrityError(f"{path} has changed since it was written")
    if (values.get("format"), values.get("version")) != (FORMAT, VERSION) or not all(
        isinstance(values.get(key), kind) for key, kind in _KINDS.items()
    ):
        raise CheckpointIntegrityError(
            f"{path} must be a {FORMAT} of version {VERSION}, got {values.get('format')!r} of "
            f"version {values.get('version')!r}; another jgraph wrote it"
        )
    return values


def make(root: Path, step: int) -> None:
    """Make the folder of a step that is about to be written.

    What is there at or beyond that step doesn't count from now on: it is from a run that had come
    further, and was damaged, or left for an earlier step. Whole folders are renamed.

    Raises:
        CheckpointWriteError: the folder can't be made.
    """
    try:
        for other in (s for s in steps_in(root) if s >= step):
            folder = step_folder(root, other)
            if is_whole(root, other):
                aside = folder.with_name(f"{folder.name}{_ASIDE}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
            else:
                shutil.rmtree(folder)
        step_folder(root, step).mkdir(parents=True)
    except OSError as error:
        raise CheckpointWriteError(
            f"checkpoints must go to a folder that can be written, and {root} can't: {error}"
        ) from error


def prune(root: Path, keep: int, best: tuple[str, Literal["min", "max"]] | None) -> None:
    """Remove all but the newest whole steps and the best one; and what isn't whole.

    What was set aside goes, too, once the run has come as far again.
    """
    steps = steps_in(root)
    whole = [step for step in steps if is_whole(root, step)]
    kept = set(whole[-keep:])
    if best is not None:
        found = best_step(root, whole, *best)
        kept |= set() if found is None else {found}
    for step in set(steps) - kept:
        folder = step_folder(root, step)
        # First, so that what is half removed doesn't look whole.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)
    for aside in root.glob(f"*{_ASIDE}"):
        name = aside.name.removesuffix(_ASIDE)
        if name.isdigit() and whole and int(name) <= whole[-1]:
            shutil.rmtree(aside)


def best_step(
    root: Path, steps: Sequence[int], metric: str, mode: Literal["min", "max"]
) -> int | None:
    """Return the step with the best value of a metric, the earliest of equals; None without any."""
    values: dict[int, float] = {}
    for step in steps:
        try:
            value = read_manifest(step_folder(root, step)).metrics.get(metric)
        except CheckpointIntegrityError:
            continue  # restoring will say so
        if value is not None and value == value:
            values[step] = value
    sign = 1 if mode == "min" else -1
    return min(values, key=lambda step: (sign * values[step], step), default=None)


def _sync(folder: Path) -> None:
    """Wait until the disk has a folder's list of names."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
