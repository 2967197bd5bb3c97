"""What a loaded graph does: everything the graph that was saved could, and more sizes."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jgraph as jg
from jgraph import losses
from jgraph.graph._file import _archive
from tests.graph.graph_corpus import call, clipped, recursive, straight_through

Reload = Callable[..., jg.Graph]


@pytest.fixture
def reload(tmp_path: Path) -> Reload:
    """Save a graph and load it."""

    def again(graph: jg.Graph, **options: Any) -> jg.Graph:
        graph.save(tmp_path / "a.graph", **options)
        return jg.Graph.load(tmp_path / "a.graph")

    return again


@pytest.fixture
def of(reload: Reload) -> Callable[..., jg.Graph]:
    """Trace a function of arrays, save it and load it."""
    return lambda function, *args, **kwargs: reload(jg.function(function).graph(*args, **kwargs))


@pytest.fixture
def linear() -> Any:
    return nnx.Linear(3, 2, rngs=nnx.Rngs(0))


def close(left: Any, right: Any) -> None:
    left, right = jax.tree.leaves(left), jax.tree.leaves(right)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def curve(x: jax.Array) -> jax.Array:
    return jnp.sin(x) * x**3


# Called and transformed.


def test_a_loaded_graph_is_called_and_transformed(of: Any, x: jax.Array) -> None:
    loaded = of(curve, x[0])
    run = lambda x: loaded(x)  # noqa: E731
    (tangent,) = (jnp.ones(3),)
    close(run(x[0]), curve(x[0]))
    close(jax.jit(run)(x[0]), curve(x[0]))
    close(jax.vmap(run)(x), curve(x))
    close(jax.jvp(run, (x[0],), (tangent,)), jax.jvp(curve, (x[0],), (tangent,)))
    close(jax.hessian(lambda x: run(x).sum())(x[0]), jax.hessian(lambda x: curve(x).sum())(x[0]))
    with jax.disable_jit():
        close(run(x[0]), curve(x[0]))


def test_a_loaded_graph_is_part_of_a_function(of: Any, x: jax.Array) -> None:
    loaded = of(curve, x)
    function = jg.function(lambda x: loaded(x) + 1)
    close(function(x), curve(x) + 1)
    assert any(op.name == "sin" for op in function.graphs[0].ops)


@pytest.mark.parametrize("strategy", [jg.distribute.DataParallel, jg.distribute.Pmap])
def test_a_loaded_graph_runs_under_a_strategy(
    strategy: Any, reload: Reload, linear: Any, x: jax.Array
) -> None:
    (n,) = jax.export.symbolic_shape("n")
    struct = jax.ShapeDtypeStruct((n, 3), jnp.float32)
    loaded = reload(jg.function(call).graph(linear, struct))
    state, devices = loaded.state, strategy(2)
    run = jg.function(
        lambda x: losses.mean(loaded.apply(state, x)[0][:, 0]).value(), strategy=devices
    )
    (batch,) = devices.batches([np.asarray(x)])
    found = run(batch)
    close(found, linear(x)[:, 0].mean())


def test_a_cast_graph_computes_in_bfloat16(reload: Reload, linear: Any, x: jax.Array) -> None:
    loaded = reload(jg.function(call).graph(linear, x))
    cast = loaded.cast(jnp.bfloat16)
    assert {v.dtype for v in cast.state.values()} == {jnp.dtype(jnp.bfloat16)}
    (op,) = (op for op in cast.ops if op.is_product)
    assert all(t.startswith("bf16") for t in (*op.inputs, *op.outputs))
    for given in (x, x.astype(jnp.bfloat16)):
        found = cast(given)
        assert found.dtype == jnp.bfloat16
        # bfloat16 has 8 bits.
        np.testing.assert_allclose(found.astype(jnp.float32), linear(x), atol=0.05)
    assert loaded(x).dtype == jnp.float32


# Sizes.


@pytest.fixture
def pictures(reload: Reload) -> jg.Graph:
    shape = jax.export.symbolic_shape("b, 32*h, 2*n + 1", constraints=["b >= 2", "h <= 3"])
    struct = jax.ShapeDtypeStruct(shape, jnp.float32)

    graph = jg.function(lambda picture: (picture.sum((1, 2)), jnp.cumsum(picture, 0)))
    return reload(graph.graph(struct))


@pytest.mark.parametrize("shape", [(2, 32, 3), (5, 64, 1), (7, 96, 9)])
def test_symbolic_sizes_are_any_that_fit(pictures: jg.Graph, shape: tuple[int, ...]) -> None:
    picture = jnp.sin(jnp.arange(np.prod(shape), dtype=jnp.float32)).reshape(shape)
    close(pictures(picture), (picture.sum((1, 2)), jnp.cumsum(picture, 0)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 33, 3), "picture must have the shape (b, 32*h, 2*n + 1), got (2, 33, 3)"),
        ((2, 32, 4), "picture must have the shape (b, 32*h, 2*n + 1), got (2, 32, 4)"),
        ((2, 32), "picture must have the shape (b, 32*h, 2*n + 1), got (2, 32)"),
        ((1, 32, 3), "the sizes must satisfy b >= 2, got b = 1, h = 1, n = 1"),
        ((2, 128, 3), "h = 4"),
    ],
)
def test_sizes_that_do_not_fit_are_told(
    pictures: jg.Graph, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(jg.InputError, match=re.escape(message)):
        pictures(jnp.zeros(shape))


def summed(*shapes: str) -> jg.Graph:
    """The sum of arrays of such sizes."""
    scope = jax.export.SymbolicScope()
    structs = [
        jax.ShapeDtypeStruct(jax.export.symbolic_shape(x, scope=scope), "float32") for x in shapes
    ]
    return jg.function(lambda *xs: sum((x.sum() for x in xs), jnp.float32(0))).graph(*structs)


@pytest.mark.parametrize(
    ("shapes", "sizes", "wrong"),
    [
        (("a + b", "a", "b"), (5, 2, 3), (6, 2, 3)),
        (("a + b", "a", "a + 2*b"), (5, 2, 8), (6, 2, 8)),
        (("2*a*b", "a + c", "c"), (24, 6, 3), (23, 6, 3)),
        (("floordiv(a, 2)", "max(a, b)", "a", "b"), (3, 9, 7, 9), (3, 9, 7, 8)),
    ],
)
def test_sizes_of_several_symbols(reload: Reload, shapes: Any, sizes: Any, wrong: Any) -> None:
    loaded = reload(summed(*shapes))
    assert loaded(*map(jnp.ones, sizes)) == sum(sizes)
    with pytest.raises(jg.InputError, match="must have the shape"):
        loaded(*map(jnp.ones, wrong))


def test_sizes_of_several_symbols_that_no_call_can_have(reload: Reload) -> None:
    with pytest.raises(jg.InputError, match=r"must be from 0 up, got a = 5, b = -2"):
        reload(summed("a + b", "a"))(jnp.ones(3), jnp.ones(5))
    with pytest.raises(jg.InputError, match="must tell b"):
        reload(summed("a*b", "a"))(jnp.ones(0), jnp.ones(0))


@pytest.mark.parametrize("shapes", [("a + b",), ("floordiv(a, 2)",), ("a*b", "a + b")])
def test_sizes_that_do_not_tell_their_symbols_cannot_be_saved(shapes: Any, tmp_path: Path) -> None:
    with pytest.raises(jg.GraphFormatError, match="must tell the value of the symbol 'a'"):
        summed(*shapes).save(tmp_path / "a.graph")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("what", ["hlo", "memory"])
def test_what_is_compiled_needs_numbers(reload: Reload, what: str) -> None:
    for graph in (summed("a"), reload(summed("a"))):
        with pytest.raises(jg.InputError, match=r"depend on a, which must have a number"):
            getattr(graph, what)


def test_inputs_of_another_dtype_are_told(of: Any, x: jax.Array) -> None:
    with pytest.raises(jg.InputError, match="x must be float32, got int32"):
        of(curve, x)(jnp.zeros((4, 3), jnp.int32))


# State, arguments and results.


def test_the_state_is_saved_or_left_out_or_another(reload: Reload, linear: Any, x: Any) -> None:
    graph = jg.function(call).graph(linear, x)
    close(reload(graph)(x), linear(x))
    other = {path: 2 * value for path, value in graph.state.items()}
    close(reload(graph, state=other)(x), graph.apply(other, x)[0])
    without = reload(graph, state=False)
    close(without.apply(graph.state, x)[0], linear(x))
    with pytest.raises(jg.InputError, match="state"):
        without(x)


def test_containers_and_keywords_and_static_values_are_kept(reload: Reload, x: jax.Array) -> None:
    def body(batch: dict[str, Any], pair: Any, power: int, *, scale: Any) -> Any:
        first, nothing = pair
        assert nothing is None
        return {"a": [batch["x"][0] ** power, None], "b": (first * scale, {})}

    function = jg.function(body, static="power")
    arguments = {"x": [x]}, (x + 1, None)
    graph = function.graph(*arguments, 2, scale=jnp.float32(3))
    loaded = reload(graph)
    found = loaded(*arguments, scale=jnp.float32(5))
    wanted = {"a": [x**2, None], "b": ((x + 1) * 5, {})}
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    close(found, wanted)
    assert list(loaded.inputs) == list(graph.inputs)
    assert list(loaded.outputs) == list(graph.outputs)
    with pytest.raises(jg.InputError, match=r"batch must have the structure"):
        loaded({"y": [x]}, (x, None), scale=jnp.float32(1))
    with pytest.raises(jg.InputError, match="takes the arguments"):
        loaded({"x": [x]}, scale=jnp.float32(1))


def test_a_graph_that_changes_state_returns_the_new_one(
    reload: Reload, net: Any, x: jax.Array
) -> None:
    model = net()
    graph = jg.function(call).graph(model, x)
    loaded = reload(graph)
    state = dict(graph.state)
    (wanted, after), (found, new) = graph.apply(state, x), loaded.apply(loaded.state, x)
    close(found, wanted)
    assert list(new) == list(after)
    for path, value in after.items():
        same = jax.random.key_data if "key" in path else lambda x: x
        np.testing.assert_allclose(same(new[path]), same(value), rtol=1e-6)
    assert not np.allclose(new["model.norm.mean"], state["model.norm.mean"])
    # Dropout drew from a key of the state, and counted.
    assert not np.allclose(loaded.apply(new, x)[0], found)


def test_a_graph_that_changes_structure(reload: Reload, counter: Any, x: jax.Array) -> None:
    module = counter(1.0)

    def body(module: Any, x: jax.Array) -> Any:
        module.extra = nnx.Variable(x.sum())
        return module, x * module.value

    graph = jg.function(body).graph(module, x)
    loaded = reload(graph)
    for (result, state), (wanted, after) in (
        (loaded.apply(loaded.state, x), graph.apply(graph.state, x)),
    ):
        close(result, wanted)
        assert state.keys() == after.keys()
        assert "module.extra" in state
        close(state, after)


def test_a_training_step_goes_on_from_its_file(reload: Reload, linear: Any, x: Any) -> None:
    def loss(model: Any, batch: Any) -> jax.Array:
        return ((model(batch) - 1) ** 2).sum(1)

    step = jg.train.make_step(linear, loss, optax.adam(0.1))
    step(x)
    graph = step.graph(x)
    loaded = reload(graph)
    assert list(loaded.state) == ["carry"]
    assert {"model.kernel", "optimizer[0].mu['kernel']"} <= loaded.state["carry"].keys()
    (_, numbers), after = loaded.apply(loaded.state, x)
    close(numbers, step(x))
    close(after, graph.state)  # as it is by now


def test_the_state_of_a_step_that_is_gone_is_kept(linear: Any, x: Any) -> None:
    step = jg.train.make_step(linear, lambda model, x: model(x)[:, 0], optax.sgd(1.0))
    graph = step.graph(x)
    del step
    gc.collect()
    close(graph.state["carry"]["model.kernel"], linear.kernel[...])


def test_state_in_bfloat16_stays_so(reload: Reload, x: jax.Array) -> None:
    model = nnx.Linear(3, 2, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    loaded = reload(jg.function(call).graph(model, x.astype(jnp.bfloat16)))
    assert {v.dtype for v in loaded.state.values()} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(loaded(x.astype(jnp.bfloat16)), model(x.astype(jnp.bfloat16)))


# Derivatives of one's own.


@pytest.mark.parametrize(
    ("function", "slope"),
    [(straight_through, 1.0), (recursive, None), (lambda x: clipped(3 * x), 1.5)],
)
def test_own_derivatives_are_kept(of: Any, function: Any, slope: float | None, x: Any) -> None:
    loaded = of(function, x)
    found = jax.grad(lambda x: loaded(x).sum())(x)
    close(found, jnp.exp(x) if slope is None else jnp.full_like(x, slope))


def test_a_rule_that_calls_its_function_can_be_differentiated_again(of: Any) -> None:
    loaded = of(recursive, jnp.float32(0.5))
    third = jax.grad(jax.grad(jax.grad(lambda x: loaded(x))))
    close(third(jnp.float32(0.5)), jnp.exp(jnp.float32(0.5)))


def with_slope(slope: Any) -> Any:
    @jax.custom_jvp
    def same(x: jax.Array) -> jax.Array:
        return x * 1

    same.defjvp(lambda primals, tangents: (primals[0] * 1, tangents[0] * slope))
    return same


@pytest.mark.parametrize("slopes", [(2.0, 5.0), (np.full(3, 2.0, "f"), np.full(3, 5.0, "f"))])
def test_equal_functions_with_other_rules_stay_apart(of: Any, slopes: Any, x: jax.Array) -> None:
    first, second = map(with_slope, slopes)
    loaded = of(lambda x: first(x) + second(x), x[0])
    close(jax.grad(lambda x: loaded(x).sum())(x[0]), jnp.full(3, 7.0))


def test_the_start_of_a_slice_is_not_counted_from_the_end(of: Any) -> None:
    def cut(x: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(x, (at,), (2,), allow_negative_indices=False)

    arguments = jnp.arange(5.0), jnp.int32(-2)
    close(of(cut, *arguments)(*arguments), jnp.array([0.0, 1.0]))  # clamped, as XLA does


# Refusals, and files that can't be written.


class Outer(nnx.Module):
    """Runs a function in a module within."""

    def __init__(self, function: Any) -> None:
        self.inner = Inner(function)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.inner(x)


class Inner(nnx.Module):
    """Runs a function."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)  # here


