"""Debug mode holds in its thread, restores everything, frees what it has used, and falls back."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src import ad_checkpoint, api, config
from jax._src.interpreters import batching

import jgraph as jg
from jgraph._eager import THREAD, jit_is_off
from jgraph.debug import _engine as engine
from jgraph.debug import _mode as mode

X = jnp.array([0.5, 1.5, 2.5])


def state() -> list[Any]:
    """Everything that debug mode changes in this thread and in JAX."""
    tracer = [vars(jax.core.Tracer).get(name) for name in ("__repr__", "__array__", "item")]
    trace = jax.extend.core.find_top_trace(())
    return [
        *(api.vjp, jax.vjp, api._jvp, batching.batch, ad_checkpoint._trace_to_jaxpr),
        *(ad_checkpoint.remat3, jax.extend.core.get_opaque_trace_state, *tracer, trace),
        *(THREAD.mode, jit_is_off()),
    ]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Every test here leaves everything as it was."""
    before = state()
    yield
    assert all(a is b or a == b for a, b in zip(state(), before, strict=True))


def kind(x: Any) -> str:
    return type(x).__name__


def gradient(seen: list[str]) -> jax.Array:
    def loss(x: jax.Array) -> jax.Array:
        seen.append(kind(x))
        return (jnp.sin(x) * x).sum()

    return jax.grad(loss)(X)


def test_everything_is_as_before_after_an_exception() -> None:
    before = state()[:7]

    def loss(x: jax.Array) -> jax.Array:
        assert all(a is not b for a, b in zip(state()[:7], before, strict=True))
        raise KeyError

    with pytest.raises(KeyError), jg.debug_mode():
        jax.grad(loss)(1.0)


def test_it_may_be_entered_again() -> None:
    seen: list[str] = []

    def row(x: jax.Array) -> jax.Array:
        seen.append(kind(x))
        return x

    def inner() -> None:
        with jg.debug_mode("functions", vmap="loop"):
            assert not jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
            assert jit_is_off()
            jax.vmap(row)(X)
            raise KeyError

    with jg.debug_mode():
        with pytest.raises(KeyError):
            inner()
        gradient(seen)
        jax.vmap(row)(X)
        assert THREAD.mode.vmap == "batch"
    assert seen == ["ArrayImpl"] * 4 + ["BatchTracer"]


def test_other_threads_are_compiled() -> None:
    inside: list[str] = []
    outside: list[str] = []
    stop = threading.Event()
    started = threading.Event()

    def other() -> None:
        while not stop.is_set():
            gradient(outside)
            outside.append(repr(jg.executing_eagerly()))
            jax.jit(jax.grad(lambda x: (outside.append(kind(x)), x**2)[1]))(1.0)
            started.set()

    thread = threading.Thread(target=other)
    with jg.debug_mode():
        thread.start()
        assert started.wait(60)
        for _ in range(5):
            gradient(inside)
        stop.set()
        thread.join()
    assert set(inside) == {"ArrayImpl"}
    assert set(outside) == {"LinearizeTracer", "True"}


def test_threads_in_debug_mode_at_once() -> None:
    want = gradient([])
    found: dict[int, Any] = {}
    seen: list[str] = []

    def run(number: int) -> None:
        with jg.debug_mode():
            found[number] = gradient(seen)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {"ArrayImpl"}
    for value in found.values():
        np.testing.assert_allclose(value, want, rtol=1e-6)
    assert len(found) == 4


def test_inside_a_compiled_function_there_are_no_values() -> None:
    seen: list[str] = []

    @jax.jit
    def f(x: jax.Array) -> jax.Array:
        with jg.debug_mode():
            seen.append(kind(x))
            return jax.grad(lambda x: (x**2).sum())(x)

    np.testing.assert_allclose(f(X), 2 * X)
    assert seen == ["DynamicJaxprTracer"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "some"}, "level must be 'all' or 'functions', got 'some'"),
        ({"check": "nan"}, "check must hold 'nan', 'inf', both or nothing, got 'nan'"),
        ({"check": ("zero",)}, "check must hold"),
        ({"vmap": "rows"}, "vmap must be 'batch' or 'loop', got 'rows'"),
    ],
)
def test_options_are_checked(options: Any, message: str) -> None:
    with pytest.raises(jg.InputError, match=message), jg.debug_mode(**options):
        pass


