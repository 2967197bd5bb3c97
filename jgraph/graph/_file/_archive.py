"""The file itself: a zip of graph.json and, where there is any, state.safetensors."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jgraph._errors import GraphFormatError, InputError
from jgraph._json import parse_json
from jgraph._unfinished import unfinished_beside

GRAPH = "graph.json"
STATE = "state.safetensors"

_DTYPES = {
    "BOOL": np.dtype(bool),
    **{
        f"{kind}{bits}": np.dtype(f"{name}{bits}")
        for kind, name in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "C64": np.dtype("complex64"),
    "BF16": jnp.dtype("bfloat16"),
    "F8_E4M3": jnp.dtype("float8_e4m3fn"),
    "F8_E5M2": jnp.dtype("float8_e5m2"),
}

_MAX_GRAPH_BYTES = 8 << 20
_MAX_RATIO = 200
_MAX_DIRECTORY = 1 << 16
_START, _END = b"PK\3\4", b"PK\5\6"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # so that the same graph is the same file


def write_archive(
    path: str | os.PathLike[str],
    data: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    check: Callable[[Any], object],
) -> None:
    """Write a graph file whole or not at all.

    Args:
        path: the file.
        data: the graph.
        tensors: its constants and state.
        check: raises where the graph, as it is read again, is none.

    Raises:
        GraphFormatError: what would be written couldn't be read.
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
    try:
        with zipfile.ZipFile(buffer) as archive:
            check(_graph(archive))
    except GraphFormatError as error:
        raise GraphFormatError(f"the graph can't be saved, since no file may: {error}") from None
    with unfinished_beside(target) as unfinished:
        unfinished.write_bytes(buffer.getbuffer())
        unfinished.replace(target)


def read_archive(path: str | os.PathLike[str]) -> tuple[Any, dict[str, np.ndarray]]:
    """Read a graph file; nothing in it is run, and no more is read than the file is long.

    Raises:
        GraphFormatError: it is no graph file, or a damaged one.
        OSError: it can't be read.
    """
    path = os.fspath(path)
    if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: a pipe would wait
        raise GraphFormatError(f"{path} must be a graph file, and isn't a file at all")
    with _Bounded(io.FileIO(path)) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                file.most = sys.maxsize
                return _read(archive, os.fstat(file.fileno()).st_size)
        except zipfile.BadZipFile as error:
            raise GraphFormatError(
                f"{path} must be a graph file, and is {_damage(file, error)}"
            ) from error
        except (zlib.error, struct.error, EOFError) as error:
            raise GraphFormatError(
                f"{path} must be a graph file, and is none or damaged: {error}"
            ) from error
        except (ValueError, RuntimeError, OverflowError) as error:
            if isinstance(error, GraphFormatError):
                raise GraphFormatError(f"{path}: {error}") from None
            raise GraphFormatError(
                f"{path} must be a graph file, and is damaged: {error}"
            ) from error
        except OSError as error:
            if error.errno != errno.EINVAL:  # a place in the file that can't be
                raise
            raise GraphFormatError(f"{path} must be a graph file, and is damaged") from error


def _damage(file: io.BufferedReader, error: Exception) -> str:
    """Return what is wrong with a zip that can't be opened."""
    length = file.seek(0, os.SEEK_END)
    if length == 0:
        return "empty"
    file.seek(max(length - _MAX_DIRECTORY, 0))
    is_open = _END not in file.read(_MAX_DIRECTORY)[:-18]  # of the 22 that it has, at least
    file.seek(0)
    if is_open and file.read(len(_START)) == _START:
        return "cut short, or damaged at its end: its table of contents is missing"
    return f"none or damaged: {error}"


class _Bounded(io.BufferedReader):
    """A file of which no more than `most` bytes are read at once.

    A zip's directory is read whole, and could be of millions of entries.
    """

    most = _MAX_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.most:
            raise GraphFormatError(
                f"a graph file must hold {GRAPH} and perhaps {STATE}, and its directory is of "
                f"{size} bytes"
            )
        return super().read(size)


def _read(archive: zipfile.ZipFile, length: int) -> tuple[Any, dict[str, np.ndarray]]:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if names not in ([GRAPH], [GRAPH, STATE]):
        raise GraphFormatError(
            f"a graph file must hold {GRAPH} and perhaps {STATE}, got "
            f"{', '.join(names[:4]) or 'nothing'}"
        )
    for entry in entries:
        if entry.compress_size > length:
            raise GraphFormatError(f"{entry.filename} is longer than the file")
        # Other compressions unpack without a bound.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise GraphFormatError(f"{entry.filename} must be deflated or stored as it is")
    data = _graph(archive)
    if len(entries) == 1:
        return data, {}
    if entries[1].compress_type != zipfile.ZIP_STORED:
        raise GraphFormatError(f"{STATE} must be stored as it is, got a compressed one")
    try:
        tensors = _tensors(_bytes(archive, entries[1], entries[1].compress_size))
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise GraphFormatError(f"{STATE} is damaged: {error}") from error
    return data, tensors


def _graph(archive: zipfile.ZipFile) -> Any:
    entry = archive.infolist()[0]
    size, packed = entry.file_size, entry.compress_size
    most = min(_MAX_GRAPH_BYTES, _MAX_RATIO * max(packed, 1))
    if size > most:
        raise GraphFormatError(
            f"{GRAPH} must be at most {most} bytes, {_MAX_RATIO} times what it is packed to, got "
            f"{size}"
        )
    return parse_json(_bytes(archive, entry, _MAX_GRAPH_BYTES), GRAPH)


def _tensors(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays; safetensors' own reader for numpy lacks the types that JAX adds to it."""
    return {
        name: np.frombuffer(found["data"], _DTYPES[found["dtype"]]).reshape(found["shape"])
        for name, found in safetensors.deserialize(data)
    }


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
