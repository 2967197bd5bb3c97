"""Batches placed on a background thread, a few ahead of the program."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any

import jax

from jgraph._eager import jit_is_off

_DEPTH = 2
_BURST = 8  # batches that are small are placed so many at a time: a change of threads takes 50 us
_SMALL = 1 << 18  # bytes
_WAIT_SECONDS = 1.0
_END = object()


class Batches:
    """Batches of some data, placed; it can be iterated as often as the data.

    Args:
        data: an iterable of batches.
        place: applied to each batch.
    """

    def __init__(self, data: Iterable[Any], place: Callable[[Any], Any]) -> None:
        self._data, self._place = data, place

    def __iter__(self) -> Iterator[Any]:
        with Prefetch(self._data, self._place) as batches:
            yield from batches


class Prefetch:
    """Iterate on a background thread, some batches ahead; a context manager that ends it.

    Eight times as many where batches have less than 256 KiB.

    In debug mode it iterates in place, so that breakpoints in the pipeline are hit on
    the main thread, in order.

    Args:
        batches: what to iterate.
        transfer: applied to each batch on the thread.
        ahead: how many batches.
        threaded: False iterates in place, for batches that processes agree on, and closes a
            generator at the end.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        transfer: Callable[[Any], Any],
        *,
        ahead: int = _DEPTH,
        threaded: bool = True,
    ) -> None:
        self._batches = iter(batches)
        self._transfer = transfer
        self._is_threaded = threaded and not jit_is_off()
        self._closes = not threaded
        self._is_closed = False
        # Two queues and a thread: an executor with a future per batch takes 60 us more. A token is
        # for as many batches as are placed at a time.
        self._wanted: SimpleQueue[None] = SimpleQueue()
        self._ready: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._burst, self._taken = 0, 0
        self._thread: Thread | None = None
        if self._is_threaded:
            for _ in range(ahead):
                self._wanted.put(None)
            # A daemon: a pipeline that hangs must not keep the interpreter from its end.
            self._thread = Thread(target=self._work, name="jgraph-prefetch", daemon=True)
            self._thread.start()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        self._wanted.put(None)
        # A thread that is in a library while the interpreter ends takes the process down; but a
        # pipeline that hangs must not keep an error or Ctrl-C from its caller for long.
        if self._thread is not None:
            self._thread.join(_WAIT_SECONDS)
        if self._closes and isinstance(self._batches, Generator):
            self._batches.close()

    @property
    def ready(self) -> int:
        """How many batches, the end among them, needn't be waited for."""
        return self._ready.qsize()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = self._take() if self._is_threaded else self._fetch()
        if batch is _END:
            raise StopIteration
        return batch

    def _take(self) -> Any:
        batch, error = found = self._ready.get()
        if error is not None or batch is _END:
            self._ready.put(found)  # for who asks again
        if error is not None:
            raise error
        self._taken += 1
        if self._taken >= self._burst:
            self._taken = 0
            self._wanted.put(None)
        return batch

    def _work(self) -> None:
        try:
            while True:
                self._wanted.get()
                for _ in range(_BURST):
                    if self._is_closed:
                        return
                    batch = self._fetch()
                    if not self._burst:
                        self._burst = _BURST if _is_small(batch) else 1
                    self._ready.put((batch, None))
                    if batch is _END:
                        return
                    if self._burst == 1:
                        break
        except BaseException as error:  # noqa: BLE001  it is raised where the batch is taken
            self._ready.put((None, error))

    def _fetch(self) -> Any:
        batch = next(self._batches, _END)
        return batch if batch is _END else self._transfer(batch)


def _is_small(batch: Any) -> bool:
    return sum(getattr(x, "nbytes", 0) for x in jax.tree.leaves(batch)) < _SMALL
