"""Data of which every process has its own: batches joined step by step, whoever runs out first."""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from jgraph._arrays import host_copy
from jgraph._errors import InputError
from jgraph.distribute import Prefetch, Strategy, gathered
from jgraph.train._batches import Part, epoch_of
from jgraph.train._specs import EvalSpec, TrainSpec

_Spec = TypeVar("_Spec", TrainSpec, EvalSpec)
_AHEAD = 8  # batches; processes agree on as many steps at once as all of them have ready


def joined(spec: _Spec, strategy: Strategy | None) -> _Spec:
    """Return a spec whose data is joined with the other processes', where it says `per_host`.

    Raises:
        InputError: there are several processes, and the strategy leaves some out.
    """
    if not spec.per_host or jax.process_count() == 1:
        return spec
    places = [] if strategy is None else strategy.mesh.devices.flat
    if strategy is None or len({x.process_index for x in places}) < jax.process_count():
        raise InputError(
            f"per_host=True needs a strategy with devices of all {jax.process_count()} processes, "
            f"such as jg.distribute.DataParallel(), got {strategy}"
        )
    return dataclasses.replace(spec, data=PerHost(spec.data, strategy))


class PerHost:
    """One process's data, iterated together with that of the others, on the main thread.

    The batch of a step is what all processes have for it, one after the other; a process without a
    batch adds no rows. An epoch is as long as the longest of any process's.

    Args:
        data: this process's batches; see `Cycle`.
        strategy: where batches are to be placed.

    Raises:
        InputError: (in all processes, while iterating) batches of one step differ in more than
            their rows, or (in one) a batch has no rows.
    """

    def __init__(self, data: Iterable[Any], strategy: Strategy) -> None:
        self._data, self._strategy = data, strategy

    def __iter__(self) -> Iterator[Any]:
        return self._joined(iter(self._data), 0)

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch but for the first ones, each a `Part` or the whole."""
        return self._joined(epoch_of(self._data, number, start, short=True), start)

    def _joined(self, batches: Iterator[Any], number: int) -> Iterator[Any]:
        waiting: deque[_Batch] = deque()
        is_all = False
        with Prefetch(batches, _described, ahead=_AHEAD) as mine:
            while True:
                is_all = is_all or _fill(waiting, mine)
                told = gathered(_Told([(b.rows, b.kind) for b in waiting], is_all))
                going_on = [len(one.batches) for one in told if not one.is_all]
                steps = min(going_on) if going_on else max(len(one.batches) for one in told)
                for i in range(steps):
                    found = [one.batches[i] if i < len(one.batches) else None for one in told]
                    _check_kinds(found, number)
                    number += 1
                    yield self._one(waiting.popleft().batch if waiting else None, found)
                if not going_on:
                    return

    def _one(self, batch: Any, found: Sequence[tuple[int, str] | None]) -> Any:
        """Return a step's batch: this process's part where the parts are split as they came."""
        rows = {0 if one is None else one[0] for one in found}
        if len(rows) == 1 and self._strategy.is_split_by_process(*rows):
            return Part(batch)
        batches = [one for one in gathered(batch) if one is not None]
        return jax.tree.map(lambda *xs: np.concatenate(xs) if xs[0].ndim else xs[0], *batches)


def is_joined(data: Any) -> bool:
    """Return whether iterating takes the other processes, so that only the main thread may."""
    return isinstance(data, PerHost)


class _Batch(NamedTuple):
    """A batch of numpy arrays, its rows, and the names, types and shapes of its arrays."""

    batch: Any
    rows: int
    kind: str


class _Told(NamedTuple):
    """What a process tells the others: rows and kinds of its next batches, and if they are all."""

    batches: list[tuple[int, str]]
    is_all: bool


def _fill(waiting: deque[_Batch], mine: Prefetch) -> bool:
    """Take what is ready, at least one, where nothing waits; return whether the data ended."""
    if waiting:
        return False
    for _ in range(max(1, mine.ready)):
        try:
            waiting.append(next(mine))
        except StopIteration:
            return True
    return False


def _described(batch: Any) -> _Batch:
    """Copy a batch to the host's memory, and say what it is."""
    batch = jax.tree.map(lambda x: host_copy(np.asarray(x)), batch)
    leaves = jax.tree.leaves_with_path(batch)
    rows = {x.shape[0] for _, x in leaves if x.ndim}
    if len(rows) != 1:
        raise InputError(
            "with per_host=True every array of a batch must have one row per example, got first "
            f"axes of {sorted(rows) or 'none'}: {', '.join(_shown(*leaf) for leaf in leaves)}"
        )
    kind = ", ".join(_shown(*leaf, rows="rows") for leaf in leaves)
    return _Batch(batch, rows.pop(), sys.intern(kind))  # pickle writes the same text once


def _shown(path: Any, x: np.ndarray, rows: Any = None) -> str:
    """Return an array's name, type and shape; a number's value too, which all must agree on."""
    name = f"batch{jax.tree_util.keystr(path)}"
    if not x.ndim:
        return f"{name} {x.dtype} {x.item()!r}"
    sizes = [x.shape[0] if rows is None else rows, *x.shape[1:]]
    return f"{name} {x.dtype}[{','.join(map(str, sizes))}]"


def _check_kinds(found: Sequence[tuple[int, str] | None], number: int) -> None:
    """Raise where the processes' batches of one step can't be joined."""
    kinds = {one[1]: process for process, one in reversed([*enumerate(found)]) if one is not None}
    if len(kinds) > 1:
        lines = "\n  ".join(f"process {process}: {kind}" for kind, process in kinds.items())
        raise InputError(
            "with per_host=True the batches of one step must have the same arrays in all "
            f"processes, but for the number of rows; batch {number} of the pass has\n  {lines}"
        )