@pytest.mark.parametrize(
    ("name", "function"),
    [("svd", lambda x: jnp.linalg.svd(x)[0]), ("eigh", lambda x: jnp.linalg.eigh(x.T @ x)[0])],
)
def test_a_refusal_names_operation_module_and_line(
    name: str, function: Any, x: jax.Array, tmp_path: Path
) -> None:
    model = Outer(function)
    graph = jg.function(call).graph(model, x)
    message = rf"operation {name}\w* in model\.inner at .*test_graph_file_behaviour\.py:\d+"
    for save in (lambda: graph.save(tmp_path / "a.graph"), lambda: graph.cast(jnp.bfloat16)):
        with pytest.raises(jg.GraphFormatError, match=message):
            save()
    assert os.listdir(tmp_path) == []


def test_a_key_as_a_constant_is_refused(tmp_path: Path, x: jax.Array) -> None:
    key = jax.random.key(0)
    graph = jg.function(lambda x: x + jax.random.normal(key, x.shape)).graph(x)
    with pytest.raises(jg.GraphFormatError, match="random key as a constant"):
        graph.save(tmp_path / "a.graph", state=False)


def nested(depth: int) -> Any:
    function: Any = jnp.sin
    for _ in range(depth):
        function = jax.jit(lambda x, inner=function: inner(x) * 2)
    return function


