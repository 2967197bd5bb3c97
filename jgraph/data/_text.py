"""Text as tokens: files read as bytes, and windows of them in batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from jgraph._errors import InputError


class TextBatch(TypedDict):
    """Windows of a text: `tokens` int32 [B, T + 1], `weight` float32 [B], 0 for filling rows."""

    tokens: Int32[np.ndarray, "rows window"]
    weight: Float32[np.ndarray, " rows"]


def read_text(paths: Sequence[str | Path]) -> UInt8[np.ndarray, " bytes"]:
    """Return the bytes of text files, one after the other with a newline between.

    Args:
        paths: files, and folders whose text files (UTF-8, without NUL) are taken in the order of
            their names, hidden ones left out. A file that is met twice counts once.

    Raises:
        InputError: a path doesn't exist.
    """
    found: dict[Path, bytes] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"text must be files or folders, there is nothing at {path}")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file == path or (file.is_file() and not hidden and _is_text(file.read_bytes())):
                found[file.resolve()] = file.read_bytes()
    return np.frombuffer(b"\n".join(found.values()), np.uint8)


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Batches of windows of a text, for a model that predicts each next token.

    An iterable of `TextBatch`, the same each time, for `jgraph.TrainSpec` and `jgraph.EvalSpec`.
    The last batch is filled with copies of its rows at `weight` 0.

    Args:
        text: tokens, such as bytes.
        length: T, how many tokens of a window are predicted.
        batch_size: B, windows per batch.
        shuffle: take windows anywhere, drawn anew for every epoch; otherwise side by side.

    Raises:
        InputError: no window fits, or a batch would be empty.

    Example:
        >>> batch = next(iter(Windows(np.arange(10), length=4, batch_size=2)))
        >>> batch["tokens"].tolist(), batch["weight"].tolist()
        ([[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]], [1.0, 1.0])
    """

    text: np.ndarray
    length: int
    batch_size: int
    shuffle: bool = False

    def __post_init__(self) -> None:
        if not self.batch_size >= 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 1 <= self.length < len(self.text):
            raise InputError(
                f"a window's length must be from 1 to less than the text's, {len(self.text)} "
                f"tokens; got {self.length}"
            )

    def __iter__(self) -> Iterator[TextBatch]:
        return self.epoch(0)

    def epoch(self, number: int) -> Iterator[TextBatch]:
        """Yield the batches of an epoch, which its number decides."""
        starts = np.arange(0, len(self.text) - self.length, self.length)
        if self.shuffle:
            rng = np.random.default_rng(number)
            starts = rng.integers(len(self.text) - self.length, size=len(starts))
        for first in range(0, len(starts), self.batch_size):
            some = starts[first : first + self.batch_size]
            rows = np.resize(some, self.batch_size)
            tokens = self.text[rows[:, None] + np.arange(self.length + 1)].astype(np.int32)
            is_new = np.arange(self.batch_size) < len(some)
            yield {"tokens": tokens, "weight": is_new.astype(np.float32)}
