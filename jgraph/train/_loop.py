"""Training and evaluating: what people call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import optax
from flax import nnx
from jax.typing import DTypeLike

from jgraph._errors import InputError
from jgraph.debug import debuggable
from jgraph.distribute import Prefetch, Strategy, is_local
from jgraph.train._batches import put_work, stacked
from jgraph.train._callbacks import Callback
from jgraph.train._checkpoint import Checkpoint
from jgraph.train._make_step import make_step
from jgraph.train._objective import LossFn
from jgraph.train._per_host import is_joined, joined
from jgraph.train._run import Run
from jgraph.train._saver import Saver
from jgraph.train._specs import EvalSpec, Metric, TrainResult, TrainSpec
from jgraph.train._step import check_model_and_optimizer


@debuggable
def train_and_evaluate(
    model: nnx.Module,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    train: TrainSpec,
    evals: Mapping[str, EvalSpec] | None = None,
    strategy: Strategy | None = None,
    trainable: nnx.filterlib.Filter = nnx.Param,
    freeze: str | Sequence[str] = (),
    average: float | None = None,
    best: tuple[str, Literal["min", "max"]] | None = None,
    compute_dtype: DTypeLike | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | None = None,
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
        strategy: where it runs, from `jgraph.distribute`: one device (None), or many. Several
            processes need one.
        trainable: NNX filter of the Params that get gradients, as
            `nnx.PathContains("head")`; the others stay as they are.
        freeze: globs of dotted paths, as `"backbone"` or `"blocks.[0-3]"`; what they match gets
            no gradient and runs in evaluation mode, so that BatchNorm statistics rest too.
        average: decay of a moving average of the trained Params, such as 0.999. Evaluations
            measure the average, and the model holds it afterwards; `result.states["last"]` is
            what it is an average of.
        best: `("val/accuracy", "max")`: the state of the best evaluation is kept in
            `result.states["best"]`.
        compute_dtype: what modules without a `dtype` of their own compute in, such as
            `jax.numpy.bfloat16`; the state keeps its types.
        callbacks: see `Callback` for what is called when; one may stop the run, as
            `EarlyStopping` does.
        checkpoint: where to save, and what to go on from: a run that was killed, started again
            with the same arguments, goes on from its newest checkpoint and ends as if it hadn't
            been, bit for bit. So its data must give the same batches again: each time it is
            iterated, or by `epoch(n)`. Ctrl-C and SIGTERM save first. A run that had come to its
            end returns at once.

    Returns:
        The history of the run.

    Raises:
        NonFiniteError: (an InputError and FloatingPointError) a loss or update wasn't finite.
        InputError: no trainable Param, empty data, `loss_fn` returns something else, or there are
            several processes and no strategy.
        CheckpointError: (an InputError) a checkpoint isn't this run's, or none is as it was
            written, or one couldn't be written.
        SystemExit: after SIGTERM with a `checkpoint`: the code is 143, or 42 where several
            processes run.

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
    check_arguments(model, optimizer, train, evals, best)
    _check_strategy(model, strategy)
    metric = _best_metric(best, checkpoint, evals)
    train = joined(train, strategy)
    evals = {name: joined(spec, strategy) for name, spec in evals.items()}
    step = make_step(
        model,
        loss_fn,
        optimizer,
        strategy=strategy,
        trainable=trainable,
        freeze=freeze,
        accumulate=train.accumulate,
        average=average,
        compute_dtype=compute_dtype,
    )
    run = Run(model, loss_fn, step, train, evals, strategy, metric, callbacks)
    saver = Saver(checkpoint, run, step, train, callbacks)
    try:
        with saver:
            batches = stacked(iter(saver.resume()), train.steps_per_call)
            for callback in callbacks:
                callback.on_start(train.max_steps)
            saver.tell_callbacks()
            place, threaded = partial(put_work, strategy=strategy), not is_joined(train.data)
            with Prefetch(batches, place, threaded=threaded) as calls:
                while not run.is_over:
                    run.advance(next(calls))
                    if not run.is_over:
                        saver.after_call()
            saver.finish()
        run.finish()
    except BaseException as error:
        run.rescue(error)
        raise
    finally:
        for callback in callbacks:
            callback.close()
    return run.result


def _best_metric(
    best: tuple[str, Literal["min", "max"]] | None,
    checkpoint: Checkpoint | None,
    evals: Mapping[str, EvalSpec],
) -> Metric | None:
    """Return what is best, by the argument or by the checkpoint's.

    Raises:
        InputError: they differ, or the checkpoint's is of no evaluation.
    """
    metric = best and Metric(*best)
    other = None if checkpoint is None else checkpoint.best
    if metric and other and metric != other:
        raise InputError(
            f"best must be one number, it is {metric.name!r} ({metric.mode}) for "
            f"train_and_evaluate and {other.name!r} ({other.mode}) for its checkpoint"
        )
    if other:
        _check_best(other.name, evals)
    return metric or other


def check_arguments(
    model: Any,
    optimizer: Any,
    train: TrainSpec,
    evals: Mapping[str, EvalSpec],
    best: tuple[str, str] | None = None,
) -> None:
    """Raise for what a type checker would have complained about, or no run could end well with.

    Raises:
        InputError: it says which argument.
    """
    check_model_and_optimizer(model, optimizer)
    if "train" in evals:
        raise InputError("evals must not be named 'train', the history's name for training rows")
    for name, spec in evals.items():
        train.check_calls(f"every_steps of {name!r}", spec.every_steps)
    if best is not None:
        _check_best(best[0], evals)


def _check_strategy(model: nnx.Module, strategy: Strategy | None) -> None:
    """Refuse to train one model in each of several processes, unless that is asked for."""
    if strategy is not None or jax.process_count() == 1:
        return
    if is_local(nnx.state(model, nnx.Param)):
        raise InputError(
            f"{jax.process_count()} processes need a strategy: "
            "strategy=jg.distribute.auto() trains one model on the devices of all, "
            "jg.distribute.OneDevice() one in each process, which nobody joins"
        )


def _check_best(name: str, evals: Mapping[str, EvalSpec]) -> None:
    if name.partition("/")[0] not in evals:
        raise InputError(
            f"best must name a number of an evaluation, {', '.join(evals) or 'and there is none'}; "
            f"got {name!r}"
        )
