"""Batches of decoded pictures from files, read ahead by threads (Grain), the same in every run.

Shape suffixes: B batch, S side of the square, 3 channels (R, G, B).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, cast

import numpy as np
from jaxtyping import Int

from jgraph._errors import InputError, PictureError
from jgraph._preprocessing import Preprocessing
from jgraph.data._decode import PictureSource, augment_picture, decode_picture

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Decoded:
    """A picture, or why there is none."""

    index: int
    picture: np.ndarray | None
    reason: str = ""


class Pictures:
    """Batches of pictures with labels, to be gone through as often as one likes.

    A batch is a dict of `picture` uint8 [B, S, S, 3] (RGB, not normalised), `label` int32 [B],
    `weight` float32 [B] and `index` int32 [B], the row's position in `paths`. All batches have the
    same size B: rows beyond the last picture are copies of a real row with weight 0.

    What an epoch holds depends on `seed` and the epoch's number alone, not on the number of
    workers or on the epochs before it.

    Args:
        paths: N pictures: files, or whatever `decode_picture` takes.
        labels: class of each picture, int [N]; None: unknown, the batches say -1.
        preprocessing: what the network wants.
        batch_size: rows per batch B, at least 1.
        shuffle: whether every epoch has an order of its own.
        augment: whether to take random parts and mirror (`augment_picture`).
        seed: of order and augmentation, 0 or above.
        workers: threads that decode; 0: in the calling thread.
        on_bad_picture: "stop": raise on a picture that cannot be decoded; "skip": give its row the
            weight 0 and note it in `bad`.

    Attributes:
        bad: position of each skipped picture in `paths`, and what is wrong with it; filled while
            batches are drawn.

    Raises:
        InputError: there are no pictures, their number differs from that of the labels, or an
            argument is out of range.

    Example:
        >>> import numpy as np
        >>> from jgraph._preprocessing import Preprocessing
        >>> p = Preprocessing(4, 4, "bicubic", mean=(127.0,) * 3, std=(128.0,) * 3)
        >>> pictures = Pictures([np.zeros((9, 6), np.uint8)] * 3, [0, 1, 1], p, batch_size=2)
        >>> for batch in pictures:
        ...     print(batch["picture"].shape, batch["label"], batch["weight"])
        (2, 4, 4, 3) [0 1] [1. 1.]
        (2, 4, 4, 3) [1 1] [1. 0.]
    """

    def __init__(
        self,
        paths: Sequence[PictureSource],
        labels: Sequence[int] | Int[np.ndarray, " n"] | None,
        preprocessing: Preprocessing,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        workers: int = 2,
        on_bad_picture: Literal["stop", "skip"] = "stop",
    ) -> None:
        if len(paths) == 0:
            raise InputError("batches need at least one picture, got none")
        if labels is not None and len(labels) != len(paths):
            raise InputError(
                f"every picture needs one label, got {len(paths)} pictures and {len(labels)} labels"
            )
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if seed < 0:
            raise InputError(f"seed must be 0 or above, got {seed}")
        self.paths = tuple(paths)
        self.labels = np.full(len(paths), -1) if labels is None else np.asarray(labels)
        self.labels = self.labels.astype(np.int32)
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.seed = seed
        self.workers = workers
        self.on_bad_picture = on_bad_picture
        self.bad: dict[int, str] = {}

    def __len__(self) -> int:
        return -(-len(self.paths) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return the batches of one epoch.

        Args:
            epoch: its number, from 0; it decides order and augmentation.
            start: how many batches to leave out, for a run that goes on.

        Returns:
            An iterator over `len(self) - start` batches; it may be left early.

        Raises:
            PictureError: while iterating, a picture cannot be decoded and `on_bad_picture` is
                "stop"; the message names it.

        Example:
            >>> import numpy as np
            >>> from jgraph._preprocessing import Preprocessing
            >>> p = Preprocessing(4, 4, "bicubic", mean=(127.0,) * 3, std=(128.0,) * 3)
            >>> sources = [np.zeros((4, 4), np.uint8)] * 4
            >>> pictures = Pictures(sources, None, p, batch_size=4, shuffle=True)
            >>> [next(pictures.epoch(n))["index"].tolist() for n in (0, 1, 0)]
            [[1, 0, 3, 2], [2, 0, 3, 1], [1, 0, 3, 2]]
        """
        import grain  # takes a second to import, and only batches need it

        def decode(index: int) -> _Decoded:
            return self._decode(index, epoch)

        rows = grain.MapDataset.source(self._order(epoch)[start * self.batch_size :]).map(decode)
        options = grain.ReadOptions(
            num_threads=self.workers,
            # Grain wants a place for each thread, even where there are fewer pictures.
            prefetch_buffer_size=max(self.workers, min(len(self.paths), self.batch_size)),
        )
        batches = rows.to_iter_dataset(options).batch(self.batch_size, batch_fn=list)
        iterator = iter(batches)
        try:
            for decoded in iterator:
                yield self._assemble(cast(list[_Decoded], decoded))
        finally:
            iterator.close()

    def _order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(len(self.paths)))
        return self._rng(epoch).permutation(len(self.paths)).tolist()

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def _decode(self, index: int, epoch: int) -> _Decoded:
        """Decode one picture; an error is carried to the caller's thread."""
        source = self.paths[index]
        try:
            if self.augment:
                rng = self._rng(epoch, index)
                return _Decoded(index, augment_picture(source, self.preprocessing, rng))
            return _Decoded(index, decode_picture(source, self.preprocessing))
        except PictureError as error:
            return _Decoded(index, None, str(error))

    def _assemble(self, rows: list[_Decoded]) -> Batch:
        """Stack the rows; bad ones and those missing to a whole batch become copies."""
        for row in rows:
            if row.picture is None and self.on_bad_picture == "stop":
                raise PictureError(
                    f"{row.reason}; repair or remove it, or skip such pictures "
                    '(on_bad_picture="skip" or --on-bad-picture skip)'
                )
            if row.picture is None:
                self.bad[row.index] = row.reason
        good = [row for row in rows if row.picture is not None]
        weight = [float(row.picture is not None) for row in rows]
        side = self.preprocessing.image_size
        # In a batch with bad pictures alone there is nothing to copy: black, with weight 0.
        fill = good[0] if good else _Decoded(rows[0].index, np.zeros((side, side, 3), np.uint8))
        missing = self.batch_size - len(rows)
        filled = [fill if row.picture is None else row for row in rows] + [fill] * missing
        index = np.array([row.index for row in filled], np.int32)
        return {
            "picture": np.stack([cast(np.ndarray, row.picture) for row in filled]),
            "label": self.labels[index],
            "weight": np.array(weight + [0.0] * missing, np.float32),
            "index": index,
        }
