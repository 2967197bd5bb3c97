"""Batches for the loop: data cycled over its epochs, transferred on a background thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from jgraph._eager import jit_is_off
from jgraph._errors import InputError

_DEPTH = 2
_END = object()


def cycle(data: Iterable[Any], max_steps: int) -> Iterator[Any]:
    """Yield `max_steps` batches, from one epoch of the data after the other.

    Args:
        data: re-iterable of batches. Where it has a method `epoch(n)`, that gives the iterator
            of the n-th epoch, so that a shuffle can follow n.
        max_steps: number of batches to yield.

    Raises:
        InputError: an epoch has no batch.
    """
    done, epoch = 0, 0
    while done < max_steps:
        before = done
        for batch in _epoch(data, epoch):
            yield batch
            done += 1
            if done == max_steps:
                return
        if done == before:
            raise InputError(
                f"train data must give batches each time it is iterated, its epoch {epoch} gave "
                f"none, after {done} of {max_steps} steps; pass a list or an object whose __iter__ "
                "starts anew, not an iterator that runs dry"
            )
        epoch += 1


def _epoch(data: Any, number: int) -> Iterator[Any]:
    return iter(data.epoch(number) if hasattr(data, "epoch") else data)


def put(batch: Any) -> Any:
    """Copy a batch to the device.

    The host copies first: device_put may alias numpy's memory on CPU, even with may_alias=False,
    and a pipeline that fills its buffers anew would change a batch that is still in use.
    """
    owned = jax.tree.map(lambda x: x.copy() if isinstance(x, np.ndarray) else x, batch)
    return jax.device_put(owned)


class Prefetch:
    """Iterate on a background thread, a few batches ahead; a context manager that ends it.

    Under `jax.disable_jit` it iterates in place, so that breakpoints in the pipeline are hit on
    the main thread, in order.

    Args:
        batches: what to iterate.
        transfer: applied to each batch on the thread.
    """

    def __init__(self, batches: Iterable[Any], transfer: Callable[[Any], Any] = put) -> None:
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