def test_a_tape_is_freed_while_it_is_played() -> None:
    intermediate: list[Any] = []
    alive: list[int] = []

    @jax.custom_vjp
    def first(x: jax.Array) -> jax.Array:
        return x * 1

    def backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
        alive.append(sum(x() is not None for x in intermediate))
        return (cotangent,)

    first.defvjp(lambda x: (x * 1, None), backward)

    def loss(x: jax.Array) -> jax.Array:
        x = first(x)
        for _ in range(20):
            x = jnp.sin(x)
            intermediate.append(weakref.ref(x))
        return x.sum()

    gc.disable()  # nothing here may need the collector
    try:
        with jg.debug_mode():
            jax.grad(loss)(jnp.ones(100))
        assert not any(x() is not None for x in intermediate)
    finally:
        gc.enable()
    assert alive[0] <= 1


def test_memory_does_not_grow_with_steps() -> None:
    model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

    def step() -> None:
        _, gradients = nnx.value_and_grad(lambda m: (m(X) ** 2).sum())(model)
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(model), gradients))

    def count() -> int:
        gc.collect()
        return len(jax.live_arrays())

    with jg.debug_mode():
        for _ in range(5):
            step()
        before = count()
        for _ in range(200):
            step()
        assert count() <= before


class Net(nnx.Module):
    """Everything that changes while a network trains."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.seen: list[str] = nnx.static([])

    def block(self, x: jax.Array) -> jax.Array:
        self.seen.append(kind(x))
        return jnp.tanh(self.second(x))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.drop(self.norm(self.first(x)))
        return nnx.remat(Net.block)(self, x)


@pytest.mark.slow
def test_networks_that_change_while_they_train() -> None:
    def run() -> Any:
        model = Net()
        x = jnp.sin(jnp.arange(12.0)).reshape(4, 3)
        gradients = [nnx.grad(lambda m: (m(x) ** 2).sum())(model) for _ in range(2)]
        model(x)
        return gradients, nnx.state(model, nnx.BatchStat), nnx.state(model, nnx.RngCount), model

    *want, _ = run()
    with jg.debug_mode():
        *got, model = run()
    assert set(model.seen) == {"ArrayImpl"}
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    with jg.debug_mode():
        model(jnp.ones((2, 3)))  # made inside, changed inside again


def test_a_value_that_vmap_has_not_got_names_the_loop() -> None:
    wanted = pytest.raises(jax.errors.ConcretizationTypeError)
    with wanted as caught, jg.debug_mode(), jg.debug_mode():
        jax.vmap(lambda x: jnp.sin(x) * float(x.sum()))(X)
    assert sum('jg.debug_mode(vmap="loop")' in note for note in caught.value.__notes__) == 1


def test_nnx_scan_and_vmap() -> None:
    seen: list[str] = []

    class Cell(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.linear = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            seen.append(kind(x))
            return jnp.tanh(self.linear(x))

    @nnx.split_rngs(splits=4)
    @nnx.vmap
    def make(rngs: nnx.Rngs) -> Cell:
        return Cell(rngs)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def run(cell: Cell, x: jax.Array) -> jax.Array:
        return cell(x)

    cells = make(nnx.Rngs(0))

    def loss(cells: Cell) -> jax.Array:
        return (run(cells, X) ** 2).sum()

    want = nnx.grad(loss)(cells)
    seen.clear()
    with jg.debug_mode():
        got = nnx.grad(loss)(cells)
        make(nnx.Rngs(0))
    assert seen == ["ArrayImpl"] * 4
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_executing_eagerly() -> None:
    def ask(told: list[bool]) -> Callable[[jax.Array], jax.Array]:
        return lambda x: (told.append(jg.executing_eagerly()), x)[1]

    told: list[bool] = []
    assert jg.executing_eagerly()
    jax.jit(ask(told))(1.0)
    jax.grad(ask(told))(1.0)
    jax.vmap(ask(told))(X)
    assert told == [False] * 3
    told.clear()
    with jg.debug_mode():
        assert jg.executing_eagerly()
        jax.jit(ask(told))(1.0)
        jax.grad(ask(told))(1.0)
        jax.vmap(ask(told))(X)
        with jg.debug_mode(vmap="loop"):
            jax.vmap(ask(told))(X[:1])
    assert told == [True, True, False, True]


def test_numpy_takes_lists() -> None:
    x = [[2.0]]
    m = jg.numpy.matmul(x, x)
    assert f"hello, {m}" == "hello, [[4.]]"
    with pytest.raises(TypeError):
        jnp.matmul(x, x)  # pyright: ignore[reportArgumentType]
    assert float(jg.numpy.linalg.norm([3.0, 4.0])) == 5
    assert jg.numpy.concatenate([jnp.ones(1), jnp.ones(2)]).shape == (3,)
    assert jg.numpy.float32 is jnp.float32
    assert jg.numpy.pi == np.pi
    with pytest.raises(TypeError, match="dot"):
        jg.numpy.dot("a", "b")
    with pytest.raises(AttributeError, match="nothing"):
        _ = jg.numpy.nothing


def test_remat_is_the_plain_function_in_debug_mode() -> None:
    seen: list[str] = []

    @jg.remat(policy=jax.checkpoint_policies.dots_saveable)
    def f(x: jax.Array) -> jax.Array:
        seen.append(kind(x))
        return jnp.sin(x)

    want = jax.grad(lambda x: f(x).sum())(X)
    text = str(jax.make_jaxpr(f)(X))
    assert "remat" in text or "checkpoint" in text
    seen.clear()
    with jg.debug_mode():
        np.testing.assert_allclose(jax.grad(lambda x: f(x).sum())(X), want, rtol=1e-6)
        jax.vmap(f)(X)
    assert seen == ["ArrayImpl", "BatchTracer"]


def test_an_unknown_jax_warns_once_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AttributeError("module 'core' has no attribute 'Trace'")

    monkeypatch.setattr(engine, "self_test", fail)
    mode._tested_engine.cache_clear()
    seen: list[str] = []
    shown: list[str] = []

    def loss(x: jax.Array) -> jax.Array:
        seen.append(kind(x))
        shown.extend((f"{float(x.sum()):.1f}", str(x), f"{np.asarray(x)}", repr(x[0].item())))
        return jax.lax.cond(x[0] > 0, lambda x: jg.remat(jnp.sin)(x), jnp.cos, x).sum()

    def run() -> jax.Array:
        with jg.debug_mode():
            assert jit_is_off()
        with jg.debug_mode():
            return jax.grad(loss)(X)

    try:
        with pytest.warns(RuntimeWarning, match="jgraph doesn't know the inside of jax") as told:
            found = run()
        assert len(told) == 1
        assert jg.executing_eagerly()
        assert not jax.jit(lambda: jg.executing_eagerly())()
    finally:
        mode._tested_engine.cache_clear()
    np.testing.assert_allclose(found, jnp.cos(X), rtol=1e-6)
    assert seen == ["LinearizeTracer"]
    assert shown[:4] == ["4.5", "[0.5 1.5 2.5]", "[0.5 1.5 2.5]", "0.5"]


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="JAX 0.12's other jax.checkpoint")
def test_newer_remat() -> None:
    seen: list[str] = []
    with config.remat3(True):
        f = jax.checkpoint(lambda x: (seen.append(kind(x)), jnp.sin(x) * x)[1])
        want = jax.grad(lambda x: f(x).sum())(X)
        seen.clear()
        with jg.debug_mode():
            got = jax.grad(lambda x: f(x).sum())(X)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert seen == ["ArrayImpl"]


def test_the_first_question_may_come_from_within_a_trace():
    code = """
import warnings; warnings.simplefilter("error")
import jax, jax.numpy as jnp, jgraph as jg
def f(x):
    assert not jg.executing_eagerly()
    return jnp.tanh(x).sum()
jax.jit(f)(jnp.ones(2))
kinds = []
with jg.debug_mode():
    jax.grad(lambda x: kinds.append(type(jnp.tanh(x)).__name__) or x.sum())(jnp.ones(2))
assert kinds == ["ArrayImpl"], kinds
"""
    root = Path(jg.__file__).parents[1]
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
