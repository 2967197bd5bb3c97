"""Features of pictures kept on disk, so that the same pictures needn't be embedded twice.

Shape suffixes: N pictures, D features.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from jgraph._cache import cache_folder
from jgraph._errors import InputError
from jgraph.data._decode import PictureSource

LIMIT_VARIABLE = "JGRAPH_FEATURES_GB"
_DEFAULT_GB = 2.0

_FILE = "features.sqlite"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_LOCK_SECONDS = 60.0
_FRESH_SECONDS = 3600  # what was used so recently isn't written again, only to say so
_MADE = """
    CREATE TABLE IF NOT EXISTS features (
        key BLOB PRIMARY KEY, used INTEGER NOT NULL, checksum BLOB NOT NULL, row BLOB NOT NULL);
    CREATE INDEX IF NOT EXISTS by_use ON features (used);
"""


class FeatureCache:
    """Feature vectors by what made them and by the bytes of their picture.

    One SQLite file: a process that is killed loses what it was writing and nothing else, and
    several may use it at once. A vector that was damaged isn't returned; a file that is damaged
    as a whole starts anew. It holds as many gigabytes as the variable `JGRAPH_FEATURES_GB` says,
    2 without it; what was used least recently goes first.

    Trouble with the disk is never raised, since the features can be computed: see `trouble`.

    Args:
        recipe: whatever decides which features a picture gets; another recipe, other entries.
        folder: where the file lies; None for features/ in the user's cache folder of jgraph.

    Attributes:
        trouble: why nothing is kept or found, None while all is well.

    Raises:
        InputError: `JGRAPH_FEATURES_GB` isn't a number of gigabytes.

    Example:
        >>> import tempfile
        >>> cache = FeatureCache("network 1", Path(tempfile.mkdtemp()))
        >>> keys = cache.keys([b"a picture's bytes", b"another's"])
        >>> cache.put(keys[:1], np.ones((1, 3), np.float32))
        >>> cache.get(keys)
        {0: array([1., 1., 1.], dtype=float32)}
    """

    def __init__(self, recipe: str, folder: Path | None = None) -> None:
        self._recipe = hashlib.sha256(recipe.encode()).digest()
        self._path = (cache_folder() / "features" if folder is None else folder) / _FILE
        self._limit = _limit_bytes()
        self.trouble: str | None = None

    def keys(self, pictures: Sequence[PictureSource]) -> list[bytes | None]:
        """Return the key of each picture, None for what is no file that can be read."""
        return [self._key(picture) for picture in pictures]

    def get(self, keys: Sequence[bytes | None]) -> dict[int, Float32[np.ndarray, " d"]]:
        """Return what is there, by the position of its key; it counts as used now."""
        found: dict[int, np.ndarray] = {}
        now = int(time.time())

        def look(connection: sqlite3.Connection) -> None:
            stale: list[tuple[int, bytes]] = []
            for position, key in enumerate(keys):
                entry = connection.execute(
                    "SELECT used, checksum, row FROM features WHERE key = ?", (key,)
                ).fetchone()
                if key is None or entry is None or _checksum(key, entry[2]) != entry[1]:
                    continue
                found[position] = np.frombuffer(bytearray(entry[2]), "<f4")
                if entry[0] < now - _FRESH_SECONDS:
                    stale.append((now, key))
            with connection:
                connection.executemany("UPDATE features SET used = ? WHERE key = ?", stale)

        self._run(look)
        return found

    def put(self, keys: Iterable[bytes | None], rows_ND: Float32[np.ndarray, "n d"]) -> None:
        """Keep the features of pictures, all of them or, when interrupted, none."""
        now = int(time.time())
        entries = (
            (key, now, _checksum(key, row), row)
            for key, row in zip(keys, (r.astype("<f4").tobytes() for r in rows_ND), strict=True)
            if key is not None
        )

        def keep(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", entries
                )
            self._prune(connection)

        self._run(keep)

    def _key(self, picture: PictureSource) -> bytes | None:
        if isinstance(picture, str | Path):
            try:
                picture = Path(picture).read_bytes()
            except OSError:
                return None
        if not isinstance(picture, bytes):
            return None
        return hashlib.sha256(self._recipe + hashlib.sha256(picture).digest()).digest()

    def _run(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do something with the file, if there is no trouble."""
        if self.trouble is not None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._opened()) as connection:
                work(connection)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) not in _DAMAGED:
                self.trouble = f"{self._path}: {error}"
                return
            # The journal first: it would be played back into the next file.
            for path in (Path(f"{self._path}-journal"), self._path):
                path.unlink(missing_ok=True)
        except OSError as error:
            self.trouble = f"{self._path}: {error.strerror}"

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_LOCK_SECONDS)
        # Both only matter to a new file: three vectors to a page, and room is given back.
        connection.execute("PRAGMA page_size = 16384")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.executescript(_MADE)
        return connection

    def _prune(self, connection: sqlite3.Connection) -> None:
        """Remove what was used least recently until the file is small enough."""
        while _bytes_used(connection) > self._limit:
            (count,) = connection.execute("SELECT COUNT(*) FROM features").fetchone()
            if not count:
                break
            with connection:
                connection.execute(
                    "DELETE FROM features WHERE rowid IN "
                    "(SELECT rowid FROM features ORDER BY used, rowid LIMIT ?)",
                    (-(-count // 10),),
                )
            connection.executescript("PRAGMA incremental_vacuum")  # a step per page


def _limit_bytes() -> float:
    text = os.environ.get(LIMIT_VARIABLE) or str(_DEFAULT_GB)
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise InputError(f"{LIMIT_VARIABLE} must be a number of gigabytes, such as 2, got {text!r}")
    return limit * 1e9


def _checksum(key: bytes, row: bytes) -> bytes:
    return hashlib.sha256(key + row).digest()[:8]


def _bytes_used(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size
