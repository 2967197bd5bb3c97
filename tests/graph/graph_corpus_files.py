"""Graph files beside what they were given and what they gave, for another version to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jgraph as jg
from tests.graph.graph_corpus import CORPUS

COMMITTED = (
    *("lstm", "loss sparse_softmax_cross_entropy, gradient", "optimizer adamw"),
    *("own rules", "scatter", "gather", "loops", "branches", "random", "symbolic"),
)


def write_case(name: str, folder: Path, label: str = "") -> None:
    """Write NAME.graph, and NAME.npz with its inputs and outputs."""
    program = CORPUS[name]()
    stem = file_name(name) + label
    program.graph.save(folder / f"{stem}.graph", state=program.state)
    outputs = jax.jit(program.source.apply)(program.state, *program.arguments)
    arrays = {
        **{f"in{i}": x for i, x in enumerate(jax.tree.leaves(program.arguments))},
        **{f"out{i}": _plain(x) for i, x in enumerate(jax.tree.leaves(outputs))},
    }
    np.savez_compressed(folder / f"{stem}.npz", **arrays)


def file_name(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def read_case(path: Path) -> tuple[list[jax.Array], list[Any]]:
    """Load and run a file; return its outputs and those it gave when it was written."""
    graph = jg.Graph.load(path)
    with np.load(path.with_suffix(".npz")) as arrays:
        stored = {name: arrays[name] for name in arrays.files}
    given = [jnp.asarray(stored[f"in{i}"]) for i in range(_count(stored, "in"))]
    is_batch = list(graph.inputs) == ["batch['tokens']"]
    arguments = [{"tokens": given[0]}] if is_batch else given
    found = jax.tree.leaves(jax.jit(graph.apply)(graph.state, *arguments))
    wanted = [jnp.asarray(stored[f"out{i}"]) for i in range(_count(stored, "out"))]
    return [jnp.asarray(_plain(x)) for x in found], wanted


def differences(left: Sequence[Any], right: Sequence[Any]) -> Iterator[float]:
    """For each pair of arrays its largest difference, beside the largest number in it."""
    for a, b in zip(left, right, strict=True):
        a, b = np.asarray(_plain(a)), np.asarray(_plain(b))
        wide = np.complex128 if np.iscomplexobj(a) else np.float64
        a, b = a.astype(wide), b.astype(wide)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        scale = np.max(np.abs(b[np.isfinite(b)]), initial=1e-3)
        yield float(np.max(np.where(same, 0.0, np.abs(a - b)), initial=0.0) / scale)


def _count(stored: dict[str, Any], kind: str) -> int:
    return sum(name.startswith(kind) for name in stored)


def _plain(x: Any) -> Any:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(x))
    return np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x)
