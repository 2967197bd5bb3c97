"""The module folder: module.json, weights.safetensors, and whatever files belong to the module.

module.json names every other file with its SHA-256 and length, every weight with its shape and
dtype, and its own SHA-256, so that a folder is either exactly what was written or is refused.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jgraph._digests import changed_files, folder_digests, value_digest
from jgraph._errors import ModuleFormatError, ModuleIntegrityError, ModuleWeightsError
from jgraph._json import parse_json
from jgraph._unfinished import unfinished_beside
from jgraph._version import __version__

FORMAT = "jgraph-module"
VERSION = 1
MANIFEST = "module.json"
WEIGHTS = "weights.safetensors"

_MAX_MANIFEST_BYTES = 4 << 20
_MAX_HEADER_BYTES = 4 << 20
_MAX_FILES = 2000
_MAX_NAME = 200  # what every file system can hold, with the folder's own path before it
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*\.", re.IGNORECASE)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_EXISTS = "{} exists already; choose another name or remove it"
_REQUIRED = {"signatures": dict, "weights": dict, "files": dict, "labels": list, "preprocess": dict}


def made_with() -> dict[str, str]:
    """Return the versions of the packages that made a module."""
    return {"jgraph": __version__, **{name: metadata.version(name) for name in ("jax", "flax")}}


def write_module(
    folder: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    *,
    write_files: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Write a module folder whole or not at all.

    Everything is written beside the destination, then renamed: a full disk, an error or
    Ctrl-C leaves nothing that looks like a module.

    Args:
        folder: the destination, which must not exist.
        manifest: `signatures`, `labels`, `preprocess` and anything else that is JSON; this
            function adds `format`, `version`, `weights`, `files` and `made_with`.
        weights: `{path: array}`.
        write_files: called with the unfinished folder to add further files.

    Returns:
        The folder.

    Raises:
        ModuleFormatError: the destination exists, or `read_module` would refuse the result.
        ModuleWeightsError: a weight isn't finite.
        OSError: the disk is full or can't be written.
    """
    folder = Path(folder)
    if folder.exists() or folder.is_symlink():
        raise ModuleFormatError(_EXISTS.format(folder))
    _check_finite(weights)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with unfinished_beside(folder) as unfinished:
        unfinished.mkdir()
        # safetensors writes the memory of a transposed view as it lies, which reloads wrong.
        tensors = {name: np.array(array, order="C") for name, array in weights.items()}
        (unfinished / WEIGHTS).write_bytes(safetensors.numpy.save(tensors))
        write_files(unfinished)
        whole = {
            "format": FORMAT,
            "version": VERSION,
            **manifest,
            "weights": {k: [list(v.shape), v.dtype.name] for k, v in sorted(tensors.items())},
            "files": folder_digests(unfinished),
            "made_with": made_with(),
        }
        whole["sha256"] = value_digest(whole)
        (unfinished / MANIFEST).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        read_module(unfinished)  # what can't be read back is never left behind
        _move(unfinished, folder)
    return folder


def _move(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)
    except OSError as error:
        # Somebody else wrote it meanwhile.
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise ModuleFormatError(_EXISTS.format(folder)) from error
        raise


