"""What a classifier got right on a set of pictures, and how sure that figure is."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jgraph import losses

_Z_95 = 1.959963984540054


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion.

    Args:
        correct: how many of `count` were right.
        count: at least 1.

    Returns:
        Lower and upper end, 0 to 1.

    Source:
        Wilson 1927; keeps its coverage near 0 and 1, where the textbook interval has no width.

    Example:
        >>> low, high = wilson_interval(118, 120)
        >>> f"{low:.2f}-{high:.2f}"
        '0.94-1.00'
    """
    p, z2 = correct / count, _Z_95**2
    center = p + z2 / (2 * count)
    spread = _Z_95 * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2))
    scale = 1 + z2 / count
    # At 0 and 1 an end equals the proportion; rounding must not push it past.
    low = 0.0 if correct == 0 else (center - spread) / scale
    high = 1.0 if correct == count else (center + spread) / scale
    return low, high


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """Predictions on a named set of pictures beside their labels.

    Args:
        name: which set: "test", "val", "held-out" or "cross-validated".
        class_names: K names.
        labels: int `[N]`.
        probabilities: float32 `[N, K]`.
        loss: mean cross entropy, in nats.
        trained_on: how many of the pictures the classifier was trained on.
    """

    name: str
    class_names: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n k"]
    loss: float
    trained_on: int = 0

    @classmethod
    def of_logits(
        cls,
        name: str,
        class_names: tuple[str, ...],
        labels: Int[np.ndarray, " n"],
        logits: Float[np.ndarray, "n k"],
    ) -> Score:
        """Return the score of `logits`, float `[N, K]`."""
        values = losses.sparse_softmax_cross_entropy(logits, labels)
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = (shifted / shifted.sum(-1, keepdims=True)).astype(np.float32)
        return cls(name, class_names, labels, probabilities, float(losses.mean(values).value()))

    @property
    def predictions(self) -> Int[np.ndarray, " n"]:
        """The most probable class of each picture, int `[N]`."""
        return self.probabilities.argmax(-1)

    @property
    def count(self) -> int:
        """N, the number of pictures."""
        return int(self.labels.size)

    @property
    def correct(self) -> int:
        """How many pictures were given their own class."""
        return int((self.predictions == self.labels).sum())

    @property
    def accuracy(self) -> float:
        """`correct / count`."""
        return self.correct / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy (Wilson)."""
        return wilson_interval(self.correct, self.count)

    @property
    def confusion(self) -> Int[np.ndarray, "k k"]:
        """How often class i (row) was called class j (column), int `[K, K]`."""
        k = len(self.class_names)
        flat = np.bincount(self.labels * k + self.predictions, minlength=k * k)
        return flat.reshape(k, k)

    @property
    def baseline(self) -> float:
        """Accuracy of always naming this set's most frequent class."""
        return float(np.bincount(self.labels).max() / self.count)

    @property
    def recall(self) -> dict[str, float | None]:
        """Part of each class's pictures given their own class; None for one without pictures."""
        totals, hits = self.confusion.sum(1), self.confusion.diagonal()
        return _rates(self.class_names, hits, totals)

    @property
    def precision(self) -> dict[str, float | None]:
        """Part of each class's predictions that were right; None for a class never predicted."""
        totals, hits = self.confusion.sum(0), self.confusion.diagonal()
        return _rates(self.class_names, hits, totals)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.accuracy:.3f}, {self.correct} of {self.count}, {low:.2f}-{high:.2f}"

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON-ready values."""
        return {
            "set": self.name,
            "accuracy": self.accuracy,
            "count": self.count,
            "correct": self.correct,
            "interval_95": list(self.interval),
            "baseline_accuracy": self.baseline,
            "loss": self.loss,
            "trained_on": self.trained_on,
            "recall": self.recall,
            "precision": self.precision,
            "confusion": self.confusion.tolist(),
            "class_names": list(self.class_names),
        }


def _rates(names: tuple[str, ...], hits: np.ndarray, totals: np.ndarray) -> dict[str, float | None]:
    rates = zip(names, hits.tolist(), totals.tolist(), strict=True)
    return {name: hit / total if total else None for name, hit, total in rates}
