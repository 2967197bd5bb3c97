"""The recipe of CONTRIBUTING.md, followed to the letter."""

from __future__ import annotations

import importlib.util
import pathlib
import re
from typing import Any

import optax
import pytest

import jgraph as jg
from jgraph.distribute import OneDevice, Strategy

PAGE = (pathlib.Path(jg.__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")


@pytest.fixture
def recipe(tmp_path: pathlib.Path) -> type[Any]:
    """The strategy that the page's file defines."""
    section = PAGE.partition("## Adding a strategy\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    file = tmp_path / "zero.py"
    file.write_text(code, "utf-8")
    spec = importlib.util.spec_from_file_location("zero", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (found,) = (x for x in vars(module).values() if getattr(x, "__module__", "") == "zero")
    return found


def train(task: Any, strategy: Strategy) -> tuple[Any, Any]:
    model, batches = task.model(), task.batches(3, 16)
    result = jg.train_and_evaluate(
        model,
        task.loss,
        task.optimizer,
        train=jg.TrainSpec(batches, 3, log_every=1),
        evals={"val": jg.EvalSpec(batches)},
        strategy=strategy,
    )
    return result.history, model


@pytest.mark.slow
def test_it_trains_as_one_device(recipe: Any, tasks: Any, close: Any, same_rows: Any) -> None:
    task, strategy = tasks["mlp"], recipe(min_size=64)
    assert isinstance(strategy, Strategy)
    assert strategy.num_devices == 8
    history, model = train(task, strategy)
    want_history, want = train(task, OneDevice())
    same_rows(history, want_history)
    close(model, want)


def test_it_splits_what_it_says(recipe: Any, tasks: Any) -> None:
    task, strategy = tasks["mlp"], recipe(min_size=64)
    step = jg.train.make_step(task.model(), task.loss, optax.adam(1e-3), strategy=strategy)
    for batch in strategy.batches(task.batches(3, 16)):
        step(batch)
    carry: Any = step._carry
    shards = {
        path: x.addressable_shards[0].data.shape
        for path, x in carry.get_raw_value().items()
        if "first" in path and "kernel" in path
    }
    assert shards == {
        "model.first.kernel": (6, 32),
        "optimizer[0].mu['first']['kernel']": (6, 4),
        "optimizer[0].nu['first']['kernel']": (6, 4),
    }
    assert len(step.function.graphs) == 1  # the state comes back where it was put


def test_the_places_that_the_recipe_names_are_there() -> None:
    root = pathlib.Path(jg.__file__).parents[1]
    section = PAGE.partition("## Adding a strategy\n")[2]
    files = re.findall(r"`((?:jgraph|tests)/[\w/.]+)`", section)
    assert "tests/distribute/test_recipe.py" in files
    assert all((root / file).exists() for file in files)
    assert (root / "jgraph/distribute/_create.py").is_file()
    assert (root / "jgraph/distribute/_pmap.py").is_file()
    assert "_STRATEGIES = {" in (root / "tests/distribute/conftest.py").read_text("utf-8")
