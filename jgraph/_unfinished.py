"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def unfinished_beside(path: Path) -> Iterator[Path]:
    """Give the path's name in a new folder beside it, to write there and rename.

    What isn't renamed is removed, after an error too. What a killed process left is removed by the
    next that writes the same path on this machine.

    Args:
        path: a file or a folder; its own folder must be there.
    """
    start = f".{path.name}.unfinished-"
    _remove_left(path.parent, start)
    prefix = f"{start}{os.getpid()}-{_machine()}-"
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=prefix, ignore_cleanup_errors=True
    ) as place:
        yield Path(place) / path.name


def _remove_left(folder: Path, start: str) -> None:
    left = re.compile(rf"{re.escape(start)}(\d+)-{re.escape(_machine())}-\w+")
    for name in os.listdir(folder):
        found = left.fullmatch(name)
        if found and not _is_running(int(found[1])):
            shutil.rmtree(folder / name, ignore_errors=True)


def _machine() -> str:
    return re.sub(r"\W", "", socket.gethostname())


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True
