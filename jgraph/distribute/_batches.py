"""Batches placed on a background thread, a few ahead of the program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any

from jgraph._eager import jit_is_off

_DEPTH = 2
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
    """Iterate on a background thread, a few batches ahead; a context manager that ends it.

    In debug mode it iterates in place, so that breakpoints in the pipeline are hit on
    the main thread, in order.

    Args:
        batches: what to iterate.
        transfer: applied to each batch on the thread.
    """

    def __init__(self, batches: Iterable[Any], transfer: Callable[[Any], Any]) -> None:
        self._batches = iter(batches)
        self._transfer = transfer
        self._is_threaded = not jit_is_off()
        self._is_closed = False
        # Two queues and a thread: an executor with a future per batch takes 60 us more.
        self._wanted: SimpleQueue[None] = SimpleQueue()
        self._ready: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        if self._is_threaded:
            for _ in range(_DEPTH):
                self._wanted.put(None)
            # A daemon: a pipeline that hangs must not keep the interpreter from its end.
            Thread(target=self._work, name="jgraph-prefetch", daemon=True).start()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        # No waiting: a pipeline that hangs must not keep an error or Ctrl-C from its caller.
        self._is_closed = True
        self._wanted.put(None)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._is_threaded:
            batch = self._fetch()
        else:
            batch, error = self._ready.get()
            if error is not None:
                raise error
            self._wanted.put(None)
        if batch is _END:
            raise StopIteration
        return batch

    def _work(self) -> None:
        while True:
            self._wanted.get()
            if self._is_closed:
                return
            try:
                found = self._fetch(), None
            except BaseException as error:  # noqa: BLE001  it is raised where the batch is taken
                found = None, error
            self._ready.put(found)

    def _fetch(self) -> Any:
        batch = next(self._batches, _END)
        return batch if batch is _END else self._transfer(batch)
