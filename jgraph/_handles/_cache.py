"""What was fetched, kept in the user's cache folder: whole entries only, one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import filelock

from jgraph._cache import cache_folder
from jgraph._errors import ModuleFetchError, ModuleNotCachedError

PARTIAL = "download"
"""The file of an unfinished entry that is kept, for the next attempt to go on with."""

_ENTRY = "entry.json"
_UNFINISHED = "unfinished-"
_LOCKS = "locks"
_NAMES = "names"
_LOCK_SECONDS = 3600.0


class Entry(NamedTuple):
    """One thing in the cache."""

    handle: str
    folder: Path
    bytes: int
    used: float
    """When it was last used, in seconds since 1970."""


def is_offline() -> bool:
    """Return whether nothing may be fetched: `JGRAPH_HUB_OFFLINE` is set, and not to 0."""
    return os.environ.get("JGRAPH_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no")


class Cache:
    """The cache of the hub: `JGRAPH_HUB_CACHE`, or hub/ in the user's cache folder of jgraph.

    An entry is filled in a folder of its own and then renamed, so that what is there is whole.
    """

    def __init__(self) -> None:
        own = os.environ.get("JGRAPH_HUB_CACHE")
        self.folder = Path(own).expanduser() if own else cache_folder() / "hub"

    def find(self, key: str) -> Path | None:
        """Return the folder of an entry, now used, or None."""
        folder = self.folder / key
        if not (folder / _ENTRY).is_file():
            return None
        with contextlib.suppress(OSError):  # a cache that others share may be read-only
            os.utime(folder / _ENTRY)
        return folder

    def get(self, key: str, handle: str, fill: Callable[[Path], None], *, remote: bool) -> Path:
        """Return the folder of an entry, filled if need be.

        Args:
            key: its name.
            handle: what it is, for people.
            fill: writes what belongs into it into a folder. Where it raises, nothing is left but
                a file `download`, from which the next attempt may go on.
            remote: whether to fill means to fetch.

        Raises:
            ModuleNotCachedError: it isn't there, and the hub is offline.
            ModuleFetchError: another process holds it for too long.
        """
        found = self.find(key)
        if found is not None:
            return found
        if remote and is_offline():
            raise ModuleNotCachedError(
                f"{handle} isn't in the cache {self.folder}, and JGRAPH_HUB_OFFLINE is set; "
                "fetch it once online, or set JGRAPH_HUB_CACHE to a folder that has it"
            )
        with self._locked(key):
            return self.find(key) or self._filled(key, handle, fill)

    def name(self, handle: str, key: str) -> None:
        """Keep which entry a handle stands for now, where that can change."""
        path = self._named(handle)
        with contextlib.suppress(OSError):  # a cache that others share may be read-only
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"{path.name}.{os.getpid()}")
            unfinished.write_text(key, "utf-8")
            unfinished.replace(path)

    def named(self, handle: str) -> Path | None:
        """Return the folder of the entry that a handle stood for when it was last fetched."""
        path = self._named(handle)
        return self.find(path.read_text("utf-8")) if path.is_file() else None

    def entries(self) -> list[Entry]:
        """Return what is in the cache, what was used last first."""
        found = []
        for path in self.folder.glob(f"*/{_ENTRY}"):
            if path.parent.name.startswith(_UNFINISHED):
                continue
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                handle = str(json.loads(path.read_text("utf-8"))["handle"])
                used = path.stat().st_mtime
                found.append(Entry(handle, path.parent, _size(path.parent), used))
        return sorted(found, key=lambda entry: (-entry.used, entry.handle))

    def remove(self, entry: Entry) -> None:
        """Remove an entry; at no moment is there half of it."""
        key = entry.folder.name
        with self._locked(key):
            gone = self.folder / f"{_UNFINISHED}{key}"
            shutil.rmtree(gone, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                entry.folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def remove_unfinished(self, older_than_seconds: float) -> int:
        """Remove what was begun, not finished and not touched for so long; return its bytes."""
        freed = 0
        for folder in sorted(self.folder.glob(f"{_UNFINISHED}*")):
            with self._locked(folder.name.removeprefix(_UNFINISHED)):
                newest = max((p.stat().st_mtime for p in [folder, *folder.rglob("*")]), default=0)
                if time.time() - newest >= older_than_seconds:
                    freed += _size(folder)
                    shutil.rmtree(folder, ignore_errors=True)
        return freed

    def _named(self, handle: str) -> Path:
        return self.folder / _NAMES / hashlib.sha256(handle.encode()).hexdigest()

    def _filled(self, key: str, handle: str, fill: Callable[[Path], None]) -> Path:
        unfinished, folder = self.folder / f"{_UNFINISHED}{key}", self.folder / key
        _clear(unfinished)
        unfinished.mkdir(exist_ok=True)
        try:
            fill(unfinished)
            (unfinished / _ENTRY).write_text(json.dumps({"handle": handle}), "utf-8")
            shutil.rmtree(folder, ignore_errors=True)  # a folder without entry.json is none
            unfinished.rename(folder)
        except BaseException:
            _clear(unfinished)
            raise
        return folder

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        locks = self.folder / _LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(locks / f"{key}.lock")
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except filelock.Timeout as error:
            raise ModuleFetchError(
                f"another process has held {lock.lock_file} for an hour; end it, and try again"
            ) from error
        try:
            yield
        finally:
            lock.release()


def _clear(unfinished: Path) -> None:
    """Remove all of an unfinished entry but what was downloaded of it."""
    if not unfinished.is_dir():
        return
    for path in unfinished.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith(PARTIAL):
            path.unlink()
    with contextlib.suppress(OSError):  # not empty
        unfinished.rmdir()


def _size(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file())
