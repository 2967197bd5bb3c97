"""What `train_and_evaluate` does with its `checkpoint`: goes on, saves where due, saves the end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import TracebackType

import jax

from jgraph._errors import InputError
from jgraph.train._batches import Cycle, Position
from jgraph.train._callbacks import Callback
from jgraph.train._checkpoint import Checkpoint
from jgraph.train._checkpoint._folder import Manifest, step_folder
from jgraph.train._match import check_arrays, part_of
from jgraph.train._run import Run
from jgraph.train._specs import TrainSpec
from jgraph.train._step import Step
from jgraph.train._stop import StopRequests

_logger = logging.getLogger(__name__)
_BEST = "best"
_ALWAYS = ("health",)  # parts: the number of the step goes on whatever is restored


class Saver:
    """The checkpoints of one run; a context manager that waits for the last one.

    Args:
        checkpoint: where; None saves nothing.
        run: its history and state.
        step: its arrays.
        train: what it trains on.
        callbacks: what they remember is saved too.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        run: Run,
        step: Step,
        train: TrainSpec,
        callbacks: Sequence[Callback],
    ) -> None:
        self._checkpoint, self._run, self._step = checkpoint, run, step
        self._train, self._callbacks = train, callbacks
        self._found: Manifest | None = None
        self._data = Cycle(train.data, train.max_steps)
        self._stop = StopRequests()
        if checkpoint is not None:
            train.check_calls("every_steps of the checkpoint", checkpoint.every_steps)

    def __enter__(self) -> Saver:
        if self._checkpoint is not None:
            self._stop.__enter__()
        return self

    def _tell(self, step: int) -> None:
        steps, folder = self._train.max_steps, self._checkpoint and self._checkpoint.dir
        if step < steps:
            _logger.info("%s: the run goes on after step %d of %d", folder, step, steps)
        else:
            _logger.warning(
                "%s holds step %d, and max_steps is %d: nothing is left to train; raise it, or "
                "choose another folder for another run",
                *(folder, step, steps),
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._checkpoint is None:
            return
        try:
            # An error of one process must not wait for the others.
            self._checkpoint.end(together=kind is None)
        except InputError as failed:
            if error is None:
                raise
            error.add_note(f"jgraph: {failed}")
        finally:
            self._stop.__exit__()

    def resume(self) -> Cycle:
        """Restore the newest checkpoint, if there is one; return the batches from there on.

        Raises:
            CheckpointIntegrityError: there are some, and all are damaged.
            CheckpointMismatchError: it isn't this program's.
        """
        if self._checkpoint is None:
            return self._data
        self._found = found = self._checkpoint.find()
        if found is None:
            return self._data
        if "history" not in found.info:
            raise InputError(
                f"{self._checkpoint.dir} must have checkpoints of train_and_evaluate, and has "
                "those of another loop; choose another folder"
            )
        source = str(step_folder(self._checkpoint.dir, found.step))
        taken = set(self._checkpoint.taken(found))
        taken |= {name for name in found.arrays if part_of(name) in (*_ALWAYS, _BEST)}
        parts = {part_of(name) for name in taken}
        is_whole = len(taken) == len(found.arrays)
        saved = {n: found.arrays[n] for n in taken if part_of(n) not in (_BEST, "window")}
        wanted = self._step.arrays()
        check_arrays(
            saved,
            wanted if is_whole else {n: x for n, x in wanted.items() if part_of(n) in parts},
            source=source,
        )
        arrays = self._checkpoint.read(found, taken)
        best = {n: x for n, x in arrays.items() if part_of(n) == _BEST}
        arrays = {n: x for n, x in arrays.items() if n not in best}
        if "average" not in parts:
            prefix, model = "average.", "model."
            names = [name for name in wanted if part_of(name) == "average"]
            arrays |= {n: arrays[model + n.removeprefix(prefix)] for n in names}
        self._step.restore(arrays)
        self._checkpoint.go_on_from(found)
        self._warn_of_processes(found)
        self._run.resume(found.step, found.info["history"], found.info["best"], best)
        self._tell(found.step)
        self._data = Cycle(
            self._train.data, self._train.max_steps, Position(found.step, *found.info["position"])
        )
        return self._data

    def _warn_of_processes(self, found: Manifest) -> None:
        before, now = found.info["processes"], jax.process_count()
        if self._train.per_host and before != now:
            _logger.warning(
                "step %d was saved by %d processes, each with data of its own, and this run has "
                "%d: it goes on after batch %d of epoch %d of each, which is where it was if all "
                "batches of a step together are what they were",
                *(found.step, before, now, *reversed(found.info["position"])),
            )

    def tell_callbacks(self) -> None:
        """Give callbacks what they knew when the checkpoint was saved."""
        if self._found is None:
            return
        known = [(kind, state) for kind, state in self._found.info["callbacks"]]
        for callback in self._callbacks:
            kind = type(callback).__qualname__
            index = next((i for i, (other, _) in enumerate(known) if other == kind), None)
            state = None if index is None else known.pop(index)[1]
            self._run.ask(callback.on_resume, self._found.step, self._run.history, state)

    def after_call(self) -> None:
        """Save if that is due; save and end the run if it was asked to end.

        Raises:
            CheckpointWriteError: the save before has failed.
            KeyboardInterrupt: the run was asked to end by Ctrl-C.
            SystemExit: the run was asked to end by SIGTERM.
        """
        step = self._run.steps
        if step % self._train.steps_per_call:
            return
        stops = self._stop.came(step)
        if self._checkpoint is None:
            if stops:
                self._stop.end(f"step {step} was the last, and nothing saves it")
            return
        if stops:
            self._save(self._checkpoint)
            self._checkpoint.wait()
            self._stop.end(
                f"saved after step {step} in {self._checkpoint.dir}; start the same program again "
                "to go on"
            )
        if self._checkpoint.is_due(
            step, self._metrics(), ask_time=step % self._train.log_every == 0
        ):
            self._save(self._checkpoint)

    def finish(self) -> None:
        """Save the end of the run.

        Raises:
            CheckpointWriteError: it couldn't be written.
        """
        if self._checkpoint is not None and self._checkpoint.last != self._run.steps:
            self._save(self._checkpoint)

    def _save(self, checkpoint: Checkpoint) -> None:
        self._run.catch_up()
        arrays = self._step.arrays() | self._step.window_arrays() | self._run.best_arrays(_BEST)
        info = {
            "history": self._run.history,
            "best": self._run.best_value,
            "position": self._data.position(self._run.steps),
            "processes": jax.process_count(),
            "callbacks": [[type(c).__qualname__, c.state()] for c in self._callbacks],
        }
        checkpoint.write(self._run.steps, arrays, metrics=self._metrics(), info=info)

    def _metrics(self) -> dict[str, float]:
        """Return the numbers of the evaluations after this very step."""
        rows = [r for r in self._run.history if r["step"] == self._run.steps]
        return {
            f"{row['set']}/{name}": value
            for row in rows
            if row["set"] != "train"
            for name, value in row.items()
            if name not in ("step", "set")
        }
