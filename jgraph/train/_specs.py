"""What to train on, what to evaluate on, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

from jgraph._errors import InputError


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """What to train on and for how long.

    Args:
        data: any re-iterable of batches (dicts of arrays, or any pytree); iterated again until
            `max_steps` is reached. Where it has `epoch(n)`, that gives the n-th epoch's iterator.
        max_steps: number of optimizer steps, at least 1.
        log_every: steps per logged window, at least 1.

    Raises:
        InputError: a number below 1.

    Example:
        >>> TrainSpec([{"x": 1.0}], max_steps=100).log_every
        50
    """

    data: Iterable[Any]
    max_steps: int
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("max_steps", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class EvalSpec:
    """What to evaluate on and how often.

    Args:
        data: any re-iterable of batches; one pass is one evaluation.
        every_steps: steps between evaluations, at least 1; None evaluates after the last step
            only. The last step is always followed by an evaluation.

    Raises:
        InputError: `every_steps` below 1.

    Example:
        >>> EvalSpec([{"x": 1.0}], every_steps=500).every_steps
        500
    """

    data: Iterable[Any]
    every_steps: int | None = None

    def __post_init__(self) -> None:
        if self.every_steps is not None and self.every_steps < 1:
            raise InputError(f"every_steps must be at least 1, got {self.every_steps}")

    def is_due(self, step: int) -> bool:
        """Return whether an evaluation follows this step, the last one aside."""
        return self.every_steps is not None and step % self.every_steps == 0


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a training run went through.

    Args:
        history: one dict per logged window and per evaluation, in order: `step` (the last step it
            covers, from 1), `set` (`"train"` or the evaluation's name), `loss`, metrics. A train
            row is the mean over the window's examples, each measured before its update.
        steps: optimizer steps taken.
    """

    history: list[dict[str, Any]]
    steps: int

    def rows(self, set_name: str) -> list[dict[str, Any]]:
        """Return the history of one set, `"train"` or an evaluation's name."""
        return [row for row in self.history if row["set"] == set_name]

    def best(self, metric: str, mode: Literal["min", "max"]) -> dict[str, Any]:
        """Return the row with the best value, the earliest of equals.

        Args:
            metric: `"set/name"`, as `"val/accuracy"`.
            mode: whether small or large is good.

        Raises:
            InputError: no row has that metric.

        Example:
            >>> rows = [{"step": s, "set": "val", "loss": v} for s, v in [(5, 2.0), (9, 1.0)]]
            >>> TrainResult(rows, 9).best("val/loss", "min")["step"]
            9
        """
        set_name, _, name = metric.partition("/")
        rows = [row for row in self.rows(set_name) if name in row]
        if not rows:
            keys = (f"{r['set']}/{k}" for r in self.history for k in r if k not in ("step", "set"))
            known = dict.fromkeys(keys)
            raise InputError(
                f"metric must be one of the history's, {', '.join(known)}, got {metric!r}"
            )
        sign = 1 if mode == "min" else -1
        return min(rows, key=lambda row: sign * row[name])
