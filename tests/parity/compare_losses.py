"""Report what jgraph, optax, Keras 3, PyTorch and TensorFlow answer where others go wrong.

    python tests/parity/compare_losses.py --python torch=PYTHON --python keras=PYTHON \\
        --python tensorflow=PYTHON [--write losses/README.md]

Each library runs in a process of its own, by the Python that has it; those without one are left
out. The right answer of every case is worked out by hand here: a value with its gradient, or "no
answer", for which an error or NaN in both loss and gradient will do. A number that isn't right is
silently wrong (bold), NaN where a limit exists is not silent, but wrong too (italic). With --write
the table replaces the one between the markers in that file; the exit code is 1 if jgraph has
either.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

INF, NAN = math.inf, math.nan
PEERS = {
    "jgraph": "jgraph",
    "jgraph-jit": "jgraph, compiled",
    "optax": "optax",
    "keras": "Keras 3 (JAX)",
    "torch": "PyTorch",
    "tensorflow": "tf.nn",
}
# What a library says it does is not silent.
DOCUMENTED = {("keras", "labels [N, 1]"), ("torch", "label -100")}
MARKERS = ("<!-- compare_losses.py: begin -->\n", "<!-- end -->\n")

# name: (what is asked, loss, first argument (differentiated), second, right loss and gradient).
# None for a right answer: there is none.
Z, TWO = [[0.0, 0.0], [0.0, 0.0]], math.log(2)
HALF = [[-0.5, 0.5], [-0.5, 0.5]]
CASES: dict[str, tuple[str, Any, Any, tuple[Any, Any] | None]] = {
    "label -1": ("sparse", Z, np.array([0, -1]), None),
    "label K": ("sparse", Z, np.array([0, 2]), None),
    "label -100": ("sparse", Z, np.array([0, -100]), None),
    "label 1.7": ("sparse", Z, np.array([0.0, 1.7], np.float32), None),
    "label 2.0 of 3 classes": ("sparse", [[0.0] * 3] * 2, np.array([0, 2], np.float32), None),
    "labels [N, 1]": ("sparse", Z, np.array([[0], [1]]), None),
    "labels [1] for N = 2": ("sparse", Z, np.array([0]), None),
    "integer logits": ("sparse", np.zeros((2, 2), np.int32), np.array([0, 1]), None),
    "all logits -inf": ("sparse", [[-INF, -INF]], np.array([0]), ([NAN], [[NAN, NAN]])),
    "+inf on the label": ("sparse", [[INF, 0.0]], np.array([0]), ([0.0], [[0.0, 0.0]])),
    "+inf on another": ("sparse", [[0.0, INF]], np.array([0]), ([INF], [[-1.0, 1.0]])),
    "-inf on the label": ("sparse", [[-INF, 0.0]], np.array([0]), ([INF], [[-1.0, 1.0]])),
    "-inf on another": ("sparse", [[0.0, -INF]], np.array([0]), ([0.0], [[0.0, 0.0]])),
    "logits ±1e4": ("sparse", [[-1e4, 1e4]], np.array([0]), ([2e4], [[-1.0, 1.0]])),
    "soft labels [K] for [N, K]": ("soft", Z, np.array([0.5, 0.5], np.float32), None),
    "soft labels sum to 1.5": ("soft", Z, np.full((2, 2), 0.75, np.float32), None),
    "soft label -0.5": ("soft", Z, np.array([[0, 1], [-0.5, 1.5]], np.float32), None),
    "soft label 0 on -inf": (
        "soft",
        [[0.0, -INF]],
        np.array([[1, 0]], np.float32),
        ([0.0], [[0.0, 0.0]]),
    ),
    "sigmoid label 1.7": ("sigmoid", [[0.0]], np.array([[1.7]], np.float32), None),
    "sigmoid label -1": ("sigmoid", [[0.0]], np.array([[-1]], np.float32), None),
    "sigmoid labels [N, 1] for [N, 2]": ("sigmoid", Z, np.array([[0], [1]], np.float32), None),
    "sigmoid +inf, label 1": ("sigmoid", [[INF]], np.array([[1]], np.float32), ([0.0], [[0.0]])),
    "sigmoid +inf, label 0": ("sigmoid", [[INF]], np.array([[0]], np.float32), ([INF], [[1.0]])),
    # The gradient of KL(p | q) with respect to q is -p / q.
    "KL, p has a 0": ("kl", [[0.5, 0.5]], np.array([[1, 0]], np.float32), ([TWO], [[-2.0, 0.0]])),
    "KL, q has a 0 where p has": (
        "kl",
        [[1.0, 0.0]],
        np.array([[1, 0]], np.float32),
        ([0.0], [[-1.0, 0.0]]),
    ),
    "KL, q has a 0, p not": (
        "kl",
        [[1.0, 0.0]],
        np.array([[0.5, 0.5]], np.float32),
        ([INF], [[-0.5, -INF]]),
    ),
    "KL, p sums to 2": ("kl", [[0.5, 0.5]], np.array([[1, 1]], np.float32), None),
}


def with_jax(losses: dict[str, Callable[..., Any]], compiled: bool) -> Callable[..., Any]:
    import jax

    def run(kind: str, first: np.ndarray, second: np.ndarray) -> tuple[Any, Any]:
        labels = jax.numpy.asarray(second)

        def total(x: Any, y: Any) -> tuple[Any, Any]:
            values = losses[kind](x, y)
            return values.sum(), values

        slope = jax.grad(total, has_aux=True, allow_int=True)
        return (jax.jit(slope) if compiled else slope)(jax.numpy.asarray(first), labels)[::-1]

    return run


def jgraph(compiled: bool = False) -> Callable[..., Any]:
    from jgraph import losses

    table = {
        "sparse": losses.sparse_softmax_cross_entropy,
        "soft": losses.softmax_cross_entropy,
        "sigmoid": losses.sigmoid_cross_entropy,
        "kl": lambda q, p: losses.kl_divergence(p, q),
    }
    return with_jax(table, compiled)


def optax() -> Callable[..., Any]:
    import jax.numpy as jnp
    from optax import losses

    table = {
        "sparse": losses.softmax_cross_entropy_with_integer_labels,
        "soft": losses.softmax_cross_entropy,
        "sigmoid": losses.sigmoid_binary_cross_entropy,
        "kl": lambda q, p: losses.kl_divergence(jnp.log(q), p),
    }
    return with_jax(table, compiled=False)


def keras() -> Callable[..., Any]:
    os.environ["KERAS_BACKEND"] = "jax"
    from keras import losses

    table = {
        "sparse": lambda z, y: losses.sparse_categorical_crossentropy(y, z, from_logits=True),
        "soft": lambda z, p: losses.categorical_crossentropy(p, z, from_logits=True),
        "sigmoid": lambda z, y: losses.binary_crossentropy(y, z, from_logits=True),
        "kl": lambda q, p: losses.kl_divergence(p, q),
    }
    return with_jax(table, compiled=False)


def torch() -> Callable[..., Any]:
    import torch
    from torch.nn import functional

    table = {
        "sparse": lambda z, y: functional.cross_entropy(z, y, reduction="none"),
        "soft": lambda z, p: functional.cross_entropy(z, p, reduction="none"),
        "sigmoid": lambda z, y: functional.binary_cross_entropy_with_logits(z, y, reduction="none"),
        "kl": lambda q, p: functional.kl_div(q.log(), p, reduction="none").sum(-1),
    }

    def run(kind: str, first: np.ndarray, second: np.ndarray) -> tuple[Any, Any]:
        x = torch.tensor(first)
        x.requires_grad_(x.is_floating_point())
        values = table[kind](x, torch.tensor(second))
        values.sum().backward()
        return values.detach().numpy(), x.grad.numpy()

    return run


def tensorflow() -> Callable[..., Any]:
    import tensorflow as tf

    table = {
        "sparse": lambda z, y: tf.nn.sparse_softmax_cross_entropy_with_logits(y, z),
        "soft": lambda z, p: tf.nn.softmax_cross_entropy_with_logits(p, z),
        "sigmoid": lambda z, y: tf.nn.sigmoid_cross_entropy_with_logits(y, z),
    }

    def run(kind: str, first: np.ndarray, second: np.ndarray) -> tuple[Any, Any] | None:
        if kind not in table:
            return None
        x = tf.constant(first)
        with tf.GradientTape() as tape:
            tape.watch(x)
            values = table[kind](x, tf.constant(second))
        return values.numpy(), tape.gradient(values, x).numpy()

    return run


def answers(peer: str) -> dict[str, Any]:
    """Run every case in this process."""
    run = jgraph(compiled=True) if peer == "jgraph-jit" else globals()[peer]()
    found: dict[str, Any] = {}
    for name, (kind, first, second, _) in CASES.items():
        x = first if isinstance(first, np.ndarray) else np.array(first, np.float32)
        try:
            both = run(kind, x, second)
        except Exception as error:  # noqa: BLE001 -- whatever a library raises is its answer
            found[name] = {"error": type(error).__name__}
            continue
        if both is not None:
            loss, slope = (np.asarray(a) for a in both)
            slope = slope if slope.dtype.kind == "f" else np.full(slope.shape, NAN)
            found[name] = {"loss": loss.ravel().tolist(), "slope": slope.ravel().tolist()}
    return found


def judge(peer: str, name: str, answer: dict[str, Any] | None) -> tuple[str, str]:
    """Return "right", "silent", "lost" or "unasked", and the table's cell."""
    if answer is None:
        return "unasked", "-"
    truth = CASES[name][-1]
    if "error" in answer:
        return ("right" if truth is None else "lost"), answer["error"]
    loss, slope = np.array(answer["loss"], float), np.array(answer["slope"], float)
    if truth is None:
        right = bool(np.isnan(loss).any() and np.isnan(slope).any())
    else:
        want_loss, want_slope = (np.array(x, float).ravel() for x in truth)
        same: Any = {"rtol": 1e-5, "atol": 1e-6, "equal_nan": True}
        right = np.allclose(loss, want_loss, **same) and np.allclose(slope, want_slope, **same)
    shown = f"{loss[-1]:.4g}" if loss.size else "[]"
    if right:
        return "right", shown.replace("nan", "NaN")
    if (peer, name) in DOCUMENTED:
        return "right", f"{shown} (documented)"
    lost = truth is not None and bool(np.isnan(loss).any() or np.isnan(slope).any())
    # The wrong half is shown where the loss alone would look right.
    alike = truth is not None and np.allclose(loss, truth[0], rtol=1e-5, equal_nan=True)
    if alike or (truth is None and np.isnan(loss).any()):
        shown += ", slope " + " ".join(f"{s:.3g}" for s in slope[-2:])
    shown = shown.replace("nan", "NaN")
    return ("lost", f"*{shown}*") if lost else ("silent", f"**{shown}**")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PYTHON")
    parser.add_argument("--write", type=Path, metavar="README")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        print("\n" + json.dumps(answers(options.peer)))
        return 0
    pythons = dict.fromkeys(("jgraph", "jgraph-jit", "optax"), sys.executable)
    pythons |= dict(item.split("=", 1) for item in options.python)
    found = {}
    for peer, python in pythons.items():
        command = [python, __file__, "--peer", peer]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[peer] = json.loads(out.splitlines()[-1])
    text, wrong = table(found)
    print(text)
    if options.write:
        begin, end = MARKERS
        page = options.write.read_text()
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        # A function: backslashes in the table are no references.
        options.write.write_text(re.sub(pattern, lambda _: begin + text + end, page, flags=re.S))
    return 1 if any(wrong[p] for p in ("jgraph", "jgraph-jit")) else 0


