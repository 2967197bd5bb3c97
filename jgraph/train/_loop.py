"""The loop: keeps the device busy, fetches numbers late, and always hands back a good state."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from flax import nnx

from jgraph._errors import InputError
from jgraph.train._batches import Prefetch, cycle
from jgraph.train._callbacks import Callback
from jgraph.train._evaluate import evaluate_leaves
from jgraph.train._objective import LossFn, Measured, measure_loss
from jgraph.train._specs import EvalSpec, TrainResult, TrainSpec
from jgraph.train._state import bind, check_trainable
from jgraph.train._step import Health, Stepper

# Steps handed to the device before the oldest must have ended: enough to keep it busy, few enough
# that the batches they hold fit.
_MAX_IN_FLIGHT = 4


class NonFiniteError(InputError, FloatingPointError):
    """A training step's loss or update was NaN or infinite.

    Args:
        step: the step, counted from 1.
        loss: its loss.
    """

    def __init__(self, step: int, loss: float) -> None:
        self.step = step
        self.loss = loss
        super().__init__(
            f"loss and update must be finite, at step {step} the loss was {loss:g}"
            f"{' and the update was not finite' if math.isfinite(loss) else ''}; the model holds "
            f"the state after step {step - 1}. Lower the learning rate, clip gradients, or look "
            "at that step's batch under jax.disable_jit()"
        )


def train_and_evaluate(
    model: nnx.Module,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    train: TrainSpec,
    evals: Mapping[str, EvalSpec] | None = None,
    trainable: nnx.filterlib.Filter = nnx.Param,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train a model in place, and evaluate it on the way.

    The model is used in the mode it is in: call `model.train()` before, or `model.eval()` on the
    parts whose BatchNorm statistics and dropout shall rest. Evaluations run in evaluation mode
    and change nothing. When this returns, and also when it raises (an error in the data, Ctrl-C,
    a loss that isn't finite), the model holds the state after the last good step.

    Args:
        model: an NNX module.
        loss_fn: `loss_fn(model, batch)` returns `objective` or `(objective, metrics)`. The
            objective is an array of per-example values, a `jgraph.losses.Mean`, or a dict of
            these, each reduced by its own weights and then summed; a penalty is `Mean(x, 1)`.
            Metrics are a dict of Means or per-example values. Per-example values are weighed by
            `batch["weight"]` where the batch has one, so that padding doesn't count.
        optimizer: an optax transformation. It sees the trainable Params as nested dicts keyed by
            attribute and index, as `{"layers": {0: {"kernel": …}}}`, and is given `value=loss`.
        train: what to train on and for how long.
        evals: by name, what to evaluate on and how often.
        trainable: NNX filter of the Params that get gradients, as
            `nnx.PathContains("head")`; the others stay as they are.
        callbacks: see `Callback` for what is called when.

    Returns:
        The history of the run.

    Raises:
        NonFiniteError: (an InputError and FloatingPointError) a loss or update wasn't finite.
        InputError: no trainable Param, empty data, or `loss_fn` returns something else.

    Source:
        `tf.estimator.train_and_evaluate`.

    Example:
        >>> import jax.numpy as jnp
        >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        >>> batch = {"x": jnp.array([[0.0], [1.0]]), "y": jnp.array([[1.0], [3.0]])}
        >>> def squared_error(model, batch):
        ...     return ((model(batch["x"]) - batch["y"]) ** 2)[:, 0]
        >>> result = train_and_evaluate(
        ...     model, squared_error, optax.sgd(0.5), train=TrainSpec([batch], max_steps=100)
        ... )
        >>> print(model(jnp.array([[2.0]])).round(2), result.steps)
        [[5.]] 100
    """
    evals = dict(evals or {})
    check_arguments(model, optimizer, evals)
    run = _Run(model, loss_fn, optimizer, train, evals, trainable, callbacks)
    try:
        for callback in callbacks:
            callback.on_start(train.max_steps)
        with Prefetch(cycle(train.data, train.max_steps)) as batches:
            for step, batch in enumerate(batches, 1):
                run.advance(step, batch)
        run.write_back()
        for callback in callbacks:
            callback.on_end(run.result)
    except BaseException as error:
        run.rescue(error)
        raise
    finally:
        for callback in callbacks:
            callback.close()
    return run.result


