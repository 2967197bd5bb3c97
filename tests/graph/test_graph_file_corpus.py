"""Every program of the corpus survives being a file, under this JAX and from another one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

import jgraph as jg
from jgraph.graph._file import _custom
from jgraph.graph._file._table import BY_PRIMITIVE
from tests.graph.graph_corpus import CORPUS, LARGE, NETWORKS, Program
from tests.graph.graph_corpus_files import COMMITTED, differences, file_name, read_case

ROOT = Path(__file__).parents[2]
GRAPHS = ROOT / "tests" / "data" / "graphs"
QUICK = {
    *("gpt", "loss sparse_softmax_cross_entropy", "loss linear_softmax_cross_entropy, gradient"),
    *("optimizer chain", "shapes", "gather", "scatter", "loops", "branches", "order", "random"),
    *("half precision", "pools, gradient", "remat, gradient", "own rules", "complex arrays"),
    *("while", "symbolic", "symbolic picture"),
}
"""What every run of the tests passes through a file; the rest is slow in sum."""
SLOW = {*LARGE, "lite0", "gpt step"}
SMALL = [name for name in CORPUS if name not in LARGE]
# The same operations in another order round differently; sums of bfloat16 more so.
TOLERANCE = 2e-5

# What a loaded program lacks or has in addition, for JAX's public functions add or leave it out.
_EQUAL = {
    "add_any": "add",  # the sum of two cotangents
    "empty2": "broadcast_in_dim",
    "empty": "broadcast_in_dim",
}
_LEFT_OUT = {"convert_element_type"}  # to the type it has
_ADDED = {
    "call_hi_primitive": {  # searchsorted's loop
        *("add", "and", "broadcast_in_dim", "div", "eq", "gather", "le", "ne", "or", "scan"),
        *("select_n", "squeeze", "sub"),
    },
    "cond": {"clamp"},  # of the index
    "dim_as_value": {"convert_element_type"},
    "cholesky": {"iota", "add", "ge", "broadcast_in_dim", "select_n"},  # the lower triangle
    "convert_element_type": {"real"},
    "device_put": set(),
    "platform_index": {"cond"},
    "le_to": {"broadcast_in_dim", "ne", "and", "or", "le", "eq"},
    "lt_to": {"broadcast_in_dim", "ne", "and", "or", "lt", "eq"},
    "select_and_scatter_add": {"reduce_window_max", "reduce_window_min"},  # what it is derived of
}


def saved(program: Program, path: Path) -> jg.Graph:
    program.graph.save(path, state=program.state)
    return jg.Graph.load(path)


def apply_flat(graph: jg.Graph, state: Any, arguments: Any) -> list[jax.Array]:
    return jax.tree.leaves(graph.apply(state, *arguments))


def worst(left: Any, right: Any) -> float:
    left, right = jax.tree.leaves(left), jax.tree.leaves(right)
    assert [(x.shape, x.dtype) for x in left] == [(x.shape, x.dtype) for x in right]
    return max(differences(left, right), default=0.0)


def value_and_gradient(graph: jg.Graph, state: Any, arguments: Any) -> Any:
    """All outputs, and the gradient of their sum for whatever is a float."""
    leaves, structure = jax.tree.flatten((state, arguments))
    floats = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]

    def run(chosen: list[Any]) -> tuple[Any, Any]:
        whole = list(leaves)
        for i, x in zip(floats, chosen, strict=True):
            whole[i] = x
        out = apply_flat(graph, *jax.tree.unflatten(structure, whole))
        total = sum(
            (x.astype(jnp.float32).sum() for x in out if jnp.issubdtype(x.dtype, jnp.floating)),
            jnp.float32(0),
        )
        return total, out

    gradient, out = jax.jit(jax.grad(run, has_aux=True))([leaves[i] for i in floats])
    return out, gradient


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CORPUS]
)
def test_a_program_survives_being_a_file(name: str, tmp_path: Path) -> None:
    program = CORPUS[name]()
    loaded = saved(program, tmp_path / "a.graph")
    assert worst(
        apply_flat(program.source, program.state, program.arguments),
        apply_flat(loaded, loaded.state, program.arguments),
    ) <= tolerance_of(name)
    loaded.save(tmp_path / "b.graph")
    assert (tmp_path / "b.graph").read_bytes() == (tmp_path / "a.graph").read_bytes()
    assert difference_of_operations(program.graph, loaded) == {}


@pytest.fixture(autouse=True)
def _standard_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """JAX lowers products of bfloat16 to float32 by its ordinary rules."""
    name = str(getattr(request.node, "callspec", request.node))
    how = "standard" if "gpt" in name and "step" in name else "strict"
    with jax.numpy_dtype_promotion(how):
        yield


def tolerance_of(name: str) -> float:
    if name == "lite0 gradient":
        return 0.1  # the slopes of statistics of few values, in which rounding grows
    return 2e-2 if name in ("gpt step", "half precision, gradient") else TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CORPUS if ", gradient" not in n])
def test_the_gradient_of_a_loaded_program_is_that_of_the_program(name: str, tmp_path: Path) -> None:
    program = CORPUS[name]()
    loaded = saved(program, tmp_path / "a.graph")
    try:
        wanted = value_and_gradient(program.source, program.state, program.arguments)
    except (ValueError, NotImplementedError, TypeError) as error:
        with pytest.raises(type(error)):
            value_and_gradient(loaded, loaded.state, program.arguments)
        return
    found = value_and_gradient(loaded, loaded.state, program.arguments)
    assert worst(wanted, found) <= tolerance_of(name)


@pytest.mark.parametrize("name", ["own rules", "loops", "scatter", "loss nll"])
def test_a_loaded_program_can_be_differentiated(name: str, tmp_path: Path) -> None:
    program = CORPUS[name]()
    loaded = saved(program, tmp_path / "a.graph")
    wanted = value_and_gradient(program.source, program.state, program.arguments)
    assert worst(wanted, value_and_gradient(loaded, loaded.state, program.arguments)) <= TOLERANCE


def difference_of_operations(graph: jg.Graph, loaded: jg.Graph) -> dict[str, int]:
    """How many more or fewer operations of each kind the loaded one has, but for what is known."""
    before = Counter(_EQUAL.get(op.name, op.name) for op in graph.ops)
    after = Counter(_EQUAL.get(op.name, op.name) for op in loaded.ops)
    added = {name for op, names in _ADDED.items() if op in before for name in names}
    found = {name: after[name] - before[name] for name in {*before, *after}}
    return {
        name: count
        for name, count in found.items()
        if (count < 0 and name not in {*_LEFT_OUT, *_ADDED, "broadcast_in_dim", "empty2"})
        or (count > 0 and name not in added)
    }


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NETWORKS]
)
def test_a_network_is_drawn_and_costed_as_before(name: str, tmp_path: Path) -> None:
    program = CORPUS[name]()
    loaded = saved(program, tmp_path / "a.graph")
    assert loaded.text() == program.graph.text()
    for graph, file in ((program.graph, "a.svg"), (loaded, "b.svg")):
        graph.draw(tmp_path / file)
    assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()
    costs: list[Any] = [
        jax.jit(graph.apply).lower(program.state, *program.arguments).compile().cost_analysis()
        for graph in (program.graph, loaded)
    ]
    assert costs[0]["flops"] == costs[1]["flops"] > 0


# The table.


def primitives(program: Any) -> Iterator[str]:
    """Names of all primitives of a program, and of those inside it."""
    for eqn in getattr(program, "jaxpr", program).eqns:
        yield eqn.primitive.name
        is_program = lambda x: isinstance(x, (ClosedJaxpr, Jaxpr))  # noqa: E731
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program):
            if is_program(value):
                yield from primitives(value)


@pytest.mark.slow
def test_the_table_has_every_primitive_of_the_corpus() -> None:
    known = {*BY_PRIMITIVE, *_custom.PRIMITIVES}
    missing = {
        f"{primitive}, of {name}"
        for name in SMALL
        for primitive in primitives(CORPUS[name]().graph.jaxpr)
        if primitive not in known
    }
    assert missing == set()


# Files of other versions.


@pytest.mark.parametrize("path", sorted(GRAPHS.glob("*.graph")), ids=lambda p: p.stem)
def test_files_written_earlier_give_what_they_gave(path: Path) -> None:
    found, wanted = read_case(path)
    assert worst(wanted, found) <= 1e-4  # networks; rounding of another XLA


def test_there_are_files_of_both_versions() -> None:
    made = {path.name for path in GRAPHS.glob("*.graph")}
    assert made == {
        f"{file_name(name)}-{end}.graph" for name in COMMITTED for end in ("jax0.10", "jax0.12")
    }
    assert sum(path.stat().st_size for path in GRAPHS.iterdir()) < 100_000


@pytest.mark.other_jax
@pytest.mark.parametrize("writer", ["this", "other"])
def test_files_pass_between_versions_of_jax(writer: str, tmp_path: Path) -> None:
    other = os.environ["JGRAPH_OTHER_PYTHON"]
    pythons = [sys.executable, other] if writer == "this" else [other, sys.executable]
    script, folder = str(ROOT / "scripts" / "make_graph_corpus"), str(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for python, what in zip(pythons, ("--write", "--read"), strict=True):
        done = subprocess.run(
            [python, script, what, folder], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