def table(found: dict[str, dict[str, Any]]) -> tuple[str, dict[str, int]]:
    """Return the table, and how often each library isn't right."""
    peers = [p for p in PEERS if p in found]
    verdicts: dict[str, list[str]] = {p: [] for p in peers}
    lines = [
        "| case | right answer | " + " | ".join(PEERS[p] for p in peers) + " |",
        "| --- |" + " --- |" * (len(peers) + 1),
    ]
    for name, (_, _, _, truth) in CASES.items():
        cells = []
        for peer in peers:
            verdict, cell = judge(peer, name, found[peer].get(name))
            verdicts[peer].append(verdict)
            cells.append(cell)
        want = "none" if truth is None else f"{truth[0][-1]:.4g}".replace("nan", "NaN")
        lines.append(f"| {name} | {want} | " + " | ".join(cells) + " |")
    for verdict, title in (("silent", "**silently wrong**"), ("lost", "*NaN, not the limit*")):
        counts = [f"{v.count(verdict)} of {len(v) - v.count('unasked')}" for v in verdicts.values()]
        lines.append(f"| {title} | | " + " | ".join(counts) + " |")
    wrong = {p: v.count("silent") + v.count("lost") for p, v in verdicts.items()}
    return "\n".join(lines) + "\n", wrong


if __name__ == "__main__":
    sys.exit(main())
