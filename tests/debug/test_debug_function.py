"""Debug mode for what jgraph runs: functions, training, strategies, graph files, commands."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jgraph as jg
from jgraph import _finetune
from jgraph._cli import main
from jgraph._eager import THREAD

X = jnp.sin(jnp.arange(24.0)).reshape(8, 3)


SEEN: list[str] = []


class Net(nnx.Module):
    """A layer and statistics; it notes the types of its inputs."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.linear, self.norm = nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        SEEN.append(type(x).__name__)
        return jnp.tanh(self.norm(self.linear(x)))


def loss_fn(model: Net, batch: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
    values = ((model(batch["x"]) - 0.5) ** 2).mean(-1)
    return values, {"big": values > 0.5}


def weights(model: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(model))]


def close(got: Any, want: Any) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("debug", [None, True, False])
@pytest.mark.parametrize("around", [False, True])
def test_a_function_asks_its_option_first_and_then_the_surroundings(
    debug: bool | None, around: bool
) -> None:
    seen: list[str] = []

    @jg.function(debug=debug, donate="state")
    def step(model: Net, x: jax.Array) -> jax.Array:
        seen.append(type(x).__name__)
        loss, gradients = nnx.value_and_grad(lambda m: (m(x) ** 2).mean())(model)
        nnx.update(model, jax.tree.map(lambda p, g: p - g, nnx.state(model, nnx.Param), gradients))
        return loss

    model, other = Net(), Net()
    want = step.fn(other, X)
    if around:
        with jg.debug_mode():
            got = step(model, X)
    else:
        got = step(model, X)
    close((got, weights(model)), (want, weights(other)))
    is_compiled = debug is False or (debug is None and not around)
    assert seen == ["ArrayImpl", "DynamicJaxprTracer" if is_compiled else "ArrayImpl"]
    assert len(step.graphs) == is_compiled


def test_a_compiled_function_inside_a_gradient_in_debug_mode() -> None:
    model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    seen: list[str] = []

    @jg.function(debug=False)
    def forward(model: nnx.Linear, x: jax.Array) -> jax.Array:
        seen.append(type(x).__name__)
        return jnp.tanh(model(x))

    def loss(model: nnx.Linear, x: jax.Array) -> jax.Array:
        return (forward(model, jnp.sin(x)) ** 2).sum()

    want = nnx.grad(loss, argnums=(0, 1))(model, X)
    with jg.debug_mode():
        got = nnx.grad(loss, argnums=(0, 1))(model, X)
    close(got, want)
    assert set(seen) == {"DynamicJaxprTracer"}


def test_a_graph_is_traced_in_debug_mode_as_elsewhere() -> None:
    step = jg.function(lambda model, x: model(x))
    want = step.graph(Net(), X).text()
    with jg.debug_mode():
        assert step.graph(Net(), X).text() == want


@pytest.mark.parametrize(
    "strategy",
    [None, *(pytest.param(x, marks=pytest.mark.slow) for x in ("pmap", "data_parallel", "fsdp"))],
)
def test_training_under_every_strategy(strategy: str | None) -> None:
    batch = {"x": np.asarray(X)}
    threads: set[str] = set()

    def data() -> Iterator[dict[str, Any]]:
        while True:
            threads.add(threading.current_thread().name)
            yield batch

    def run() -> Any:
        model = Net()
        where = None if strategy is None else jg.distribute.create(strategy)
        result = jg.train_and_evaluate(
            model,
            loss_fn,
            optax.sgd(0.5),  # what has no gradient by algebra shall stay
            train=jg.TrainSpec(_Repeated(data), max_steps=3, log_every=1),
            evals={"val": jg.EvalSpec([batch], every_steps=3)},
            strategy=where,
        )
        rows = [{k: v for k, v in row.items() if k in ("loss", "big")} for row in result.history]
        return rows, weights(model), jg.evaluate(model, loss_fn, [batch], strategy=where)

    want = run()
    threads.clear()
    SEEN.clear()
    with jg.debug_mode():
        got = run()
    assert set(SEEN) == {"ArrayImpl"}
    assert threads == {threading.current_thread().name}
    close(got, want)


class _Repeated:
    def __init__(self, data: Callable[[], Iterator[Any]]) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Any]:
        return self._data()


def test_a_loaded_graph_runs_op_by_op(tmp_path: Path) -> None:
    path = tmp_path / "net.graph"
    model = Net()
    jg.function(lambda model, x: nnx.relu(model(x))).graph(model, X).save(path)
    graph = jg.Graph.load(path)

    def loss(state: dict[str, Any], x: jax.Array) -> jax.Array:
        return (graph.apply(state, x)[0] ** 2).sum()

    state = {k: v for k, v in graph.state.items() if v.dtype == jnp.float32}
    want = jax.grad(loss, argnums=(0, 1))(state, X)
    with jg.debug_mode():
        close(jax.grad(loss, argnums=(0, 1))(state, X), want)
        bad = X.at[0, 0].set(jnp.inf)
        with pytest.raises(FloatingPointError, match="made NaN"):
            graph(bad)


PROGRAM = """
import jax, jgraph as jg, jax.numpy as jnp, optax
from flax import nnx

def loss_fn(model, batch):
    print(type(model(batch)).__name__, jg.executing_eagerly())
    return model(batch).mean(-1)

model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
jg.train_and_evaluate(model, loss_fn, optax.sgd(0.1), train=jg.TrainSpec([jnp.ones((2, 2))], 1))
print(jg.function(lambda x: type(x).__name__ == "ArrayImpl")(jnp.ones(2)))
print(jg.executing_eagerly(), jax.config.jax_disable_jit)
"""


@pytest.mark.parametrize(
    ("said", "inside", "function"),
    [("1", "ArrayImpl True", "True"), ("0", "Tracer False", "False")],
)
def test_the_environment_asks_for_debug_mode(said: str, inside: str, function: str) -> None:
    environment = {**os.environ, "JGRAPH_DEBUG": said}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=True
    )
    lines = done.stdout.splitlines()
    assert all(line.endswith(inside) for line in lines[:-2])
    assert lines[-2:] == [function, "True False"]


@pytest.mark.parametrize(
    "arguments",
    [["finetune"], ["predict", "r", "p"], ["evaluate", "r", "p"], ["draw", "r"], ["inspect", "r"]],
    ids=lambda arguments: arguments[0],
)
def test_commands_run_in_debug_mode(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise jg.InputError(f"values: {THREAD.mode is not None}")

    monkeypatch.setattr(_finetune, "finetune", stop)
    monkeypatch.setattr(_finetune, "load_run", stop)
    assert main([*arguments, "--debug"]) == 2
    assert "values: True" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "values: False" in capsys.readouterr().err
