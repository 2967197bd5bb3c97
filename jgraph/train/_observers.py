"""Callbacks for other programs to show: TensorBoard's event files and profiler traces."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import jax

from jgraph._errors import InputError
from jgraph.train._callbacks import Callback

# How long rows may wait in memory; TensorBoard looks for new ones twice a minute.
_FLUSH_SECONDS = 5
_number = itertools.count()


class TensorBoard(Callback):
    """Write the history's numbers as scalars for TensorBoard.

    Tags are `set/name`, as "train/loss" and "val/accuracy", at the row's step. Rows are written
    in the order of `on_log` and `on_eval`, from a background thread: the file has them some
    seconds later, and all of them after `close`, so after an error or Ctrl-C too. To look at
    them: `pip install tensorboard`, then `tensorboard --logdir DIR`.

    Args:
        dir: the run's folder, made if need be. A run adds a file to it, and TensorBoard draws all
            files of a folder as one curve: give each run a folder of its own below a common one.

    Raises:
        InputError: tensorboardX isn't installed.
    """

    def __init__(self, dir: str | os.PathLike[str]) -> None:
        self._dir = Path(dir)
        self._open = _summary_writer()
        self._writer: Any = None

    def on_start(self, max_steps: int) -> None:
        """Start a file."""
        # Names end in the second they were made in; without more, a second run in it would
        # overwrite the first.
        suffix = f".{os.getpid()}.{next(_number)}"
        self._writer = self._open(str(self._dir), flush_secs=_FLUSH_SECONDS, filename_suffix=suffix)

    def on_log(self, step: int, row: dict[str, Any]) -> None:
        """Write the window's numbers."""
        self._write(step, row)

    def on_eval(self, step: int, name: str, row: dict[str, Any]) -> None:
        """Write the evaluation's numbers."""
        self._write(step, row)

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, step: int, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name not in ("step", "set"):
                self._writer.add_scalar(f"{row['set']}/{name}", value, step)


class Profiler(Callback):
    """Trace what the host and the devices do from one step to another.

    Tracing starts when the step before `first` has ended (in its `on_step`, or in `on_start`) and
    stops when `last` has: the loop waits there for the devices, so that the trace holds these
    steps whole and no others. A window of the log or an evaluation that is due on the way is in
    it too. A run that ends or fails before `last` leaves a trace of the steps up to there
    (`close`). The first steps compile, and the trace would show little else.

    The trace is a `*.xplane.pb` in a folder below `DIR/plugins/profile`. To look at it:
    `pip install xprof`, then `xprof --logdir DIR`, and "Trace Viewer"; or drop the
    `*.trace.json.gz` beside it on ui.perfetto.dev. Operations bear the paths of their modules.

    Args:
        dir: the folder, made if need be.
        first: the first step of the trace, counted from 1.
        last: the last one. Where `steps_per_call` is more than 1, `first - 1` and `last` should be
            multiples of it: `on_step` runs after the call that held the step.

    Raises:
        InputError: `first` is below 1 or above `last`, or (when the run starts) beyond its end.
        RuntimeError: (from JAX, in the run) another trace is going on.

    Example:
        >>> Profiler("trace", first=20, last=10)
        Traceback (most recent call last):
        jgraph._errors.InputError: first and last must be steps from 1, ... got first=20, last=10
    """

    def __init__(self, dir: str | os.PathLike[str], first: int = 10, last: int = 20) -> None:
        if not 1 <= first <= last:
            raise InputError(
                f"first and last must be steps from 1, the first one first; got {first=}, {last=}"
            )
        self._dir, self._first, self._last = Path(dir), first, last
        self._tracing = False

    def on_start(self, max_steps: int) -> None:
        """Start the trace where it is to hold the first step."""
        if self._first > max_steps:
            raise InputError(
                f"first must be one of the run's {max_steps} steps, or nothing is traced; got "
                f"first={self._first}"
            )
        self._start_after(0)

    def on_step(self, step: int) -> None:
        """Start or stop the trace where it is due."""
        self._start_after(step)
        if self._tracing and step == self._last:
            _wait_for_devices()
            self.close()

    def close(self) -> None:
        """Stop a trace that the run's end, or an error, cut short."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()

    def _start_after(self, step: int) -> None:
        if step == self._first - 1:
            _wait_for_devices()
            jax.profiler.start_trace(self._dir)
            self._tracing = True


def _wait_for_devices() -> None:
    # Steps run later than they are handed over, and a callback sees none of their results.
    jax.block_until_ready(jax.live_arrays())


def _summary_writer() -> Any:
    """Return tensorboardX's SummaryWriter; its import takes 0.3 s, and few runs need it."""
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        raise InputError(
            f"TensorBoard's files are written with tensorboardX, but {error.name} is not "
            "installed; run pip install 'jgraph[tensorboard]', or log with CSVLog"
        ) from error
    return SummaryWriter
