"""The loop: keeps the device busy, fetches numbers late, and always hands back a good state."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jgraph._errors import InputError
from jgraph.debug import describe_bad
from jgraph.distribute import Strategy, is_local, on_each_host
from jgraph.train._batches import Work
from jgraph.train._callbacks import Callback, StopTraining
from jgraph.train._carry import Health
from jgraph.train._evaluate import evaluate_leaves
from jgraph.train._objective import LossFn, Measured, measure_loss
from jgraph.train._specs import EvalSpec, Metric, TrainResult, TrainSpec
from jgraph.train._state import Leaves
from jgraph.train._step import Step

# Calls handed to the device before the oldest must have ended: enough to keep it busy, few enough
# that the batches they hold fit.
_MAX_IN_FLIGHT = 4


_REMEDY = "Lower the learning rate, clip gradients, or look at that step's batch in jg.debug_mode()"


class NonFiniteError(InputError, FloatingPointError):
    """A training step's loss or update was NaN or infinite.

    Args:
        step: the step, counted from 1.
        loss: its loss.
        where: which operation made it so, in a sentence; None where that isn't known.
        remedy: what to do, in a sentence.
    """

    def __init__(
        self, step: int, loss: float, where: str | None = None, remedy: str = _REMEDY
    ) -> None:
        self.step = step
        self.loss = loss
        self.where = where
        super().__init__(
            f"loss and update must be finite, at step {step} the loss was {loss:g}"
            f"{' and the update was not finite' if math.isfinite(loss) else ''}: "
            f"{where or 'which operation made it so is not known'}. The model holds "
            f"the state after step {step - 1}. {remedy}"
        )


class _Call(NamedTuple):
    """A call that the devices may still be working on: its first step, and what it was given."""

    first: int
    work: Work
    health: Health


class Run:
    """The moving parts of one `train_and_evaluate`."""

    def __init__(
        self,
        model: nnx.Module,
        loss_fn: LossFn,
        step: Step,
        train: TrainSpec,
        evals: Mapping[str, EvalSpec],
        strategy: Strategy | None,
        best: Metric | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self._model, self._loss_fn, self._step = model, loss_fn, step
        self._train, self._evals, self._strategy = train, evals, strategy
        self._best = best
        self._best_value: float | None = None
        self._best_leaves: tuple[Leaves, Leaves] | None = None
        self._callbacks = callbacks
        self._in_flight: deque[_Call] = deque()
        self._pending: tuple[int, Measured] | None = None
        self._history: list[dict[str, Any]] = []
        self._states: dict[str, Any] = {}
        self._steps = 0
        self._stopped = False

    @property
    def steps(self) -> int:
        """The steps handed to the devices so far."""
        return self._steps

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows so far."""
        return self._history

    @property
    def best_value(self) -> float | None:
        """The best evaluation's number so far."""
        return self._best_value

    def best_arrays(self, prefix: str) -> dict[str, Any]:
        """Return the state of the best evaluation so far by path, under a prefix."""
        if self._best_leaves is None:
            return {}
        named = self._step.named_model(*self._best_leaves)
        return {f"{prefix}.{name}": array for name, array in named.items()}

    def resume(
        self,
        steps: int,
        history: list[dict[str, Any]],
        best_value: float | None,
        best: Mapping[str, Any],
    ) -> None:
        """Go on after so many steps; `best` is what `best_arrays` returned then."""
        self._steps, self._history = steps, history
        if best and self._best is not None:
            arrays = {name.partition(".")[2]: array for name, array in best.items()}
            self._best_value = best_value
            self._best_leaves = self._step.model_from(arrays)
            self._states["best"] = self._step.binding.state(*self._best_leaves)

    @property
    def is_over(self) -> bool:
        """Whether there is no step to take."""
        return self._stopped or self._steps >= self._train.max_steps

    def ask(self, hook: Callable[..., None], *args: Any) -> None:
        """Call a callback, which may stop the run."""
        with self._may_stop():
            hook(*args)

    def catch_up(self) -> None:
        """Wait until all steps so far are known to be good, and their closed windows told."""
        self._flush()
        self._settle_until(self._steps)

    @property
    def result(self) -> TrainResult:
        """What the run went through."""
        return TrainResult(self._history, self._steps, self._states)

    def advance(self, work: Work) -> bool:
        """Take a call's steps; log and evaluate where they are due; return whether to stop."""
        health = self._step.advance(work.batch, stacked=work.steps > 1)
        first = self._steps + 1
        self._steps += work.steps
        self._in_flight.append(_Call(first, work, health))
        if len(self._in_flight) > _MAX_IN_FLIGHT:
            self._settle()
        for callback in self._callbacks:
            with self._may_stop():
                for step in range(first, self._steps + 1):
                    callback.on_step(step)
        last = self._stopped or self._steps == self._train.max_steps
        if last or self._steps % self._train.log_every == 0:
            self._close_window()
        due = [name for name, spec in self._evals.items() if last or spec.is_due(self._steps)]
        if due or last:
            self._flush()
            self._settle_until(self._steps)
        for name in due:
            self._evaluate(name)
        return self._stopped

    def finish(self) -> None:
        """Give the model the latest state and end the run."""
        if self._pending is not None:  # stopped between two windows
            self._flush()
        self._states["last"] = self._step.binding.state(*self._copies(averaged=False))
        self.write_back()
        for callback in self._callbacks:
            callback.on_end(self.result)

    def write_back(self) -> None:
        """Give the model the latest state."""
        if self._step.started:
            leaves = jax.block_until_ready(self._step.model_leaves(averaged=True))
            self._step.binding.write_back(self._model, *leaves)

    def rescue(self, error: BaseException) -> None:
        """Give the model the latest state although the run failed."""
        try:
            self.write_back()
        except RuntimeError:
            error.add_note(
                "The step failed on the device and took the state it was given along: the model "
                "holds the values it had before train_and_evaluate."
            )

    @contextlib.contextmanager
    def _may_stop(self) -> Iterator[None]:
        try:
            yield
        except StopTraining:
            self._stopped = True

    def _settle(self) -> None:
        """Wait for the oldest call, and raise if a step of it wasn't finite."""
        call = self._in_flight.popleft()
        bad_step = int(call.health.bad_step)
        if bad_step:
            loss = float(call.health.bad_loss)
            where, remedy, cause = self._locate(call, bad_step)
            if where is None and math.isfinite(loss):
                where = (
                    "loss and gradients are finite, so it is the optimizer's own numbers, such as "
                    "its learning rate"
                )
            raise NonFiniteError(bad_step, loss, where, remedy) from cause

    def _settle_until(self, step: int) -> None:
        while self._in_flight and self._in_flight[0].first <= step:
            self._settle()

    def _locate(self, call: _Call, bad_step: int) -> tuple[str | None, str, Exception | None]:
        """Say what made a step not finite, and what to do; with the error that the step raises."""
        batch = call.work.batch
        if call.work.steps > 1:
            batch = jax.tree.map(lambda x: x[bad_step - call.first], batch)
        try:
            spread = not is_local(batch)
            if spread:  # the step is bad in every process, so all come here
                batch = on_each_host(batch)
            given = describe_bad(batch, "the batch")
            if given is not None:
                return given, "Mend the data, or leave such rows out", None
            if spread:
                return "the operation that made it so is looked for in one process", _REMEDY, None
            return self._step.locate(batch), _REMEDY, None
        except Exception as error:  # noqa: BLE001  such as a loss that sees its labels' values now
            where = f"taken again in debug mode it raised {type(error).__name__}: {error}"
            return where, "Mend what that names first", error

    def _close_window(self) -> None:
        window = self._step.take_window()
        self._flush()
        self._pending = self._steps, window

    def _flush(self) -> None:
        """Fetch and hand out the window that closed before this one."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, window = pending
        self._settle_until(step)
        row = {"step": step, "set": "train", **jax.device_get(window).row()}
        self._history.append(row)
        for callback in self._callbacks:
            with self._may_stop():
                callback.on_log(step, row)

    def _evaluate(self, name: str) -> None:
        params, rest = self._step.model_leaves(averaged=True)
        data = self._evals[name].data
        numbers = evaluate_leaves(
            self._loss_fn, measure_loss, self._step.binding, params, rest, data, self._strategy
        )
        row = {"step": self._steps, "set": name, **numbers}
        self._history.append(row)
        self._keep_best(name, row)
        for callback in self._callbacks:
            with self._may_stop():
                callback.on_eval(self._steps, name, row)

    def _keep_best(self, name: str, row: dict[str, Any]) -> None:
        value = None if self._best is None else self._best.of(name, row)
        if self._best is None or value is None:
            return
        if self._best.is_better(value, than=self._best_value):
            self._best_value = value
            self._best_leaves = self._copies(averaged=True)
            self._states["best"] = self._step.binding.state(*self._best_leaves)

    def _copies(self, *, averaged: bool) -> tuple[Leaves, Leaves]:
        """Return a copy of the model's leaves, which later steps don't overwrite."""
        return jax.tree.map(jnp.copy, self._step.model_leaves(averaged=averaged))