def check_arguments(model: Any, optimizer: Any, evals: Mapping[str, EvalSpec]) -> None:
    """Raise where a type checker would have complained."""
    if not isinstance(model, nnx.Module):
        raise InputError(f"model must be an nnx.Module, got {type(model).__name__}")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise InputError(
            f"optimizer must be an optax transformation such as optax.adam(1e-3), got "
            f"{type(optimizer).__name__}"
        )
    if "train" in evals:
        raise InputError("evals must not be named 'train', the history's name for training rows")


class _Run:
    """The moving parts of one `train_and_evaluate`."""

    def __init__(
        self,
        model: nnx.Module,
        loss_fn: LossFn,
        optimizer: optax.GradientTransformation,
        train: TrainSpec,
        evals: Mapping[str, EvalSpec],
        trainable: nnx.filterlib.Filter,
        callbacks: Sequence[Callback],
    ) -> None:
        self._model, self._loss_fn, self._callbacks = model, loss_fn, callbacks
        self._train, self._evals = train, evals
        self._binding, params, rest = bind(model, trainable)
        check_trainable(model, self._binding, params)
        self._stepper = Stepper(self._binding, loss_fn, optimizer, params, rest)
        self._in_flight: deque[Health] = deque()
        self._pending: tuple[int, Measured, Health] | None = None
        self._history: list[dict[str, Any]] = []
        self._steps = 0

    @property
    def result(self) -> TrainResult:
        return TrainResult(self._history, self._steps)

    def advance(self, step: int, batch: Any) -> None:
        """Take a step; log and evaluate where they are due."""
        health = self._stepper.step(batch)
        self._steps = step
        self._in_flight.append(health)
        if len(self._in_flight) > _MAX_IN_FLIGHT:
            jax.block_until_ready(self._in_flight.popleft())
        for callback in self._callbacks:
            callback.on_step(step)
        last = step == self._train.max_steps
        if last or step % self._train.log_every == 0:
            self._close_window(step, health)
        due = [name for name, spec in self._evals.items() if last or spec.is_due(step)]
        if due or last:
            self._flush()
            _raise_if_bad(health)
        for name in due:
            self._evaluate(step, name)

    def write_back(self) -> None:
        """Give the model the latest state."""
        if self._stepper.started:
            leaves = jax.block_until_ready(self._stepper.model_leaves())
            self._binding.write_back(self._model, *leaves)

    def rescue(self, error: BaseException) -> None:
        """Give the model the latest state although the run failed."""
        try:
            self.write_back()
        except RuntimeError:
            error.add_note(
                "The step failed on the device and took the state it was given along: the model "
                "holds the values it had before train_and_evaluate."
            )

    def _close_window(self, step: int, health: Health) -> None:
        window = self._stepper.take_window()
        self._flush()
        self._pending = step, window, health

    def _flush(self) -> None:
        """Fetch and hand out the window that closed before this one."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, window, health = pending
        _raise_if_bad(health)
        row = {"step": step, "set": "train", **jax.device_get(window).row()}
        self._history.append(row)
        for callback in self._callbacks:
            callback.on_log(step, row)

    def _evaluate(self, step: int, name: str) -> None:
        params, rest = self._stepper.model_leaves()
        data = self._evals[name].data
        numbers = evaluate_leaves(self._loss_fn, measure_loss, self._binding, params, rest, data)
        row = {"step": step, "set": name, **numbers}
        self._history.append(row)
        for callback in self._callbacks:
            callback.on_eval(step, name, row)


def _raise_if_bad(health: Health) -> None:
    _, bad_step, bad_loss = jax.device_get(tuple(health))
    if bad_step:
        raise NonFiniteError(int(bad_step), float(bad_loss))
