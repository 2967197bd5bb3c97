"""Tracebacks end at the user's line, and so do sentences, in jgraph's networks and losses too."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jgraph as jg
from jgraph.debug._frames import place_of_error

SCRIPT = """
import sys

import jax.numpy as jnp
from flax import nnx

import jgraph as jg


class Net(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        if sys.argv[1] == "shape":
            return x @ jnp.ones((3, 3))  # here: shape
        return self.first(jnp.inf * x)  # here: nan


def loss_fn(model, x):
    return model(x).sum()


def train(model, x):
    if sys.argv[2] == "function":
        return jg.function(loss_fn)(model, x)
    with jg.debug_mode():
        return nnx.grad(loss_fn)(model, x)


train(Net(), jnp.ones((2, 4)))
"""


@pytest.mark.parametrize(
    ("wrong", "way", "last"),
    [
        ("nan", "debug", "FloatingPointError: dot_general made NaN"),
        ("shape", "debug", "TypeError: dot_general requires"),
        ("shape", "function", "TypeError: dot_general requires"),
    ],
)
def test_the_last_line_that_the_terminal_prints_is_the_users(
    wrong: str, way: str, last: str, tmp_path: Path
) -> None:
    file = tmp_path / "train.py"
    file.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JGRAPH_DEBUG": "0"}
    done = subprocess.run(
        [sys.executable, file, wrong, way], env=env, capture_output=True, text=True, check=False
    )
    lines = done.stderr.splitlines()
    number = next(i for i, x in enumerate(SCRIPT.splitlines(), 1) if x.endswith(f"# here: {wrong}"))
    frames = [line.strip() for line in lines if line.startswith('  File "')]
    assert frames[-1] == f'File "{file}", line {number}, in __call__', done.stderr
    assert any(line.startswith(last) for line in lines)
    assert not any("jgraph/debug" in frame for frame in frames)
    assert done.returncode == 1


def failing() -> None:
    try:
        jnp.matmul(jnp.ones(3), jnp.ones(2))
    except TypeError as error:
        error.add_note("a note")
        raise RuntimeError("from it") from error


def test_causes_and_notes_stay_and_so_do_all_frames_on_request() -> None:
    with pytest.raises(RuntimeError) as told, jg.debug_mode():
        failing()
    cause = told.value.__cause__
    assert isinstance(cause, TypeError)
    assert "a note" in cause.__notes__
    assert told.traceback[-1].name == "failing"
    jax.config.update("jax_traceback_filtering", "off")
    try:
        with pytest.raises(FloatingPointError) as told, jg.debug_mode():
            jnp.log(-jnp.ones(2))
    finally:
        jax.config.update("jax_traceback_filtering", "auto")
    files = [frame.filename for frame in traceback.extract_tb(told.value.__traceback__)]
    assert "_nonfinite.py" in files[-1]
    assert any("/jax/_src/" in file for file in files)


def test_frames_of_other_libraries_stay_where_these_raise() -> None:
    layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError) as told, jg.debug_mode():
        layer(jnp.ones((2, 3)))
    assert any("/flax/nnx/" in str(frame.path) for frame in told.traceback)


def at(mark: str) -> str:
    lines = inspect.getsource(sys.modules[__name__]).splitlines()
    number = next(i for i, line in enumerate(lines, 1) if line.endswith(f"# here: {mark}"))
    return f" at test_debug_tracebacks.py:{number} "


def test_a_loss_of_jgraph_is_named_with_the_line_that_calls_it() -> None:
    logits, labels = jnp.full((2, 3), jnp.inf), jnp.zeros(2, jnp.int32)
    with pytest.raises(FloatingPointError) as told, jg.debug_mode():
        jg.losses.sparse_softmax_cross_entropy(logits, labels)  # here: loss
    assert at("loss") + "(in jgraph.losses.sparse_softmax_cross_entropy)," in str(told.value)


def test_a_network_of_jgraph_is_named_by_its_path_and_the_line_that_calls_it() -> None:
    config = jg.models.GPTConfig(vocab_size=5, context=4, width=4, depth=2, heads=1)
    model = jg.models.GPT(config, rngs=nnx.Rngs(0))
    up = model.blocks[1].mlp.up
    up.kernel[...] = jnp.full_like(up.kernel[...], jnp.inf)
    with pytest.raises(FloatingPointError) as told, jg.debug_mode():
        model(jnp.zeros((1, 4), jnp.int32))  # here: network
    assert at("network") + "in model.blocks[1].mlp.up," in str(told.value)


def test_where_no_line_is_the_users_one_of_the_network_is_named() -> None:
    config = jg.models.GPTConfig(vocab_size=5, context=4, width=4, depth=1, heads=1)
    model = jg.models.GPT(config, rngs=nnx.Rngs(0))
    with pytest.raises(Exception, match=r".") as told:
        model.blocks[0].mlp(jnp.zeros((1, 4, 3)))
    steps = told.value.__traceback__
    assert steps is not None
    place, _ = place_of_error(told.value.with_traceback(steps.tb_next))  # without this test's line
    assert place.line is not None
    assert place.line.startswith("_modeling.py:")
