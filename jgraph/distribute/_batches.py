"""Batches placed on a background thread, a few ahead of the program."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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

    Under `jax.disable_jit` it iterates in place, so that breakpoints in the pipeline are hit on
    the main thread, in order.

    Args:
        batches: what to iterate.
        transfer: applied to each batch on the thread.
    """

    def __init__(self, batches: Iterable[Any], transfer: Callable[[Any], Any]) -> None:
        self._batches = iter(batches)
        self._transfer = transfer
        self._pending: deque[Future[Any]] = deque()
        self._executor: ThreadPoolExecutor | None = None
        if not jit_is_off():
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="jgraph-prefetch")
            self._pending.extend(self._executor.submit(self._fetch) for _ in range(_DEPTH))

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            # No waiting: a pipeline that hangs must not keep an error or Ctrl-C from its caller.
            self._executor.shutdown(wait=False, cancel_futures=True)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._executor is None:
            batch = self._fetch()
        else:
            batch = self._pending.popleft().result()
            self._pending.append(self._executor.submit(self._fetch))
        if batch is _END:
            raise StopIteration
        return batch

    def _fetch(self) -> Any:
        batch = next(self._batches, _END)
        return batch if batch is _END else self._transfer(batch)
