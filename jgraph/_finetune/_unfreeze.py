"""Fine-tuning proper: the head's start, then the last stages of the backbone along with it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float

from jgraph import losses
from jgraph._finetune._console import Console
from jgraph._finetune._corpus import Corpus
from jgraph._finetune._inference import Forward
from jgraph._finetune._settings import Settings
from jgraph._finetune._unfinished import Unfinished
from jgraph.data import Pictures
from jgraph.models import Classifier
from jgraph.train import (
    Callback,
    Checkpoint,
    EvalSpec,
    LogisticFit,
    NonFiniteError,
    TrainResult,
    TrainSpec,
    balanced_weights,
    train_and_evaluate,
)

BACKBONE_RATE = 0.1
WARM_UP = 0.1
CLIP_NORM = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Tuned:
    """What fine-tuning led to.

    Args:
        kept: whether the fine-tuned weights are in the model; otherwise the head's start is.
        loss_before: mean cross entropy of the head's start on what decided, in nats.
        loss_after: the same of the fine-tuned network; infinite where it diverged.
        history: rows of `TrainResult.history` with steps counted in epochs.
        held_out_logits: out-of-fold logits `[N, K]` where folds decided; else None.
    """

    kept: bool
    loss_before: float
    loss_after: float
    history: list[dict[str, Any]]
    held_out_logits: Float[np.ndarray, "n k"] | None


def set_head(model: Classifier, fit: LogisticFit) -> None:
    """Put a fitted head into the model."""
    model.head.kernel.set_value(jnp.asarray(fit.kernel))
    assert model.head.bias is not None, "a classifier's head has a bias"
    model.head.bias.set_value(jnp.asarray(fit.bias))


def fine_tune(
    model: Classifier,
    corpus: Corpus,
    fit: LogisticFit,
    settings: Settings,
    console: Console,
    unfinished: Unfinished,
) -> Tuned:
    """Train the last stages from the fitted head; keep the head where that makes it worse.

    Args:
        model: holds the fitted head; changed in place.
        corpus: its monitor set decides, or its folds where there is none.
        fit: the fitted head.
        settings: what was asked for.
        console: speaks to the person.
        unfinished: where it is saved on the way, and goes on from.

    Returns:
        What it led to.
    """
    count = int(corpus.rows("train").sum())
    if count < settings.batch_size <= corpus.labels.size:
        console.notice(
            f"the batch size {settings.batch_size} is more than the {count} pictures to train on; "
            f"{count} is used"
        )
    before = jax.tree.map(jnp.copy, nnx.state(model))
    loss_before = _head_loss(corpus, fit, settings)
    decide = _by_folds if corpus.monitor is None else _by_monitor
    try:
        tuned = decide(model, corpus, fit, loss_before, settings, console, unfinished)
    except NonFiniteError as error:
        console.notice(
            f"fine-tuning diverged at step {error.step}; lower the learning rate, which is "
            f"{settings.learning_rate:g}"
        )
        tuned = Tuned(False, loss_before, math.inf, [], None)
    if not tuned.kept:
        nnx.update(model, before)
    return tuned


def _head_loss(corpus: Corpus, fit: LogisticFit, settings: Settings) -> float:
    """Return the loss of the fitted head on what decides."""
    if corpus.monitor is None:
        seen = corpus.folds(settings.seed) >= 0
        assert fit.cross_validation is not None, "the penalty was chosen by cross-validation"
        return _mean_loss(fit.cross_validation.log_probabilities[seen], corpus.labels[seen])
    monitor = corpus.rows(corpus.monitor)
    return _mean_loss(corpus.features[monitor] @ fit.kernel + fit.bias, corpus.labels[monitor])


def _by_monitor(
    model: Classifier,
    corpus: Corpus,
    fit: LogisticFit,
    loss_before: float,
    settings: Settings,
    console: Console,
    unfinished: Unfinished,
) -> Tuned:
    """Fine-tune once; pictures that aren't trained on decide."""
    assert corpus.monitor is not None, "without a monitor set, the folds decide"
    monitor = corpus.rows(corpus.monitor)
    saved = unfinished.checkpoint("all")
    result = _train(model, corpus, corpus.rows("train"), settings, console, monitor, saved)
    loss_after = float(result.rows(corpus.monitor)[-1]["cross_entropy"])
    return Tuned(loss_after <= loss_before, loss_before, loss_after, result.history, None)


def _by_folds(
    model: Classifier,
    corpus: Corpus,
    fit: LogisticFit,
    loss_before: float,
    settings: Settings,
    console: Console,
    unfinished: Unfinished,
) -> Tuned:
    """With too few pictures to hold any out, every fold is fine-tuned without its pictures."""
    folds, train = corpus.folds(settings.seed), corpus.rows("train")
    start = jax.tree.map(jnp.copy, nnx.state(model))
    logits = np.zeros((corpus.labels.size, len(corpus.class_names)), np.float32)
    numbers = np.unique(folds[folds >= 0])
    for fold in numbers:
        held = folds == fold
        console.say(
            f"Fold {fold + 1} of {numbers.size}: fine-tuning without its {held.sum()} pictures"
        )
        everything = np.ones_like(train)
        without = corpus.fit_head(everything, held_out_N=held | ~train, penalties=(fit.penalty,))
        nnx.update(model, start)
        set_head(model, without)
        saved = unfinished.checkpoint(f"fold-{fold + 1}")
        _train(model, corpus, train & ~held, settings, console, None, saved)
        logits[held] = predict(model, corpus, held, settings)
    nnx.update(model, start)
    seen = folds >= 0
    loss_after = _mean_loss(logits[seen], corpus.labels[seen])
    if not loss_after <= loss_before:
        return Tuned(False, loss_before, loss_after, [], None)
    console.say("Fine-tuning on all pictures")
    saved = unfinished.checkpoint("all")
    result = _train(model, corpus, train, settings, console, None, saved)
    return Tuned(True, loss_before, loss_after, result.history, logits)


