"""What a loss function may return, brought into one form: named Means."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from jgraph._errors import InputError
from jgraph._replicas import replicas
from jgraph.losses import Mean, mean

LossFn: TypeAlias = Callable[[Any, Any], Any]
"""`loss_fn(model, batch) -> objective` or `(objective, metrics)`; see `train_and_evaluate`."""


class Measured(NamedTuple):
    """One batch's, or one window's, sums: the objective's terms and the metrics, by name."""

    terms: dict[str, Mean]
    metrics: dict[str, Mean]

    def as_part(self, parts: int) -> Measured:
        """Return the sums as those of one of several parts of a batch.

        A term without examples, `Mean(x, 1)`, is the same in each: every part has a share of it.
        """
        return Measured(_shared(self.terms, parts), _shared(self.metrics, parts))

    def numbers(self) -> dict[str, Float[Array, ""]]:
        """Return the sums, which are over all replicas by now, as `row` does, but on the device."""
        with replicas(None):
            terms = {name: term.value() for name, term in self.terms.items()}
            metrics = {name: metric.value() for name, metric in self.metrics.items()}
        loss = {"loss": functools.reduce(operator.add, terms.values())} if terms else {}
        return loss | terms | metrics

    def row(self) -> dict[str, float]:
        """Return fetched sums as plain numbers: `loss`, its terms where several, the metrics."""
        terms = {name: _number(term) for name, term in self.terms.items()}
        loss = {"loss": sum(terms.values())} if terms else {}
        return loss | terms | {name: _number(metric) for name, metric in self.metrics.items()}

    def add(self, other: Measured) -> Measured:
        """Add sums name by name; a name that one side lacks counts as nothing there."""
        return Measured(_add(self.terms, other.terms), _add(self.metrics, other.metrics))


def measure_loss(loss_fn: LossFn, model: Any, batch: Any) -> Measured:
    """Run a loss function on a batch."""
    return measured(loss_fn(model, batch), batch)


def measure(fn: LossFn, model: Any, batch: Any) -> Measured:
    """Run a loss function, or a metric function, which returns a dict and no objective."""
    result = fn(model, batch)
    if isinstance(result, Mapping):
        return Measured({}, _metrics(result, batch))
    return measured(result, batch)


def measured(result: Any, batch: Any) -> Measured:
    """Bring what a loss function returned into one form."""
    objective, metrics = _pair(result)
    terms, metrics = _terms(objective, batch), _metrics(metrics, batch)
    taken = [name for name in metrics if name in {"loss", "step", "set", *terms}]
    if taken:
        raise InputError(
            f"metrics must have names of their own, {taken[0]!r} is the name of the objective, one "
            "of its terms, or a column of the history"
        )
    return Measured(terms, metrics)


def _pair(result: Any) -> tuple[Any, Any]:
    if not isinstance(result, tuple):
        return result, {}
    if len(result) != 2:
        raise InputError(
            "loss_fn must return objective or (objective, metrics), got a tuple of "
            f"{len(result)}; several terms are a dict of Means"
        )
    return result


def _terms(objective: Any, batch: Any) -> dict[str, Mean]:
    if not isinstance(objective, Mapping):
        return {"loss": as_mean("the objective", objective, batch)}
    if not objective:
        raise InputError("an objective given as a dict must have at least one term, got none")
    if "loss" in objective and len(objective) > 1:
        raise InputError(
            f"an objective of several terms must not call one 'loss', the name of their sum; got "
            f"{', '.join(sorted(objective))}"
        )
    return {name: as_mean(f"objective {name!r}", v, batch) for name, v in objective.items()}


def _metrics(metrics: Any, batch: Any) -> dict[str, Mean]:
    if not isinstance(metrics, Mapping):
        raise InputError(
            "metrics must be a dict of Means or per-example arrays, got "
            f"{type(metrics).__name__}; return (objective, {{'name': value}})"
        )
    return {name: as_mean(f"metric {name!r}", value, batch) for name, value in metrics.items()}


def as_mean(name: str, value: Any, batch: Any) -> Mean:
    """Take a Mean as it is; average per-example values by the batch's `weight`, or evenly.

    Raises:
        InputError: a scalar, or values that don't start with the batch's examples.
    """
    if isinstance(value, Mean):
        return value
    values = jnp.asarray(value)
    if values.ndim == 0:
        raise InputError(
            f"{name} must be per-example values or a Mean, got a scalar: return the values before "
            "their mean is taken, or jgraph.losses.Mean(value, 1) for a term without examples"
        )
    weight = batch.get("weight") if isinstance(batch, Mapping) else None
    if weight is None:
        return mean(values)
    w = jnp.asarray(weight)
    if w.shape != values.shape[: w.ndim]:
        raise InputError(
            f"{name} must start with the shape of batch['weight'], {w.shape}, got {values.shape}; "
            "return a Mean to weigh it otherwise"
        )
    padded = w.reshape(w.shape + (1,) * (values.ndim - w.ndim))
    return mean(values, jnp.broadcast_to(padded, values.shape))


def _add(a: Mapping[str, Mean], b: Mapping[str, Mean]) -> dict[str, Mean]:
    return {**a, **{k: a[k] + v if k in a else v for k, v in b.items()}}


def _shared(means: Mapping[str, Mean], parts: int) -> dict[str, Mean]:
    return {
        name: Mean(mean.total / parts, jnp.float32(mean.weight / parts))
        if isinstance(mean.weight, (int, float))
        else mean
        for name, mean in means.items()
    }


def _number(fetched: Mean) -> float:
    total, weight = float(fetched.total), float(fetched.weight)
    return total / weight if weight else 0.0
