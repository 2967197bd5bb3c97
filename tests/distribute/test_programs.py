"""The programs of docs/programs.md, run as they stand: the same numbers under every strategy."""

from __future__ import annotations

import functools
import pathlib
import re
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

import jgraph as jg

PAGE = (pathlib.Path(jg.__file__).parents[1] / "docs" / "programs.md").read_text("utf-8")
# The chapters, by the first words of their headings.
PROGRAMS = dict(re.findall(r"\n## ([\w ]+).*?```python\n(.*?)```", PAGE, re.DOTALL))
MODELS = {
    "A GAN": ("generator", "discriminator"),
    "Distillation": ("model",),
    "Several tasks": ("model",),
    "A contrastive loss": ("model",),
}
CHOICE = "strategy = jg.distribute.auto()\n"
STRATEGIES = {
    "DataParallel": jg.distribute.DataParallel,
    "Pmap": jg.distribute.Pmap,
    "FSDP": lambda: jg.distribute.FSDP(min_size=16),
}


class Outcome(NamedTuple):
    """What a program has done."""

    names: dict[str, Any]
    history: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]


def run(program: str, strategy: jg.distribute.Strategy) -> Outcome:
    assert CHOICE in PROGRAMS[program]
    code = PROGRAMS[program].replace(CHOICE, "strategy = chosen\n")
    names: dict[str, Any] = {"__name__": "program", "chosen": strategy}
    exec(compile(code, "docs/programs.md", "exec"), names)
    history = names["history"] if "history" in names else names["result"].history
    return Outcome(names, jax.device_get(history), arrays_of(names, MODELS[program]))


def arrays_of(names: dict[str, Any], models: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {
        f"{name}{jax.tree_util.keystr(path)}": np.array(x)
        for name in models
        for path, x in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(names[name])))
        if jax.numpy.issubdtype(x.dtype, jax.numpy.floating)
    }


@functools.cache
def on_one_device(program: str) -> Outcome:
    return run(program, jg.distribute.OneDevice())


def test_every_program_is_tested() -> None:
    assert list(PROGRAMS) == list(MODELS)
    assert PAGE.count("```python") == len(PROGRAMS)
    for code in PROGRAMS.values():
        without_choice = code.replace(CHOICE, "")
        assert re.findall("devices|axis_name|psum|sharding|pmap|mesh", without_choice) == []


@pytest.mark.slow  # the tests of the loop run each strategy
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_equals_one_device(program: str, name: str) -> None:
    one, many = on_one_device(program), run(program, STRATEGIES[name]())
    assert len(many.history) == len(one.history) >= 12
    for expected, row in zip(one.history, many.history, strict=True):
        assert row.keys() == expected.keys()
        for key in row.keys() - {"set"}:
            assert abs(row[key] - expected[key]) <= 2e-6, key
    assert many.arrays.keys() == one.arrays.keys()
    for path, array in many.arrays.items():
        np.testing.assert_allclose(array, one.arrays[path], rtol=0, atol=1e-6, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "number"),
    [("Distillation", "loss"), ("Several tasks", "kind_loss"), ("A contrastive loss", "loss")],
)
def test_learns(program: str, number: str) -> None:
    history = on_one_device(program).history
    first, last = history[0], history[9]  # the same batch, three epochs later
    assert last[number] < 0.8 * first[number]


@pytest.mark.slow
def test_the_teacher_is_untouched() -> None:
    one = on_one_device("Distillation")
    taught = arrays_of({"model": one.names["taught"]}, ("model",))
    untaught = arrays_of({"model": one.names["Distillation"](nnx.Rngs(0))}, ("model",))
    for path, array in taught.items():
        name = path.replace("model", "model['teacher']", 1)
        np.testing.assert_array_equal(one.arrays[name], array)
        if "kernel" in path or "mean" in path:
            assert np.abs(array - untaught[name]).max() > 0.01  # the first run did teach it


@pytest.mark.slow
def test_the_generator_comes_nearer_to_the_real_points() -> None:
    names = on_one_device("A GAN").names
    before = names["network"](4, 2, nnx.Rngs(0))

    def distance(generator: Any) -> float:
        return float(np.linalg.norm(generator(names["noise"]).mean(0) - names["real"].mean(0)))

    assert distance(names["generator"]) < 0.6 * distance(before)
