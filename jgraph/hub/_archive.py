"""Archives of modules: unpacked with bounds, written so that the same module is the same file.

Nothing of the standard library's `extractall` is used: in Python 3.11 it follows names and links
out of the folder. Here every file is made anew, under a name that was checked.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jgraph._errors import ModuleFormatError, UnsafeModuleError
from jgraph._handles import Limits
from jgraph.hub._format import MANIFEST, is_file_name

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")

_ZIP, _GZIP, _TAR = b"PK\x03\x04", b"\x1f\x8b", b"ustar"
_MAX_READ = 4 << 20  # at once: a directory of a zip, or a header of a tar, is read whole
_MAX_RATIO = 200
_FREE_BYTES = 64 << 20  # may be packed as well as they can be
_CHUNK = 1 << 18
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_PLAIN = 0o644
_NOT_OURS = ("__MACOSX/", ".DS_Store")  # what macOS puts into every archive
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    gzip.BadGzipFile,
    ValueError,
    OverflowError,
    RuntimeError,
    NotImplementedError,
)


class _Member(NamedTuple):
    name: str
    size: int
    open: Any


def is_archive(name: str) -> bool:
    """Return whether a file of this name is written as an archive."""
    return name.lower().endswith(ARCHIVES)


def unpack(archive: Path, folder: Path, limits: Limits) -> None:
    """Unpack a module's archive into an empty folder.

    The module may lie at the top of the archive, or in one folder in it.

    Args:
        archive: a .zip, .tar or .tar.gz, whatever it is called.
        folder: is made; nothing is written outside it.
        limits: of bytes and files.

    Raises:
        ModuleFormatError: it is no archive, or a damaged one.
        UnsafeModuleError: it holds what a module has not: links, devices, names that lead out of
            the folder or that are one file where case doesn't count, or far more than its length.
    """
    length = archive.stat().st_size
    most = min(limits.bytes, _FREE_BYTES + _MAX_RATIO * length)
    try:
        with archive.open("rb") as file:
            read = _reader(file, archive)
            file.seek(0)
            _write(read(file, archive, most), folder, archive, limits, most)
    except (UnsafeModuleError, ModuleFormatError):
        raise
    except _BROKEN as error:
        raise ModuleFormatError(
            f"{archive} must be a whole archive, and is damaged: {error!s:.200}; fetch it again"
        ) from error
    _lift(folder)


def pack(folder: Path, names: list[str], archive: Path) -> None:
    """Write files of a folder into an archive; the same files give the same bytes."""
    names = sorted(names)
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive, "w") as target:
            for name in names:
                entry = zipfile.ZipInfo(name, _LONG_AGO)
                entry.external_attr = (stat.S_IFREG | _PLAIN) << 16
                with (folder / name).open("rb") as source, target.open(entry, "w") as into:
                    _copy(source, into)
        return
    with archive.open("wb") as raw:
        is_plain = archive.name.lower().endswith(".tar")
        # Weights are noise: packing them harder takes long and gains nothing.
        stream = raw if is_plain else gzip.GzipFile("", "wb", 1, raw, mtime=0)
        with stream, tarfile.TarFile(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as target:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = (folder / name).stat().st_size, _PLAIN
                with (folder / name).open("rb") as source:
                    target.addfile(entry, source)


# Unpacking.


def _reader(file: io.BufferedIOBase, archive: Path) -> Any:
    start = file.read(512)
    if start.startswith(_ZIP):
        return _of_zip
    if start.startswith(_GZIP) or start[257:262] == _TAR:
        return _of_tar
    raise ModuleFormatError(
        f"{archive} must be a module's archive, {', '.join(ARCHIVES)}, and is none"
    )


def _of_zip(file: io.BufferedIOBase, archive: Path, most: int) -> Iterator[_Member]:
    length = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(_Bounded(file, archive)) as source:
        entries = source.infolist()
        if sum(entry.compress_size for entry in entries) > length:
            raise UnsafeModuleError(f"{archive} has files that lie over each other")
        for entry in entries:
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UnsafeModuleError(f"{archive} has a link or device, {entry.filename!r:.100}")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ModuleFormatError(
                    f"{archive} must be stored or deflated, got another at {entry.filename!r:.100}"
                )
            if not entry.is_dir():
                yield _Member(entry.orig_filename, entry.file_size, lambda x=entry: source.open(x))
            elif not is_file_name(entry.filename.rstrip("/")):
                raise _bad_name(archive, entry.filename)


def _of_tar(file: io.BufferedIOBase, archive: Path, most: int) -> Iterator[_Member]:
    start = file.read(2)
    file.seek(0)
    stream: Any = gzip.GzipFile(fileobj=file) if start == _GZIP else file
    # Twice, for headers and padding.
    bounded: Any = _Forward(stream, archive, 2 * most)
    with tarfile.TarFile(fileobj=bounded, mode="r") as source:
        for entry in source:
            if not (entry.isreg() or entry.isdir()) or entry.issparse():
                raise UnsafeModuleError(f"{archive} has a link or device, {entry.name!r:.100}")
            if entry.isdir():
                if not is_file_name(entry.name.removeprefix("./")) and entry.name != ".":
                    raise _bad_name(archive, entry.name)
                continue
            yield _Member(
                entry.name.removeprefix("./"), entry.size, lambda x=entry: source.extractfile(x)
            )


def _write(
    members: Iterator[_Member], folder: Path, archive: Path, limits: Limits, most: int
) -> None:
    folder.mkdir()
    seen: set[str] = set()
    left = most
    for member in members:
        if member.name.startswith(_NOT_OURS) or member.name.endswith("/.DS_Store"):
            continue
        if not is_file_name(member.name):
            raise _bad_name(archive, member.name)
        if member.name.lower() in seen:
            raise UnsafeModuleError(
                f"{archive} has {member.name} twice, or in two cases, which are one file on some "
                "systems"
            )
        seen.add(member.name.lower())
        if len(seen) > limits.files:
            raise UnsafeModuleError(f"{archive} must have at most {limits.files} files, got more")
        if not 0 <= member.size <= left:
            raise _bomb(archive, most)
        path = folder / member.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UnsafeModuleError(f"{archive} has {member.name} below a file") from error
        if path.is_dir():
            raise UnsafeModuleError(f"{archive} has {member.name} as a file and as a folder")
        with member.open() as source, path.open("xb") as target:
            left -= _copy(source, target, left, archive, most)


def _copy(
    source: Any,
    target: Any,
    left: int | None = None,
    archive: Path | None = None,
    most: int = 0,
) -> int:
    written = 0
    while chunk := source.read(_CHUNK):
        written += len(chunk)
        if left is not None and archive is not None and written > left:
            raise _bomb(archive, most)
        target.write(chunk)
    return written


def _lift(folder: Path) -> None:
    """Lift a module that lies in a folder of its archive to the top."""
    inside = sorted(folder.iterdir())
    if len(inside) == 1 and inside[0].is_dir() and (inside[0] / MANIFEST).is_file():
        lifted = folder.with_name(f"{folder.name}-lifted")
        inside[0].rename(lifted)
        folder.rmdir()
        lifted.rename(folder)


def _bad_name(archive: Path, name: str) -> UnsafeModuleError:
    return UnsafeModuleError(
        f"{archive} has a file name that isn't allowed, {name!r:.100}: it leaves the folder, or "
        "not every system can hold it"
    )


def _bomb(archive: Path, most: int) -> UnsafeModuleError:
    return UnsafeModuleError(
        f"{archive} must unpack to at most {most} bytes, and unpacks to more: the limit, or "
        f"{_MAX_RATIO} times its length"
    )


class _Bounded(io.BufferedReader):
    """A file of which not more is read at once than a directory may be long."""

    def __init__(self, file: io.BufferedIOBase, archive: Path) -> None:
        super().__init__(io.FileIO(file.fileno(), closefd=False))
        self._archive = archive

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = _MAX_READ + 1
            data = super().read(size)
            _check_read(len(data), self._archive)
            return data
        _check_read(size, self._archive)
        return super().read(size)


class _Forward:
    """A stream that is only read forwards, not too much at once, and not too far."""

    def __init__(self, stream: io.BufferedIOBase, archive: Path, most: int) -> None:
        self._stream, self._archive, self._most = stream, archive, most
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, place: int, whence: int = 0, /) -> int:
        if whence or place < self._at:
            raise tarfile.ReadError("it leads backwards")
        while self._at < place and self.read(min(_CHUNK, place - self._at)):
            pass
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        _check_read(size, self._archive)
        data = self._stream.read(size)
        self._at += len(data)
        if self._at > self._most:
            raise _bomb(self._archive, self._most // 2)
        return data

    def close(self) -> None:
        """The file is its owner's."""


def _check_read(size: int, archive: Path) -> None:
    if not 0 <= size <= _MAX_READ:
        raise UnsafeModuleError(f"{archive} has a header or a directory of {size} bytes")
