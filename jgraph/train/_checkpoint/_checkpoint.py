"""`jg.Checkpoint`: when to save, what to keep, what to restore."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jgraph._errors import CheckpointError, CheckpointIntegrityError, InputError
from jgraph.distribute import agreed, wait_for_all
from jgraph.train._checkpoint import _folder
from jgraph.train._checkpoint._arrays import arrays_of, check_shared, set_arrays
from jgraph.train._checkpoint._folder import Manifest, step_folder
from jgraph.train._checkpoint._orbax import Writer, read_arrays
from jgraph.train._match import array_type, check_arrays, check_parts, part_of
from jgraph.train._specs import Metric

_EVERY_SECS = 300.0
_NONE, _DAMAGED = -1, -2
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Args:
        step: its number.
        state: what was to be restored, by name: NNX objects hold their values now, pytrees are
            new ones.
        arrays: every array that was read, by path, on the host; random keys as plain numbers.
        info: what was saved as `info`.
        metrics: what was saved as `metrics`.
    """

    step: int
    state: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Checkpoint:
    """A folder of checkpoints, from which a run that was stopped goes on as if it hadn't been.

    Arrays are written by Orbax on a background thread. A manifest with the SHA-256 of every file
    is written last: what was not written to its end doesn't count, and what has changed since is
    not restored. Then the step before is used, and a warning says why.

    `train_and_evaluate(…, checkpoint=Checkpoint(dir))` saves all that going on needs (parameters,
    optimizer, running statistics, random state, moving average, the position in the data, the
    history, the best state, what callbacks such as `EarlyStopping` wait for), saves after the last
    step and before Ctrl-C or SIGTERM ends it, and goes on by itself from the newest checkpoint in
    the folder. In a loop of your own call `restore` and `save`.

    With several processes all must see the folder, and all must call the same methods.

    Args:
        dir: the folder, made if need be; one run's.
        every_secs: seconds between saves; 300 where `every_steps` is None too. With several
            processes, looked at where a window of the log closes.
        every_steps: steps between saves.
        keep: how many of the newest checkpoints to keep, at least 1.
        best: `("val/accuracy", "max")`: an evaluation better than all before is saved too, and its
            checkpoint is kept beside the newest. In `train_and_evaluate` it also stands for its
            argument `best`.
        restore: "all", or the part or parts to take along where the others have changed, such as
            "model" with another optimizer; the step, the position in the data and the history go
            on. It counts once: what is saved after that is restored whole.

    Raises:
        InputError: a number is out of range.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as dir, Checkpoint(dir, every_steps=10) as ck:
        ...     model.bias[...] = jnp.array([7.0])
        ...     saved = [step for step in range(1, 31) if ck.save(step, model=model)]
        ...     model.bias[...] = jnp.array([0.0])
        ...     print(saved, ck.restore(model=model).step, model.bias[0])
        [10, 20, 30] 30 7.0
    """

    def __init__(
        self,
        dir: str | os.PathLike[str],
        every_secs: float | int | None = None,
        every_steps: int | None = None,
        keep: int = 3,
        best: tuple[str, Literal["min", "max"]] | None = None,
        restore: str | Sequence[str] = "all",
    ) -> None:
        if every_secs is None and every_steps is None:
            every_secs = _EVERY_SECS
        if every_secs is not None and not (math.isfinite(every_secs) and every_secs > 0):
            raise InputError(f"every_secs must be a positive number of seconds, got {every_secs}")
        for name, value in (("every_steps", every_steps), ("keep", keep)):
            if value is not None and (isinstance(value, bool) or value < 1):
                raise InputError(f"{name} must be at least 1, got {value}")
        self.dir = Path(dir).expanduser()
        self.every_secs, self.every_steps, self.keep = every_secs, every_steps, keep
        self.best = best and Metric(*best)
        self.parts = _parts(restore)
        self._began_with: Sequence[str] | None = None
        self._best_value: float | None = None
        self._saved_at = time.monotonic()
        self._last: int | None = None
        self._writer = Writer()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.dir)!r})"

    # For loops of one's own.

    def is_due(
        self, step: int, metrics: Mapping[str, float] | None = None, *, ask_time: bool = True
    ) -> bool:
        """Return whether a save is due after a step, as `save` finds out by itself.

        Args:
            step: how many steps have been taken.
            metrics: numbers of an evaluation at this step.
            ask_time: with several processes, whether they shall agree on the time, which takes
                some of it.
        """
        if self.every_steps is not None and step % self.every_steps == 0:
            return True
        if self._is_best(metrics or {}):
            return True
        if self.every_secs is None or not (ask_time or jax.process_count() == 1):
            return False
        return agreed(time.monotonic() - self._saved_at >= self.every_secs) == 1

    def save(
        self,
        step: int,
        /,
        *,
        metrics: Mapping[str, float] | None = None,
        info: Mapping[str, Any] | None = None,
        force: bool = False,
        **state: Any,
    ) -> bool:
        """Save where that is due.

        It returns once the arrays have been copied, and they are written in the background; it
        first waits for the save before.

        Args:
            step: how many steps have been taken, at least 0.
            metrics: numbers of an evaluation at this step, for `best`.
            info: anything that is JSON, such as the position in the data.
            force: save even if it isn't due.
            **state: by name, NNX objects (models, optimizers, Rngs), steps that `make_step` made,
                and pytrees of arrays.

        Returns:
            Whether it was due.

        Raises:
            CheckpointWriteError: this save couldn't be started, or the one before has failed.
            InputError: nothing is passed, or something that is no array.
        """
        if not state:
            raise InputError("save takes what is to be saved by name, as save(10, model=model)")
        if not (force or self.is_due(step, metrics)):
            return False
        self.write(step, arrays_of(state), metrics=metrics or {}, info=info or {})
        return True

    def restore(self, step: int | None = None, /, **state: Any) -> Restored | None:
        """Restore the newest checkpoint that is as it was written.

        Args:
            step: another step than the newest.
            **state: by name as in `save`; NNX objects are changed in place. Without any, all arrays
                are read: nothing of the program that wrote them is needed.

        Returns:
            What it held; None where the folder has no checkpoint.

        Raises:
            CheckpointIntegrityError: none of the checkpoints, or not the given one, is as it was
                written.
            CheckpointMismatchError: it doesn't hold exactly the arrays of `state`; every
                difference is named.
            InputError: there is no such step, or no such part.
        """
        found = self.find(step)
        if found is None:
            return None
        if not state:
            arrays = self.read(found, found.arrays)
            return Restored(found.step, {}, arrays, found.info, found.metrics)
        names = self.taken(found)
        parts = {part_of(name) for name in names}
        whole = len(names) == len(found.arrays)
        wanted = {name: value for name, value in state.items() if whole or name in parts}
        check_arrays(
            {name: found.arrays[name] for name in names},
            arrays_of(wanted),
            source=str(step_folder(self.dir, found.step)),
        )
        arrays = self.read(found, names)
        new = {**state, **set_arrays(wanted, arrays)}
        self.go_on_from(found)
        return Restored(found.step, new, arrays, found.info, found.metrics)

    def steps(self) -> list[int]:
        """Return the steps that were saved to their end, in order."""
        return [s for s in _folder.steps_in(self.dir) if _folder.is_whole(self.dir, s)]

    def wait(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            CheckpointWriteError: it couldn't be written.
        """
        self._writer.wait()
        wait_for_all("jgraph checkpoint")

    def close(self) -> None:
        """Wait until what was saved is on disk, and end the background threads.

        Raises:
            CheckpointWriteError: it couldn't be written.
        """
        self.end(together=True)

    # What train_and_evaluate needs besides.

    def end(self, *, together: bool) -> None:
        """Do as `close`; other processes are waited for if they come here, too.

        Raises:
            CheckpointWriteError: it couldn't be written.
        """
        self._writer.close()
        if together:
            wait_for_all("jgraph checkpoint")

    def find(self, step: int | None = None) -> Manifest | None:
        """Return the newest checkpoint whose files are as they were written, all checked.

        Raises:
            CheckpointIntegrityError: there are checkpoints, and all are damaged.
            InputError: the given step isn't there.
        """
        self._writer.wait()
        if step is not None:
            if step not in self.steps():
                shown = ", ".join(map(str, self.steps())) or "nothing"
                raise InputError(f"step must be one of {self.dir}, which has {shown}; got {step}")
            return _folder.verified(step_folder(self.dir, step))
        error: CheckpointIntegrityError | None = None
        chosen = _NONE
        if jax.process_index() == 0:
            try:
                chosen = self._newest_good()
            except CheckpointIntegrityError as damaged:
                error, chosen = damaged, _DAMAGED
        chosen = agreed(chosen)
        if chosen == _DAMAGED:
            raise error or CheckpointIntegrityError(f"{self.dir}: the first process says why")
        return None if chosen == _NONE else _folder.read_manifest(step_folder(self.dir, chosen))

    def taken(self, found: Manifest) -> list[str]:
        """Return the paths of the arrays that `restore` says to take from a checkpoint.

        Raises:
            InputError: there is no such part.
        """
        if self.parts is None or found.began_with == self.parts:
            return list(found.arrays)
        check_parts(self.parts, _known_parts(found), str(self.dir))
        return [name for name in found.arrays if part_of(name) in self.parts]

    def read(self, found: Manifest, names: Collection[str]) -> dict[str, np.ndarray]:
        """Return arrays of a checkpoint by path."""
        folder = step_folder(self.dir, found.step) / _folder.ARRAYS
        try:
            arrays = read_arrays(folder, found.arrays)
        except Exception as error:
            raise CheckpointError(
                f"{folder} holds what was written, but Orbax can't read it: {error}"
            ) from error
        return {name: arrays[name] for name in names}

    def go_on_from(self, found: Manifest) -> None:
        """Take over what the saves before have led to."""
        whole = self.parts is None or found.began_with == self.parts
        self._began_with = found.began_with if whole else self.parts
        self._last, self._saved_at = found.step, time.monotonic()
        if self.best is not None:
            best = _folder.best_step(self.dir, self.steps(), self.best.name, self.best.mode)
            if best is not None:
                folder = step_folder(self.dir, best)
                self._best_value = _folder.read_manifest(folder).metrics[self.best.name]

    def write(
        self,
        step: int,
        arrays: Mapping[str, jax.Array],
        *,
        metrics: Mapping[str, float],
        info: Mapping[str, Any],
    ) -> None:
        """Save arrays by path, due or not; see `save`."""
        if step < 0:
            raise InputError(f"step must be at least 0, got {step}")
        check_shared(arrays)
        try:
            copied = json.loads(json.dumps(dict(info)))  # what is written must not change meanwhile
        except (TypeError, ValueError) as error:
            raise InputError(f"info must be JSON: {error}") from error
        self._writer.wait()
        self._saved_at = time.monotonic()
        if self._is_best(metrics) and self.best is not None:
            self._best_value = metrics[self.best.name]
        types = {name: array_type(array) for name, array in arrays.items()}
        manifest = Manifest(step, types, dict(metrics), copied, self._began_with)
        folder = step_folder(self.dir, step)
        best = self.best and (self.best.name, self.best.mode)

        def finish() -> None:
            if jax.process_index() == 0:
                _folder.write_manifest(folder, manifest)
                _folder.prune(self.dir, self.keep, best)

        if jax.process_index() == 0:
            _folder.make(self.dir, step)
        self._writer.start(folder / _folder.ARRAYS, arrays, finish)
        self._last = step

    @property
    def last(self) -> int | None:
        """The step that was saved or restored last."""
        return self._last

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        value = None if self.best is None else metrics.get(self.best.name)
        if self.best is None or value is None:
            return False
        return self.best.is_better(value, than=self._best_value)

    def _newest_good(self) -> int:
        faults = []
        for step in reversed(_folder.steps_in(self.dir)):
            try:
                _folder.verified(step_folder(self.dir, step))
            except CheckpointIntegrityError as error:
                faults.append((step, str(error)))
                continue
            for _, fault in faults:
                _logger.warning("%s; the run goes on from step %d", fault, step)
            return step
        damaged = [fault for step, fault in faults if _folder.is_whole(self.dir, step)]
        if damaged:
            lines = "\n  ".join(damaged)
            raise CheckpointIntegrityError(
                f"a checkpoint in {self.dir} must be as it was written, and none is; restore the "
                f"folder from a copy, or start anew in another folder:\n  {lines}"
            )
        return _NONE


def _parts(restore: str | Sequence[str]) -> list[str] | None:
    """Return the parts to restore, None for all."""
    if restore == "all":
        return None
    return [restore] if isinstance(restore, str) else list(restore)


def _known_parts(found: Manifest) -> set[str]:
    return {part_of(name) for name in found.arrays}