def read_module(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a module folder after checking every file against its manifest.

    Args:
        folder: a folder that `write_module` wrote.

    Returns:
        The manifest and the weights, `{path: array}`.

    Raises:
        ModuleFormatError: no module folder, or a manifest that breaks the format.
        ModuleIntegrityError: a file is missing or changed; all of them are named.
        ModuleWeightsError: the weights differ from the manifest's list, or aren't finite.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    _check_files(folder, manifest["files"])
    if WEIGHTS not in manifest["files"]:
        raise ModuleFormatError(f"{folder / MANIFEST} must list {WEIGHTS} among its files")
    try:
        _check_header(folder / WEIGHTS)
        weights = safetensors.numpy.load_file(folder / WEIGHTS)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModuleWeightsError(
            f"{folder / WEIGHTS} is not a safetensors file: {error}"
        ) from error
    found = {name: [list(array.shape), array.dtype.name] for name, array in weights.items()}
    wrong = sorted(
        name
        for name in found.keys() | manifest["weights"].keys()
        if found.get(name) != manifest["weights"].get(name)
    )
    if wrong:
        raise ModuleWeightsError(
            f"{folder / WEIGHTS} differs from {MANIFEST} in {len(wrong)} weights: "
            f"{', '.join(wrong[:5])}; fetch or train the module again"
        )
    _check_finite(weights)
    return manifest, weights


def check_module(folder: Path) -> None:
    """Check every file of a folder against its manifest, and that there are no others.

    Raises:
        ModuleFormatError: no module folder, or a manifest that breaks the format.
        ModuleIntegrityError: a file is missing, changed or not in the manifest.
    """
    manifest = read_manifest(folder)
    _check_files(folder, manifest["files"])
    check_no_others(folder, manifest)


def check_no_others(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a folder with files that the manifest doesn't list.

    Raises:
        ModuleIntegrityError: they are named.
    """
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    # What a system or a version control puts into every folder has a name with a dot.
    shown = (name for name in found if not any(part[0] == "." for part in name.split("/")))
    unlisted = sorted(set(shown) - {MANIFEST, *manifest["files"]})
    if unlisted:
        raise ModuleIntegrityError(
            f"{folder} must hold the files that {MANIFEST} lists, and has others: "
            f"{', '.join(unlisted[:5])}; remove them"
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return module.json of a folder, checked as far as it goes without the other files.

    Raises:
        ModuleFormatError: no module folder, or a manifest that breaks the format.
        ModuleIntegrityError: the manifest has changed since it was written.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = "does not exist"
        if folder.exists():
            what = "has no module.json" if folder.is_dir() else "is a file"
            if folder.suffix in (".zip", ".tar", ".tgz", ".gz"):
                command = f"jgraph hub info {shlex.quote(str(folder))}"
                what = f"is an archive: jg.hub.load takes it, and {command} shows it"
        raise ModuleFormatError(f"{folder} must be a run or module folder, but it {what}")
    if path.is_symlink():
        raise ModuleIntegrityError(f"{path} must be a plain file, not a link")
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ModuleFormatError(f"{path} is longer than {_MAX_MANIFEST_BYTES} bytes")
    try:
        manifest = parse_json(path.read_bytes(), MANIFEST)
    except ValueError as error:
        raise ModuleFormatError(f"{path} is not JSON as it should be: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModuleFormatError(f'{path} must say "format": "{FORMAT}"')
    if manifest.get("version") != VERSION:
        raise ModuleFormatError(
            f"{path} has version {manifest.get('version')!r}, this jgraph reads {VERSION}; "
            "install a newer jgraph"
        )
    if manifest.get("sha256") != value_digest(manifest):
        raise ModuleIntegrityError(
            f"{path} has changed since it was written; restore it from a copy, or make the "
            "folder again"
        )
    for key, kind in _REQUIRED.items():
        if not isinstance(manifest.get(key), kind):
            raise ModuleFormatError(f"{path} must hold {key!r} as a JSON {kind.__name__}")
    _check_names(path, manifest["files"])
    return manifest


def _check_names(path: Path, files: Mapping[str, Any]) -> None:
    """Refuse names that leave the folder, or that some system can't hold beside each other."""
    if len(files) > _MAX_FILES:
        raise ModuleFormatError(f"{path} must list at most {_MAX_FILES} files, got {len(files)}")
    seen = {MANIFEST: MANIFEST}
    for name, entry in files.items():
        if not is_file_name(name) or name == MANIFEST:
            raise ModuleFormatError(f"{path} lists a file name that isn't allowed: {name!r:.100}")
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise ModuleFormatError(
                f"{path} lists {other} and {name}, which are one file where case doesn't count"
            )
        if not (
            isinstance(entry, dict)
            and entry.keys() == {"sha256", "bytes"}
            and isinstance(entry["sha256"], str)
            and type(entry["bytes"]) is int
            and entry["bytes"] >= 0
        ):
            raise ModuleFormatError(
                f"{path} must give sha256 and bytes of {name}, got {entry!r:.60}"
            )


def is_file_name(name: str) -> bool:
    """Return whether a module may have a file of this name, on any system."""
    return (
        len(name) <= _MAX_NAME
        and _FILE_NAME.fullmatch(name) is not None
        and not any(_RESERVED.fullmatch(part) for part in name.split("/"))
    )


def _check_files(folder: Path, files: Mapping[str, Any]) -> None:
    for name in files:
        path = folder / name
        if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            raise ModuleIntegrityError(f"{path} must be a plain file, not a link")
    bad = changed_files(folder, files)
    if bad:
        raise ModuleIntegrityError(
            f"{folder} is not as it was written: {'; '.join(bad[:5])}. "
            "Restore the files from a copy, or make the folder again"
        )


def _check_header(path: Path) -> None:
    """Refuse a list of tensors that takes far more memory than its file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"its header is of {length} bytes, at most {_MAX_HEADER_BYTES}")


def _check_finite(weights: Mapping[str, np.ndarray]) -> None:
    bad = [k for k, v in weights.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
    if bad:
        raise ModuleWeightsError(f"weights must be finite, these are not: {', '.join(bad[:5])}")
