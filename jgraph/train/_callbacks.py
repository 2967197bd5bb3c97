"""What watches a training run: a progress bar, a CSV file, or your own."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from jgraph._errors import InputError
from jgraph.train._specs import Metric, TrainResult


class StopTraining(Exception):  # noqa: N818  it is no error
    """Raised by a callback's hooks but `on_start` and `on_end`: the run ends well after this step.

    The other callbacks hear of the step, and `on_end` is called.
    """


class Callback:
    """Base class of callbacks: override what you need.

    The order: `on_start` once, `on_resume` where the run goes on from a checkpoint; then for each
    step `on_step`, then `on_log` where a window's numbers have come in, then `on_eval` for each
    evaluation; `on_end` once if the run got to its end or a callback stopped it; `close` once
    whatever happened. Callbacks are called in the order they were passed in. All but `on_start`
    and `on_end` may raise `StopTraining`.
    Numbers are fetched one window late, so that nothing waits for the device: `on_log` names the
    step its row belongs to.
    """

    def on_start(self, max_steps: int) -> None:
        """Run before the first step."""

    def on_resume(self, step: int, history: Sequence[Mapping[str, Any]], state: Any) -> None:
        """Run after `on_start` where the run goes on from a checkpoint.

        Args:
            step: the step that was saved.
            history: the run's rows so far.
            state: what `state` returned then; None where there was no such callback.
        """

    def state(self) -> Any:
        """Return what a checkpoint shall keep of this callback for `on_resume`: JSON, or None."""
        return None

    def on_step(self, step: int) -> None:
        """Run when a step, counted from 1, has been handed to the device."""

    def on_log(self, step: int, row: dict[str, Any]) -> None:
        """Run when the numbers of the window that ended at `step` are there."""

    def on_eval(self, step: int, name: str, row: dict[str, Any]) -> None:
        """Run after the evaluation on the set `name`."""

    def on_end(self, result: TrainResult) -> None:
        """Run after the last step and the last evaluation."""

    def close(self) -> None:
        """Run last, after an error or Ctrl-C too."""


class EarlyStopping(Callback):
    """Stop the run when an evaluation's number gets no better.

    Args:
        metric: `"set/name"`, as `"val/loss"`.
        mode: `"min"` or `"max"`.
        patience: how many evaluations in a row may bring nothing better.
        min_delta: what counts as better must be better by more than this.

    Raises:
        InputError: another mode, patience below 1, or (from the first evaluation) no such number.

    Source:
        Prechelt 1998, "Early Stopping - But When?".
    """

    def __init__(
        self,
        metric: str,
        mode: Literal["min", "max"] = "min",
        *,
        patience: int = 3,
        min_delta: float = 0.0,
    ) -> None:
        if patience < 1:
            raise InputError(f"patience must be at least 1, got {patience}")
        self._metric = Metric(metric, mode)
        self._patience, self._min_delta = patience, min_delta
        self._best: float | None = None
        self._waited = 0

    def on_start(self, max_steps: int) -> None:
        """Forget an earlier run."""
        self._best, self._waited = None, 0

    def on_resume(self, step: int, history: Sequence[Mapping[str, Any]], state: Any) -> None:
        """Go on waiting; stop at once where the patience had come to its end."""
        if state is not None:
            self._best, self._waited = state
        if self._waited >= self._patience:
            raise StopTraining

    def state(self) -> Any:
        """Return the best number so far, and for how many evaluations it has been the best."""
        return [self._best, self._waited]

    def on_eval(self, step: int, name: str, row: dict[str, Any]) -> None:
        """Stop the run after `patience` evaluations without anything better."""
        value = self._metric.of(name, row)
        if value is None:
            return
        if self._metric.is_better(value, than=self._best, by=self._min_delta):
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited >= self._patience:
            raise StopTraining


class ProgressBar(Callback):
    """A bar with the time left and the latest numbers; plain lines where there is no terminal.

    Args:
        label: text in front of the bar.
        file: where it goes; None means stderr.
    """

    def __init__(self, label: str = "train", file: TextIO | io.TextIOBase | None = None) -> None:
        self._label = label
        self._file: Any = sys.stderr if file is None else file
        self._bar: Any = None
        self._max_steps = 0

    def on_start(self, max_steps: int) -> None:
        """Draw the empty bar."""
        self._max_steps = max_steps
        if self._file.isatty():
            from tqdm import tqdm  # costs 40 ms, and only a terminal needs it

            self._bar = tqdm(total=max_steps, desc=self._label, file=self._file, unit="step")

    def on_resume(self, step: int, history: Sequence[Mapping[str, Any]], state: Any) -> None:
        """Move the bar to where the run goes on."""
        self.on_step(step)

    def on_step(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def on_log(self, step: int, row: dict[str, Any]) -> None:
        """Show the window's numbers."""
        if self._bar is None:
            self._print(step, row)
        else:
            self._bar.set_postfix_str(_numbers(row))

    def on_eval(self, step: int, name: str, row: dict[str, Any]) -> None:
        """Print the evaluation on a line of its own."""
        self._print(step, row)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _print(self, step: int, row: dict[str, Any]) -> None:
        name = self._label if row["set"] == "train" else row["set"]
        line = f"step {step}/{self._max_steps}  {name}: {_numbers(row)}"
        if self._bar is None:
            print(line, file=self._file, flush=True)
        else:
            self._bar.write(line, file=self._file)


class CSVLog(Callback):
    """Write the history to a CSV file, complete after every row.

    Columns are `step`, `set`, then the numbers' names; a set without a number leaves it empty.

    Args:
        path: the file; an earlier one is replaced.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []

    def on_start(self, max_steps: int) -> None:
        """Start the file."""
        self._columns, self._rows = ["step", "set"], []
        self._rewrite()

    def on_resume(self, step: int, history: Sequence[Mapping[str, Any]], state: Any) -> None:
        """Write the rows of the run so far."""
        for row in history:
            self._append(dict(row))

    def on_log(self, step: int, row: dict[str, Any]) -> None:
        """Append the window's row."""
        self._append(row)

    def on_eval(self, step: int, name: str, row: dict[str, Any]) -> None:
        """Append the evaluation's row."""
        self._append(row)

    def _append(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite()
            return
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _rewrite(self) -> None:
        """Write all rows anew: a column more changes every line."""
        with self._path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)


def _numbers(row: dict[str, Any]) -> str:
    return " ".join(f"{k} {v:.4g}" for k, v in row.items() if k not in ("step", "set"))
