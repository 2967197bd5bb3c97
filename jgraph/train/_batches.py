"""Batches for the loop: data cycled over its epochs, and several stacked for one call."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np

from jgraph._arrays import host_copy
from jgraph._errors import InputError
from jgraph.distribute import Strategy

_END = object()
_SMALL = 1 << 18  # bytes of a batch; where device_put, which need not copy again, becomes faster


class Work(NamedTuple):
    """What one call of the step gets: a batch, or several stacked along a new first axis."""

    steps: int
    batch: Any


class Part(NamedTuple):
    """One process's rows of a batch; every other brings as many of the same kind."""

    batch: Any


class Position(NamedTuple):
    """Where in the data a run is: steps taken, the epoch, and batches taken of it."""

    step: int = 0
    epoch: int = 0
    batch: int = 0


class Cycle:
    """`max_steps` batches, from one epoch of the data after the other.

    Args:
        data: re-iterable of batches. Where it has a method `epoch(n)`, that gives the iterator
            of the n-th epoch, so that a shuffle can follow n; where that takes `start`, it leaves
            out so many batches at no cost.
        max_steps: number of the last batch.
        start: what was taken before.

    Raises:
        InputError: (while iterating) an epoch has no batch, or fewer than were taken before.
    """

    def __init__(self, data: Iterable[Any], max_steps: int, start: Position | None = None) -> None:
        self._data, self._max_steps = data, max_steps
        self._start = start or Position()
        # Of each epoch begun so far: the step before its first batch.
        self._begun = [(self._start.step - self._start.batch, self._start.epoch)]

    def position(self, step: int) -> tuple[int, int]:
        """Return the epoch of the batch that a step took, and how many it has taken of it."""
        begin, epoch = next(x for x in reversed(self._begun) if x[0] < step or x[0] == 0)
        return epoch, step - begin

    def __iter__(self) -> Iterator[Any]:
        done, epoch, skipped = self._start
        while done < self._max_steps:
            before = done
            for batch in epoch_of(self._data, epoch, skipped):
                yield batch
                done += 1
                if done == self._max_steps:
                    return
            if done == before and not skipped:
                raise InputError(
                    "train data must give batches each time it is iterated, its epoch "
                    f"{epoch} gave none, after {done} of {self._max_steps} steps; pass a list that "
                    "isn't empty, or an object whose __iter__ starts anew, not an iterator that "
                    "runs dry"
                )
            epoch, skipped = epoch + 1, 0
            self._begun.append((done, epoch))


def epoch_of(data: Any, number: int, start: int, *, short: bool = False) -> Iterator[Any]:
    """Return the batches of an epoch but for the first ones.

    Args:
        data: as `Cycle` takes it.
        number: the epoch's.
        start: how many to leave out.
        short: whether there may be fewer.

    Raises:
        InputError: there are fewer.
    """
    if hasattr(data, "epoch"):
        if start and "start" in inspect.signature(data.epoch).parameters:
            return iter(data.epoch(number, start=start))
        batches = iter(data.epoch(number))
    else:
        batches = iter(data)
    for i in range(start):
        if next(batches, _END) is _END:
            if short:
                break
            raise InputError(
                f"train data must be what it was when the checkpoint was saved: of epoch {number} "
                f"{start} batches were taken, and now it has {i}"
            )
    return batches


def stacked(batches: Iterator[Any], count: int) -> Iterator[Work]:
    """Stack each `count` batches of the same shapes; the others come one by one."""
    while group := list(islice(batches, count)):
        if count > 1 and len(group) == count and _are_alike(group):
            yield Work(count, jax.tree.map(lambda *xs: np.stack(xs), *group))
        else:
            yield from (Work(1, batch) for batch in group)


def _are_alike(group: list[Any]) -> bool:
    kinds = {
        (jax.tree.structure(batch), tuple(map(_kind, jax.tree.leaves(batch)))) for batch in group
    }
    return len(kinds) == 1


def _kind(x: Any) -> tuple[Any, ...]:
    array = x if hasattr(x, "dtype") else np.asarray(x)
    return array.shape, array.dtype


def put(batch: Any, strategy: Strategy | None) -> Any:
    """Copy a batch to where the strategy wants it, or to the default device."""
    if strategy is not None:
        if isinstance(batch, Part):
            return strategy.put_part(batch.batch)
        return strategy.put_batch(batch)
    size = sum(getattr(x, "nbytes", 0) for x in jax.tree.leaves(batch))
    place = _place if size < _SMALL else jax.device_put
    return place(jax.tree.map(host_copy, batch))


@jax.jit
def _place(batch: Any) -> Any:
    """Copy to the default device: `device_put` takes five times as long for small arrays."""
    return batch


def put_work(work: Work, strategy: Strategy | None) -> Work:
    """Copy the batches of a call to the device."""
    if work.steps > 1 and strategy is not None:
        if isinstance(work.batch, Part):
            return Work(work.steps, strategy.put_part(work.batch.batch, axis=1))
        return Work(work.steps, strategy.put_batches(work.batch))
    return Work(work.steps, put(work.batch, strategy))
