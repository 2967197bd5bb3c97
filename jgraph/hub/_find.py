"""From a handle to the folder of a module on this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from jgraph import _handles
from jgraph._errors import (
    InputError,
    ModuleFetchError,
    ModuleFormatError,
    ModuleIntegrityError,
    ModuleNotCachedError,
    UnsafeModuleError,
)
from jgraph._handles import (
    PARTIAL,
    Cache,
    HuggingFace,
    HuggingFaceHandle,
    Limits,
    LocalHandle,
    UrlHandle,
    find_in_package,
    parse_handle,
    sha256_of,
)
from jgraph._suggest import did_you_mean, did_you_mean_path
from jgraph._version import __version__
from jgraph.hub._archive import unpack
from jgraph.hub._format import MANIFEST, check_module, read_manifest

_MODULE = "module"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def find_module(handle: str | os.PathLike[str], limits: Limits) -> Path:
    """Return the folder of a module, fetched or unpacked into the cache if need be.

    Raises:
        InputError: there is no such module, or the handle has none of the forms.
        ModuleFetchError: it can't be fetched.
        ModuleFormatError: it is no module, or breaks the format.
        ModuleIntegrityError: it isn't the one that the handle was made for.
        ModuleNotCachedError: it isn't in the cache, and nothing may be fetched while offline.
        UnsafeModuleError: its archive is made to do harm, or it is larger than the limits.
    """
    parsed = parse_handle(handle)
    if isinstance(parsed, LocalHandle):
        if parsed.path.exists() or parsed.path.is_symlink():
            return _local(parsed.path, limits)
        return _built_in(str(handle), parsed.path)
    if isinstance(parsed, UrlHandle):
        return _url(parsed, limits)
    if isinstance(parsed, HuggingFaceHandle):
        return _hugging_face(parsed, limits)
    if not parsed.file:
        raise InputError(
            f"pkg:PACKAGE/FILE must name a module's folder or archive in the package, got {handle}"
        )
    return _local(find_in_package(parsed), limits)


def _local(path: Path, limits: Limits) -> Path:
    if not path.is_file():
        return path
    found = sha256_of(path)
    name = os.path.abspath(path)
    return _cached(f"archive-{found}", name, lambda to: unpack(path, to, limits), remote=False)


def _url(handle: UrlHandle, limits: Limits) -> Path:
    def fill(folder: Path) -> None:
        archive = folder.parent / PARTIAL
        _handles.download(handle, archive, limits)
        try:
            unpack(archive, folder, limits)
        except (ModuleFormatError, UnsafeModuleError) as error:
            raise type(error)(str(error).replace(str(archive), str(handle))) from error
        finally:
            archive.unlink()

    return _cached(f"archive-{handle.sha256}", str(handle), fill, remote=True)


def _hugging_face(handle: HuggingFaceHandle, limits: Limits) -> Path:
    repository, cache = HuggingFace(handle, limits), Cache()
    try:
        file = repository.look(handle.file or MANIFEST)
    except (ModuleNotCachedError, ModuleFetchError):
        found = cache.named(str(handle))
        if found is None:
            raise
        return found / _MODULE
    if handle.file:
        return _local(repository.fetch(file), limits)

    def fill(folder: Path) -> None:
        folder.mkdir()
        _link(repository.fetch(file), folder / MANIFEST)
        files = read_manifest(folder)["files"]
        limits.check_bytes(sum(entry["bytes"] for entry in files.values()), str(handle))
        for name, entry in files.items():
            found = repository.look(name, file.commit)
            if found.bytes != entry["bytes"]:
                raise ModuleIntegrityError(
                    f"{name} of {handle} must have {entry['bytes']} bytes, got {found.bytes}"
                )
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _link(repository.fetch(found), folder / name)

    pinned = HuggingFaceHandle(handle.repository, file.commit)
    key = f"hf-{handle.repository.replace('/', '--')}-{file.commit}"
    folder = _cached(key, str(pinned), fill, remote=False)
    cache.name(str(handle), key)
    return folder


def _built_in(name: str, path: Path) -> Path:
    """Return a module of one of jgraph's own networks, published into the cache."""
    names: tuple[str, ...] = ()
    if _NAME.fullmatch(name):
        from jgraph import models

        names = tuple(n for n in models.names() if models.published(n))
        if name in models.names():
            return _publish_built_in(name)
    hint = did_you_mean(name, names) or did_you_mean_path(path)
    known = f"\n  a network's name                    {', '.join(names)}" if names else ""
    raise ModuleFormatError(
        f"there is no module {name!r}{hint}; a handle is one of:\n{_handles.FORMS}{known}"
    )


def _publish_built_in(name: str) -> Path:
    from jgraph import models
    from jgraph.hub._publish import publish

    published = models.published(name)

    def fill(folder: Path) -> None:
        model = models.create(name, weights="pretrained")
        assert published is not None
        publish(
            folder.with_name(name),  # which its card is called after
            model,
            signatures={
                "default": lambda model, pictures: model(model.preprocessing.normalize(pictures)),
                "features": lambda model, pictures: model.features(
                    model.preprocessing.normalize(pictures)
                ),
            },
            licence=published.licence,
            provenance={"weights": published.handle, "sha256": published.sha256},
        ).rename(folder)

    digest = published.sha256 if published else "none"
    return _cached(f"{name}-{__version__}-{digest}", name, fill, remote=False)


def _cached(key: str, handle: str, fill: Callable[[Path], None], *, remote: bool) -> Path:
    """Return a module's folder in the cache; what fills it is checked before it is there."""

    def fill_checked(folder: Path) -> None:
        fill(folder / _MODULE)
        try:
            check_module(folder / _MODULE)
        except (ModuleFormatError, ModuleIntegrityError) as error:
            raise type(error)(str(error).replace(str(folder / _MODULE), handle)) from error

    return Cache().get(key, handle, fill_checked, remote=remote) / _MODULE


def _link(source: Path, target: Path) -> None:
    """Give a file of another cache a name in ours, which takes no room where it can."""
    source = source.resolve()
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