def test_what_could_not_be_loaded_is_not_saved(
    tmp_path: Path, x: jax.Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = jax.export.symbolic_shape("a")
    struct = jax.ShapeDtypeStruct((a, (a + 1) ** 40), jnp.float32)
    graphs = {
        "nested more than 32 deep": jg.function(nested(70)).graph(x),
        r"inputs\[0\].shape must be a size": jg.function(jnp.cos).graph(struct),
        "must be at most 400 bytes": jg.function(curve).graph(x),
    }
    for match, graph in graphs.items():
        if "bytes" in match:
            monkeypatch.setattr(_archive, "_MAX_GRAPH_BYTES", 400)
        with pytest.raises(jg.GraphFormatError, match=f"can't be saved.*{match}"):
            graph.save(tmp_path / "a.graph")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_that_is_cut_short_says_so(share: float, tmp_path: Path, linear: Any) -> None:
    path = tmp_path / "a.graph"
    jg.function(call).graph(linear, jnp.ones((1, 3))).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(jg.GraphFormatError, match=r"a\.graph.* is (cut short|empty)"):
        jg.Graph.load(path)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, x: jax.Array) -> None:
    graph = jg.function(curve).graph(x)
    with pytest.raises(jg.InputError, match="must be a folder"):
        graph.save(tmp_path / "none" / "a.graph", state=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_file(
    error: type[BaseException], tmp_path: Path, x: jax.Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = jg.function(curve).graph(x)
    graph.save(tmp_path / "a.graph", state=False)
    before = (tmp_path / "a.graph").read_bytes()

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(error):
        jg.function(jnp.cos).graph(x).save(tmp_path / "a.graph", state=False)
    assert os.listdir(tmp_path) == ["a.graph"]
    assert (tmp_path / "a.graph").read_bytes() == before


# Time and size.


_MEASURE = """
import os, sys, time
import jgraph as jg
from tests.graph.graph_corpus import lite0

def seconds(run):
    started = time.perf_counter()
    run()
    return time.perf_counter() - started

graph, path = lite0(224, batch=1).graph, sys.argv[1]
save = seconds(lambda: graph.save(path, state=False))
load = min(seconds(lambda: jg.Graph.load(path)) for _ in range(5))
print(save, load, os.path.getsize(path))
"""


@pytest.mark.slow
def test_the_file_of_a_network_is_small_and_quick(tmp_path: Path) -> None:
    # In a process of its own, where nothing checks types.
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path / "a.graph")],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    save, load, size = map(float, done.stdout.split())
    assert size <= 20_000
    # Three times what is aimed at, for a busy machine.
    assert load <= 3 * 0.050
    assert save <= 3 * 3.0


