"""What goes wrong is named: the operation, the line, the module, and what went in."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import jgraph as jg
from jgraph._eager import THREAD
from jgraph.debug import locate

X = jax.random.normal(jax.random.key(1), (8, 4))


class Block(nnx.Module):
    """A layer with what may go wrong after it."""

    def __init__(self, trouble: str, rngs: nnx.Rngs) -> None:
        self.linear, self.norm = nnx.Linear(4, 4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)
        self.trouble = trouble

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(self.linear(x))
        if self.trouble == "log":
            return jnp.log(x)  # here: log
        if self.trouble == "sqrt":
            return jnp.sqrt(x * 0.0)  # here: sqrt
        if self.trouble == "jit":
            return _logarithm(x)  # here: jit
        if self.trouble == "shape":
            return x @ jnp.ones((3, 3))  # here: shape
        return x


@jax.jit
def _logarithm(x: jax.Array) -> jax.Array:
    return jnp.log(x)


class Net(nnx.Module):
    """Blocks, one of which is troubled."""

    def __init__(self, trouble: str) -> None:
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([Block(trouble if i == 2 else "", rngs) for i in range(3)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return x


def loss_fn(model: Net, x: jax.Array) -> jax.Array:
    return (model(x) ** 2).mean()


def step(trouble: str) -> Any:
    model = Net(trouble)
    return nnx.value_and_grad(loss_fn)(model, X)


def at(mark: str) -> str:
    lines = inspect.getsource(inspect.getmodule(step)).splitlines()  # pyright: ignore
    number = next(i for i, line in enumerate(lines, 1) if line.endswith(f"# here: {mark}"))
    return rf"at test_debug_located\.py:{number} in model\.blocks\[2\]"


def test_a_nan_in_the_forward_pass() -> None:
    message = (
        rf"^log made NaN \(\d+ of 32 values\) {at('log')}, forward; "
        r"its inputs: float32\[8, 4\] from -\d\.\d+ to \d\.\d+(\n|$)"
    )
    with pytest.raises(FloatingPointError, match=message), jg.debug_mode():
        step("log")
    model = Net("log")
    with pytest.raises(FloatingPointError, match=message), jg.debug_mode():
        model(X)  # without a gradient


def test_a_nan_in_the_backward_pass_has_the_place_of_the_operation() -> None:
    message = rf"^mul made NaN \(32 of 32 values\) {at('sqrt')}, backward \(gradient of sqrt\)"
    with pytest.raises(FloatingPointError, match=message), jg.debug_mode():
        step("sqrt")


def test_a_nan_in_a_backward_pass_that_was_compiled() -> None:
    def loss(x: jax.Array) -> jax.Array:
        return jnp.sqrt(x).sum()

    message = r"^the gradient of sqrt made inf \(5 of 5 values\) at test_debug_located.*, backward"
    with jg.debug_mode(check=("nan", "inf")):
        for i in (3.0, 2.0, 1.0):
            jax.grad(loss)(jnp.full(5, i))
        with pytest.raises(FloatingPointError, match=message):
            jax.grad(loss)(jnp.full(5, 0.0))


def test_a_compiled_function_is_named() -> None:
    message = rf"^_logarithm made NaN \(\d+ of 32 values\) {at('jit')}, forward"
    with pytest.raises(FloatingPointError, match=message), jg.debug_mode("functions"):
        step("jit")


def test_infinities_are_found_on_request_and_masks_are_not() -> None:
    with jg.debug_mode():
        jnp.log(jnp.arange(3.0))
    message = r"^log made inf \(1 of 3 values\) at test_debug_located"
    with pytest.raises(FloatingPointError, match=message), jg.debug_mode(check=("nan", "inf")):
        jnp.log(jnp.arange(3.0))
    with jg.debug_mode(check=("nan", "inf")):
        jax.nn.softmax(jnp.where(jnp.arange(3) > 1, -jnp.inf, 0.0))
        jnp.negative(jnp.full(2, jnp.nan) + 1)  # handed on, not made
    with jg.debug_mode(check=()):
        jnp.log(-jnp.ones(2))


def test_in_bodies_of_vmap_the_batch_is_checked() -> None:
    message = r"^log made NaN \(1 of 3 values\)"
    with pytest.raises(FloatingPointError, match=message), jg.debug_mode():
        jax.vmap(jnp.log)(jnp.array([1.0, -1.0, 2.0]))


def test_locate() -> None:
    found = locate(step, "log")
    assert found is not None
    assert re.match(rf"log made NaN .* {at('log')}, forward", found)
    assert locate(step, "") is None
    found = locate(lambda x: jnp.exp(x) * 2, jnp.full(2, 1000.0))
    assert found is not None
    assert found.startswith("exp made inf (2 of 2 values)")


def with_nan() -> Net:
    model = Net("")
    bias = model.blocks[2].linear.bias
    bias[...] = bias[...].at[1].set(jnp.nan)  # pyright: ignore[reportOptionalSubscript]
    return model


def test_the_first_operation_that_was_given_a_nan_is_named() -> None:
    given = r"add at test_debug_located\.py:\d+ in model\.blocks\[2\]\.linear was given NaN$"
    model = with_nan()
    for around in (contextlib.nullcontext(), jg.debug_mode()):
        with around:
            found = locate(lambda: nnx.value_and_grad(loss_fn)(model, X))
            assert found is not None
            assert re.match(given, found)
            assert locate(step, "") is None

    def go_on(then: Callable[[], Any]) -> None:
        loss_fn(model, X)
        with jg.debug_mode():
            then()

    made = rf"^div made NaN .*; its inputs: .*; before it, {given}"
    with pytest.raises(FloatingPointError, match=made), jg.debug_mode():
        go_on(lambda: jnp.divide(jnp.zeros(2), jnp.zeros(2)))
    with pytest.raises(KeyError) as told, jg.debug_mode():
        go_on(lambda: {}["key"])
    (note,) = told.value.__notes__
    assert re.match(f"jgraph: before it, {given}", note)


def test_a_nan_that_a_backward_pass_is_given() -> None:
    with jg.debug_mode():
        _, pull = jax.vjp(lambda x: x * 2.0, X)
        pull(jnp.full_like(X, jnp.nan))
        (given,) = THREAD.mode.given
    pattern = r"mul \(gradient of mul\) at test_debug_located\.py:\d+ was given NaN"
    assert re.fullmatch(pattern, given)


def test_training_names_who_was_given_a_nan_of_the_state() -> None:
    message = r"add at test_debug_located\.py:\d+ in model\.blocks\[2\]\.linear was given NaN"
    with pytest.raises(jg.train.NonFiniteError, match=message):
        jg.train_and_evaluate(
            with_nan(),
            lambda model, batch: (model(batch) ** 2).mean(-1),
            optax.sgd(0.1),
            train=jg.TrainSpec([X], max_steps=2),
        )


def test_training_stops_at_the_line() -> None:
    model = Net("log")
    message = rf"^log made NaN .* {at('log')}, forward"
    with pytest.raises(FloatingPointError, match=message), jg.debug_mode():
        jg.train_and_evaluate(
            model,
            lambda model, batch: model(batch).mean(-1),
            optax.sgd(0.1),
            train=jg.TrainSpec([X], max_steps=2),
        )


@pytest.mark.parametrize("debug", [True, False])
def test_an_error_in_a_module_says_which_and_what_it_was_given(debug: bool) -> None:
    run = jg.function(loss_fn, debug=debug)
    with pytest.raises(TypeError, match="dot_general requires") as told:
        run(Net("shape"), X)
    (note,) = [n for n in told.value.__notes__ if n.startswith("jgraph: ")]
    pattern = rf"jgraph: {at('shape')} \(Block\), called with \(x: float32\[8, 4\]\)\n"
    assert re.match(pattern + r"  Block\(trouble='shape'\)$", note)


def test_the_innermost_module_is_described() -> None:
    with pytest.raises(TypeError) as told, jg.debug_mode():
        Net("")(jnp.ones((2, 3)))
    (note,) = [n for n in told.value.__notes__ if n.startswith("jgraph: ")]
    assert "in Net.blocks[0].linear (Linear), called with (inputs: float32[2, 3]" in note
    assert "Linear(kernel: float32[4, 4], bias: float32[4], in_features=4, out_features=4" in note


def test_what_leaks_of_a_trace_is_named_and_is_a_value_in_debug_mode() -> None:
    kept: list[jax.Array] = []
    keep = jg.function(lambda x: kept.append(x * 2))
    use = jg.function(lambda x: x + kept[0])
    keep(X)
    with pytest.raises(jax.errors.UnexpectedTracerError, match=r"test_debug_located\.py:\d+"):
        use(X)
    kept.clear()
    with jg.debug_mode():
        keep(X)
        assert use(X)[0, 0] == 3 * X[0, 0]
