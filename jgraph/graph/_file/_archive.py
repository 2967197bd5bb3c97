"""The file itself: a zip of graph.json and, where there is any, state.safetensors."""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jgraph._errors import GraphFormatError, InputError

GRAPH = "graph.json"
STATE = "state.safetensors"

_MAX_GRAPH_BYTES = 32 << 20
_MAX_RATIO = 200
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # so that the same graph is the same file


def write_archive(
    path: str | os.PathLike[str], data: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Write a graph file whole or not at all.

    Raises:
        InputError: the folder isn't there.
        OSError: it can't be written.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} must be a folder, to write {target.name} into it")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        text = json.dumps(data, separators=(",", ":"), allow_nan=False, sort_keys=True)
        archive.writestr(_entry(GRAPH, zipfile.ZIP_DEFLATED), text, compresslevel=9)
        if tensors:
            # safetensors writes the memory of a transposed view as it lies, which reloads wrong.
            whole = {name: np.array(x, order="C") for name, x in sorted(tensors.items())}
            archive.writestr(_entry(STATE, zipfile.ZIP_STORED), safetensors.numpy.save(whole))
    handle, unfinished = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.unfinished-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(buffer.getbuffer())
        os.chmod(unfinished, 0o666 & ~_umask())
        os.replace(unfinished, target)
    except BaseException:
        os.unlink(unfinished)
        raise


def read_archive(path: str | os.PathLike[str]) -> tuple[Any, dict[str, np.ndarray]]:
    """Read a graph file; nothing in it is run, and no more is read than the file is long.

    Raises:
        GraphFormatError: it is no graph file, or a damaged one.
        OSError: it can't be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError) as error:
        raise GraphFormatError(
            f"{path} must be a graph file, and is none or damaged: {error}"
        ) from error
    except (ValueError, RuntimeError, RecursionError, OverflowError) as error:
        if isinstance(error, GraphFormatError):
            raise GraphFormatError(f"{path}: {error}") from None
        raise GraphFormatError(f"{path} must be a graph file, and is damaged: {error}") from error


def _read(archive: zipfile.ZipFile) -> tuple[Any, dict[str, np.ndarray]]:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if names not in ([GRAPH], [GRAPH, STATE]):
        raise GraphFormatError(
            f"a graph file must hold {GRAPH} and perhaps {STATE}, got "
            f"{', '.join(names[:4]) or 'nothing'}"
        )
    size, packed = entries[0].file_size, entries[0].compress_size
    if size > _MAX_GRAPH_BYTES or size > _MAX_RATIO * max(packed, 1):
        raise GraphFormatError(f"{GRAPH} must be at most {_MAX_GRAPH_BYTES} bytes, got {size}")
    data = json.loads(
        _bytes(archive, entries[0], _MAX_GRAPH_BYTES),
        object_pairs_hook=_without_duplicates,
        parse_constant=_no_constant,
    )
    if len(entries) == 1:
        return data, {}
    if entries[1].compress_type != zipfile.ZIP_STORED:
        raise GraphFormatError(f"{STATE} must be stored as it is, got a compressed one")
    try:
        tensors = safetensors.numpy.load(_bytes(archive, entries[1], entries[1].compress_size))
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise GraphFormatError(f"{STATE} is damaged: {error}") from error
    return data, tensors


def _bytes(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> bytes:
    with archive.open(entry) as file:
        found = file.read(limit + 1)
        if len(found) > limit:
            raise GraphFormatError(f"{entry.filename} is longer than it says")
        return found


def _entry(name: str, compression: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _LONG_AGO)
    entry.compress_type = compression
    entry.external_attr = 0o644 << 16
    return entry


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise GraphFormatError(f"{GRAPH} has a key twice")
    return found


def _no_constant(name: str) -> Any:
    raise GraphFormatError(f"{GRAPH} must be JSON, which has no {name}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
