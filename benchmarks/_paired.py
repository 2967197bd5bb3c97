"""Paired timing: two programs run in turn, and only their ratio is told.

What else a machine does changes from minute to minute; two runs a moment apart share it. CPU
time of the process leaves out what other processes take, but not the caches they empty, so a
spread is told with each ratio.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Ratio:
    """The time of one program over that of another, in pairs.

    Args:
        ratios: first / second, one a pair.
        seconds: the median times of the first and the second.
    """

    ratios: tuple[float, ...]
    seconds: tuple[float, float]

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Ratio:
        """Return the ratios of times in pairs."""
        ratios = tuple(a / b for a, b in zip(first, second, strict=True))
        return cls(ratios, (statistics.median(first), statistics.median(second)))

    @property
    def median(self) -> float:
        """The middle pair's ratio."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of the ratios, between which half of the pairs lie."""
        if len(self.ratios) == 1:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high

    def __str__(self) -> str:
        low, high = self.spread
        first, second = (1e3 * s for s in self.seconds)
        return (
            f"{self.median:.2f} (half of {len(self.ratios)} pairs in {low:.2f}-{high:.2f}; "
            f"{first:.1f} ms to {second:.1f} ms)"
        )


def paired(
    first: Callable[[], Any],
    second: Callable[[], Any],
    rounds: int,
    *,
    clock: Callable[[], float] = time.process_time,
    timed: bool = False,
) -> Ratio:
    """Time two calls in turn, after one call of each that is not counted.

    Args:
        first: the call under test; its result is waited for.
        second: what it is compared with.
        rounds: how many pairs, at least 1. Odd pairs run the second call first.
        clock: seconds; the CPU time of this process with all its threads. Use
            `time.perf_counter` where a program waits or where threads spin.
        timed: whether the second call returns its own seconds, as a peer in its own process does.

    Returns:
        The ratios.
    """

    def once(call: Callable[[], Any]) -> float:
        start = clock()
        jax.block_until_ready(call())
        return clock() - start

    def other() -> float:
        return float(second()) if timed else once(second)

    once(first)
    other()
    pairs = []
    for i in range(rounds):
        if i % 2:
            late = other()
            pairs.append((once(first), late))
        else:
            early = once(first)
            pairs.append((early, other()))
    a, b = zip(*pairs, strict=True)
    return Ratio.of(a, b)
