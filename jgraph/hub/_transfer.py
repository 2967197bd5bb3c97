"""Modules from one place to another: folders, archives, any place fsspec knows, the HF Hub."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from jgraph._errors import InputError, ModuleFetchError, ModuleFormatError
from jgraph._handles import HuggingFaceHandle, Limits, huggingface_hub, parse_handle
from jgraph._unfinished import unfinished_beside
from jgraph.hub._archive import is_archive, pack, unpack
from jgraph.hub._find import find_module
from jgraph.hub._format import MANIFEST, check_module, read_manifest
from jgraph.hub._module import Module
from jgraph.hub._publish import publish

_EXISTS = "{} exists already; choose another name or remove it"


def push(module: Module | str | os.PathLike[str], destination: str | os.PathLike[str]) -> str:
    """Copy a module to where others find it; it is there whole, or not at all.

    Args:
        module: a module as `load` or `layer.module()` returns it, or a handle of one.
        destination: what must not be there yet: a folder; an archive (.zip, .tar, .tar.gz); a
            URL that fsspec knows, such as `s3://bucket/name` or `memory://name.zip`. Or
            `hf:OWNER/NAME`, a repository on the Hugging Face Hub, which is made if need be and
            then holds this module and nothing else.

    Returns:
        What it is loaded or pulled by.

    Raises:
        InputError: the destination exists, or can't be one.
        ModuleIntegrityError: the module's files aren't as they were written.
        ModuleFetchError: the destination can't be reached, or refuses it.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jgraph import hub
        >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = hub.publish(f"{folder}/line", model, inputs={"x": jnp.zeros((1, 2))})
        ...     url = hub.push(path, "memory://shop/line.zip")
        ...     copy = hub.pull(url, f"{folder}/copy")
        ...     hub.load(copy).signatures
        ('default',)
    """
    with _folder_of(module) as folder:
        check_module(folder)
        names = [MANIFEST, *read_manifest(folder)["files"]]
        text = os.fspath(destination)
        if _is_url(text):
            _to_url(folder, names, text)
            return text
        target = parse_handle(destination)
        if isinstance(target, HuggingFaceHandle):
            return _to_hugging_face(folder, names, target)
        path = Path(text).expanduser()
        if path.exists() or path.is_symlink():
            raise ModuleFormatError(_EXISTS.format(path))
        with _unfinished(path) as unfinished:
            if is_archive(path.name):
                pack(folder, names, unfinished)
            else:
                _copy(folder, names, unfinished)
        return str(path)


def pull(
    handle: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
) -> Path:
    """Copy a module into a folder of one's own.

    Args:
        handle: what `load` takes, or a URL that fsspec knows, such as `s3://bucket/name`.
        folder: the destination, which must not exist.
        limits: how much may be fetched and unpacked; None for 16 GiB.

    Returns:
        The folder.

    Raises:
        InputError: what `load` raises, for the same reasons; or the folder exists.
    """
    target, limits = Path(folder).expanduser(), limits or Limits()
    if target.exists() or target.is_symlink():
        raise ModuleFormatError(_EXISTS.format(target))
    with _unfinished(target) as unfinished:
        if isinstance(handle, str) and _is_url(handle):
            _from_url(handle, unfinished, limits)
        else:
            source = find_module(handle, limits)
            _copy(source, [MANIFEST, *read_manifest(source)["files"]], unfinished)
        check_module(unfinished)
    return target


# Places.


@contextlib.contextmanager
def _folder_of(module: Module | str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder with the module as it is now: its weights may be others than its folder's."""
    if not isinstance(module, Module):
        yield find_module(module, Limits())
        return
    with tempfile.TemporaryDirectory() as place:
        yield publish(Path(place) / module.folder.name, module)


@contextlib.contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Give a name beside the path; what is written there gets the path's name at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished_beside(path) as unfinished:
        yield unfinished
        try:
            unfinished.rename(path)
        except OSError as error:
            if path.exists():  # somebody else wrote it meanwhile
                raise ModuleFormatError(_EXISTS.format(path)) from error
            raise


def _copy(source: Path, names: list[str], target: Path) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def _is_url(text: str) -> bool:
    """Return whether it is a place that fsspec may know, and no handle."""
    return "://" in text and not text.startswith(("http://", "https://", "hf:", "pkg:"))


def _to_url(folder: Path, names: list[str], url: str) -> None:
    with _file_system(url) as (files, path):
        if files.exists(path):
            raise ModuleFormatError(_EXISTS.format(url))
        if is_archive(path):
            with tempfile.TemporaryDirectory() as place:
                archive = Path(place) / path.rpartition("/")[2]
                pack(folder, names, archive)
                files.makedirs(path.rpartition("/")[0], exist_ok=True)
                files.put_file(str(archive), path)
            return
        # The manifest last: without one, what is there is no module.
        for name in (*(name for name in names if name != MANIFEST), MANIFEST):
            target = f"{path.rstrip('/')}/{name}"
            files.makedirs(target.rpartition("/")[0], exist_ok=True)
            files.put_file(str(folder / name), target)


def _from_url(url: str, folder: Path, limits: Limits) -> None:
    with _file_system(url) as (files, path):
        if is_archive(path):
            archive = folder.with_name("archive")
            _get(files, path, archive, limits.bytes, url)
            unpack(archive, folder, limits)
            archive.unlink()
            return
        folder.mkdir()
        _get(files, f"{path.rstrip('/')}/{MANIFEST}", folder / MANIFEST, limits.bytes, url)
        left = limits.bytes
        for name, entry in read_manifest(folder)["files"].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _get(files, f"{path.rstrip('/')}/{name}", folder / name, left, url)
            left -= entry["bytes"]


def _get(files: Any, path: str, target: Path, most: int, url: str) -> None:
    Limits(bytes=most).check_bytes(files.size(path) or 0, url)
    files.get_file(path, str(target))


@contextlib.contextmanager
def _file_system(url: str) -> Iterator[tuple[Any, str]]:
    """Give what fsspec reads and writes a URL by, and the path there."""
    fsspec = _fsspec()
    try:
        files, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError(f"{url} is nothing that fsspec can reach: {error}") from error
    try:
        yield files, path
    except FileNotFoundError as error:
        raise ModuleFetchError(f"there is no module at {url}: {error} isn't there") from error
    except PermissionError as error:
        raise ModuleFetchError(f"{url} is refused: {error}") from error


def _fsspec() -> ModuleType:
    try:
        import fsspec.core
    except ImportError as error:
        raise InputError(
            "URLs need the package fsspec; run: pip install 'jgraph[fsspec]'"
        ) from error
    return fsspec


def _to_hugging_face(folder: Path, names: list[str], handle: HuggingFaceHandle) -> str:
    if handle.file:
        raise InputError(f"a module is pushed to a whole repository, got the file {handle.file}")
    hub = huggingface_hub()
    api = hub.HfApi()
    try:
        api.create_repo(handle.repository, exist_ok=True)
        commit = api.upload_folder(
            repo_id=handle.repository,
            folder_path=folder,
            revision=handle.revision,
            allow_patterns=names,
            delete_patterns="*",
            commit_message="Publish a jgraph module",
        )
    except hub.errors.HFValidationError as error:
        raise InputError(f"{handle} can't be a repository: {error}") from error
    except hub.errors.HTTPError as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModuleFetchError(
            f"{handle} can't be written: {first}; log in: hf auth login, or set HF_TOKEN"
        ) from error
    return str(HuggingFaceHandle(handle.repository, commit.oid))
