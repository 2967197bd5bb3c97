"""Batches for the loop: data cycled over its epochs, and several stacked for one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np

from jgraph._errors import InputError
from jgraph.distribute import Strategy, host_copy

_SMALL = 1 << 18  # bytes of a batch; where device_put, which need not copy again, becomes faster


class Work(NamedTuple):
    """What one call of the step gets: a batch, or several stacked along a new first axis."""

    steps: int
    batch: Any


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
        return Work(work.steps, strategy.put_batches(work.batch))
    return Work(work.steps, put(work.batch, strategy))
