"""SHA-256 of files and values: how a folder is known to be exactly what was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def file_digest(path: Path, *, sync: bool = False) -> dict[str, Any]:
    """Return a file's `{"sha256": …, "bytes": …}`.

    Args:
        path: the file.
        sync: whether to wait until the disk has it.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
    return {"sha256": digest, "bytes": path.stat().st_size}


def folder_digests(folder: Path, *, sync: bool = False) -> dict[str, dict[str, Any]]:
    """Return `file_digest` of all files of a folder, by their paths in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path, sync=sync) for path in files}


def changed_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with a folder's files, "a/b has changed", each in words."""
    bad = []
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            bad.append(f"{name} is missing")
        elif path.stat().st_size != entry["bytes"] or file_digest(path) != entry:
            bad.append(f"{name} has changed")
    return bad


def value_digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON values but "sha256", whatever their layout in a file.

    Example:
        >>> value_digest({"a": 1, "b": 2}) == value_digest({"b": 2, "a": 1, "sha256": "?"})
        True
    """
    others = {key: value for key, value in values.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