def predict(
    model: Classifier, corpus: Corpus, rows: Bool[np.ndarray, " n"], settings: Settings
) -> Float[np.ndarray, "m k"]:
    """Return the model's logits of the chosen pictures, float32 `[M, K]`."""
    forward = Forward(model, Classifier.__call__, settings.places())
    return forward(_batches(model, corpus, rows, settings))[0]


def _train(
    model: Classifier,
    corpus: Corpus,
    rows: Bool[np.ndarray, " n"],
    settings: Settings,
    console: Console,
    monitor: Bool[np.ndarray, " n"] | None,
    checkpoint: Checkpoint,
) -> TrainResult:
    batches = _batches(model, corpus, rows, settings, augment=True)
    steps = len(batches) * settings.epochs
    evals = {}
    if monitor is not None and corpus.monitor is not None:
        held = _batches(model, corpus, monitor, settings)
        evals[corpus.monitor] = EvalSpec(held, every_steps=len(batches))
    with console.bar("Fine-tuning", steps, " steps") as count:
        result = train_and_evaluate(
            model,
            _loss_fn(balanced_weights(corpus.labels[rows], len(corpus.class_names)), corpus, rows),
            _optimizer(settings, steps),
            train=TrainSpec(batches, steps, log_every=len(batches)),
            evals=evals,
            strategy=settings.places(),
            trainable=model.trainable(settings.unfrozen_stages(len(model.backbone.stages))),
            callbacks=[_Epochs(console, count, len(batches), settings.epochs, bool(evals))],
            checkpoint=checkpoint,
        )
    for row in result.history:
        row["step"] //= len(batches)
    return result


def _batches(
    model: Classifier,
    corpus: Corpus,
    rows: Bool[np.ndarray, " n"],
    settings: Settings,
    *,
    augment: bool = False,
) -> Pictures:
    chosen = corpus.pictures_of(rows)
    return Pictures(
        chosen.paths,
        chosen.labels,
        model.preprocessing,
        min(settings.batch_size, len(chosen)),
        shuffle=augment,
        augment=augment,
        seed=settings.seed,
    )


def _loss_fn(
    weights: Float[np.ndarray, " m"], corpus: Corpus, rows: Bool[np.ndarray, " n"]
) -> Callable[[Classifier, dict[str, Array]], tuple[losses.Mean, dict[str, Array]]]:
    # A class's weight is that of any of its pictures.
    per_class = np.ones(len(corpus.class_names), np.float32)
    per_class[corpus.labels[rows]] = weights

    def loss_fn(model: Classifier, batch: dict[str, Array]) -> tuple[losses.Mean, dict[str, Array]]:
        logits = model(batch["picture"])
        values = losses.sparse_softmax_cross_entropy(logits, batch["label"])
        balanced = jnp.asarray(per_class)[batch["label"]] * batch["weight"]
        right = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
        return losses.mean(values, balanced), {"accuracy": right, "cross_entropy": values}

    return loss_fn


def _optimizer(settings: Settings, steps: int) -> optax.GradientTransformation:
    def adam(rate: float) -> optax.GradientTransformation:
        warm_up = max(1, round(WARM_UP * steps))
        first = rate / (warm_up + 1)  # not 0, at which a run of one step would learn nothing
        return optax.adam(optax.warmup_cosine_decay_schedule(first, rate, warm_up, steps + 1))

    def part(path: tuple[Any, ...], _: Array) -> str:
        return path[0].key

    by_part = optax.partition(
        {
            "head": adam(settings.learning_rate),
            "backbone": adam(settings.learning_rate * BACKBONE_RATE),
        },
        functools.partial(jax.tree_util.tree_map_with_path, part),
    )
    return optax.chain(optax.clip_by_global_norm(CLIP_NORM), by_part)


def _mean_loss(logits: Float[np.ndarray, "m k"], labels: np.ndarray) -> float:
    return float(losses.mean(losses.sparse_softmax_cross_entropy(logits, labels)).value())


class _Epochs(Callback):
    """Counts steps on the bar and says a line per epoch."""

    def __init__(
        self,
        console: Console,
        count: Callable[[int], object],
        steps_per_epoch: int,
        epochs: int,
        evaluates: bool,
    ) -> None:
        self._console, self._count = console, count
        self._steps_per_epoch, self._epochs = steps_per_epoch, epochs
        self._evaluates = evaluates
        self._train = ""

    def on_resume(self, step: int, history: Sequence[Mapping[str, Any]], state: Any) -> None:
        self._count(step)

    def on_step(self, step: int) -> None:
        self._count(1)

    def on_log(self, step: int, row: dict[str, Any]) -> None:
        epoch = step // self._steps_per_epoch
        self._train = (
            f"  epoch {epoch} of {self._epochs}: train loss {row['loss']:.4f}, "
            f"accuracy {row['accuracy']:.3f}"
        )
        if not self._evaluates:
            self._console.say(self._train)

    def on_eval(self, step: int, name: str, row: dict[str, Any]) -> None:
        self._console.say(
            f"{self._train}; {name} loss {row['cross_entropy']:.4f}, accuracy {row['accuracy']:.3f}"
        )
