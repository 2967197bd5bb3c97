"""What to train on, what to evaluate on, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from jgraph._errors import InputError
from jgraph._suggest import did_you_mean


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """What to train on and for how long.

    Args:
        data: any re-iterable of batches (dicts of arrays, or any pytree); iterated again until
            `max_steps` is reached. Where it has `epoch(n)`, that gives the n-th epoch's iterator.
        max_steps: number of optimizer steps, at least 1.
        log_every: steps per logged window, at least 1.
        accumulate: microbatches per step, at least 1: a batch is cut into so many parts, whose
            gradients add up to the batch's. BatchNorm sees each part by itself (under Pmap each
            replica cuts its own rows). Weights of Means are taken as constants.
        steps_per_call: steps that one call to the device runs, at least 1, for steps so short
            that calling them takes the time. It must divide `log_every` and the evaluations'
            `every_steps`.
        per_host: where several processes run, whether `data` is this process's own. The batch of
            a step is then what the processes have for it, their rows one after the other, and
            all numbers are those of one process that is given such batches. Processes may have
            different numbers of batches and of rows: one without a batch adds no rows, and an
            epoch ends with the longest data. A step whose rows differ, or aren't divided by the
            devices, sends all of its batch to every process: rare is cheap. Else every process
            gives the same batches, and takes the rows of its own devices.

    Raises:
        InputError: a number below 1, or `steps_per_call` doesn't divide `log_every`.

    Example:
        >>> TrainSpec([{"x": 1.0}], max_steps=100).log_every
        50
    """

    data: Iterable[Any]
    max_steps: int
    log_every: int = 50
    accumulate: int = 1
    steps_per_call: int = 1
    per_host: bool = False

    def __post_init__(self) -> None:
        for name in ("max_steps", "log_every", "accumulate", "steps_per_call"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.check_calls("log_every", self.log_every)

    def check_calls(self, name: str, steps: int | None) -> None:
        """Raise where something would be due in the middle of a call.

        Raises:
            InputError: `steps_per_call` doesn't divide `steps`.
        """
        if steps is not None and steps % self.steps_per_call:
            raise InputError(
                f"steps_per_call must divide {name}, so that nothing is due within a call; got "
                f"steps_per_call={self.steps_per_call} and {name}={steps}"
            )


@dataclasses.dataclass(frozen=True)
class EvalSpec:
    """What to evaluate on and how often.

    Args:
        data: any re-iterable of batches; one pass is one evaluation.
        every_steps: steps between evaluations, at least 1; None evaluates after the last step
            only. The last step is always followed by an evaluation.
        per_host: whether `data` is this process's own, as in `TrainSpec`; a process may have none.

    Raises:
        InputError: `every_steps` below 1.

    Example:
        >>> EvalSpec([{"x": 1.0}], every_steps=500).every_steps
        500
    """

    data: Iterable[Any]
    every_steps: int | None = None
    per_host: bool = False

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
        states: what the model held, by name, for `nnx.update(model, result.states["best"])`:
            `"last"` after the last step, without a moving average; `"best"`, where
            `train_and_evaluate` was told what is best.
    """

    history: list[dict[str, Any]]
    steps: int
    states: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

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


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number of an evaluation, and which way is good.

    Args:
        name: `"set/name"`, as `"val/accuracy"`.
        mode: `"min"` or `"max"`.

    Raises:
        InputError: another mode, or a name without a set.

    Example:
        >>> Metric("val/loss", "min").is_better(0.5, than=0.7)
        True
    """

    name: str
    mode: Literal["min", "max"]

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise InputError(f"mode must be 'min' or 'max', got {self.mode!r}")
        if "/" not in self.name:
            raise InputError(f"a metric must be named 'set/name', as 'val/loss', got {self.name!r}")

    def of(self, set_name: str, row: Mapping[str, Any]) -> float | None:
        """Return its value in an evaluation's row; None in that of another set.

        Raises:
            InputError: the set has no such number.
        """
        wanted, _, name = self.name.partition("/")
        if set_name != wanted:
            return None
        if name not in row:
            known = [f"{wanted}/{key}" for key in row if key not in ("step", "set")]
            raise InputError(
                f"metric must be one of {', '.join(known)}, got {self.name!r}"
                f"{did_you_mean(self.name, known)}"
            )
        return float(row[name])

    def is_better(self, value: float, *, than: float | None, by: float = 0.0) -> bool:
        """Return whether a value is better by more than `by`; anything but NaN beats None."""
        if than is None:
            return value == value
        return value < than - by if self.mode == "min" else value > than + by