def test_a_loaded_graph_is_traced_again_with_open_sizes(tmp_path):
    def area(x):
        return x.sum() * x.shape[0]

    b, h = jax.export.symbolic_shape("b, h")
    struct = jax.ShapeDtypeStruct((b, 2 * h), jnp.float32)
    jg.function(area).graph(struct).save(tmp_path / "a.graph", state=False)
    loaded = jg.Graph.load(tmp_path / "a.graph")
    again = jg.function(lambda x: loaded.apply({}, x)[0]).graph(struct)
    again.save(tmp_path / "b.graph", state=False)
    x = jnp.ones((3, 4))
    assert jg.Graph.load(tmp_path / "b.graph").apply({}, x)[0] == area(x)


@pytest.mark.slow
def test_a_loss_with_whole_numbers_is_saved_with_open_sizes(tmp_path):
    (b,) = jax.export.symbolic_shape("b")
    logits, labels = (
        jax.ShapeDtypeStruct((b, 3), jnp.float32),
        jax.ShapeDtypeStruct((b,), jnp.int32),
    )

    def loss(logits, labels):
        return jg.losses.sparse_softmax_cross_entropy(logits, labels)

    jg.function(loss).graph(logits, labels).save(tmp_path / "l.graph", state=False)
    loaded = jg.Graph.load(tmp_path / "l.graph")
    x, y = jnp.arange(12.0).reshape(4, 3), jnp.array([0, 1, 2, 0])
    assert jnp.allclose(loaded.apply({}, x, y)[0], loss(x, y))
    found = jax.grad(lambda x: loaded.apply({}, x, y)[0].sum())(x)
    assert jnp.allclose(found, jax.grad(lambda x: loss(x, y).sum())(x), atol=1e-6)


def test_a_graph_with_dropout_is_cast():
    model = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    graph = jg.function(lambda model, x: model(x)).graph(model, jnp.ones((4, 64)))
    found = graph.cast(jnp.bfloat16)(jnp.ones((4, 64)))
    assert found.dtype == jnp.bfloat16
    assert set(found.ravel().tolist()) == {0.0, 2.0}
    assert 0.3 < float((found == 0).mean()) < 0.7
