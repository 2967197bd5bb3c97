"""What `initialize` and `jgraph launch` refuse, and how the launcher shows its processes."""

from __future__ import annotations

from pathlib import Path

import pytest

import jgraph as jg
from jgraph._cli import main
from jgraph._errors import InputError


def test_half_of_the_variables_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JGRAPH_COORDINATOR", "127.0.0.1:1234")
    monkeypatch.setenv("JGRAPH_NUM_PROCESSES", "2")
    with pytest.raises(InputError, match=r"go together.*missing: JGRAPH_PROCESS_ID"):
        jg.distribute.initialize()
    monkeypatch.setenv("JGRAPH_PROCESS_ID", "two")
    with pytest.raises(InputError, match="JGRAPH_PROCESS_ID must be a whole number, got 'two'"):
        jg.distribute.initialize()
    monkeypatch.setenv("JGRAPH_PROCESS_ID", "2")
    with pytest.raises(InputError, match="process_id must be from 0 to 1, got 2"):
        jg.distribute.initialize()
    with pytest.raises(InputError, match="heartbeat_secs must be at least 1, got 0"):
        jg.distribute.initialize(heartbeat_secs=0)
    with pytest.raises(InputError, match=r"must be 3 .* JGRAPH_NUM_PROCESSES says that 2"):
        jg.distribute.initialize(num_processes=3)


@pytest.fixture(autouse=True)
def _found_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(jg.__file__).parents[1]))


def run(tmp_path: Path, source: str, processes: int = 2) -> int:
    script = tmp_path / "script.py"
    script.write_text(source)
    return main(["launch", "--processes", str(processes), str(script), "--word", "x"])


def test_the_launcher_numbers_lines_and_passes_arguments(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = (
        "import os, sys\n"
        "print(os.environ['JGRAPH_PROCESS_ID'], os.environ['JGRAPH_NUM_PROCESSES'], sys.argv[1:])\n"
    )
    assert run(tmp_path, source) == 0
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[0] 0 2 ['--word', 'x']", "[1] 1 2 ['--word', 'x']"]
    assert "[0] jgraph: the script never called jgraph.distribute.initialize()" in err


def test_lines_of_two_processes_stay_lines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "for i in range(2000):\n    print('line', i, flush=True)\n") == 0
    lines = capfd.readouterr().out.splitlines()
    assert sorted(lines) == sorted(f"[{n}] line {i}" for n in (0, 1) for i in range(2000))


def test_the_traceback_of_the_first_that_failed_comes_last(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = (
        "import os, time\n"
        "if os.environ['JGRAPH_PROCESS_ID'] == '1':\n"
        "    raise ValueError('of one')\n"
        "time.sleep(60)\n"
    )
    assert run(tmp_path, source) == 1
    error = capfd.readouterr().err
    last = error[error.index("jgraph: process 1 failed with exit code 1; its last words:") :]
    assert last.rstrip().endswith("ValueError: of one")
    assert "runpy" not in last


def test_one_that_fails_by_itself_is_said_to_be(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "raise ValueError('early')") == 1
    error = capfd.readouterr().err
    assert "the script hadn't called jgraph.distribute.initialize() yet, so this proc" in error
    assert error.rstrip().endswith("ValueError: early")


ALONE = """
import jax.numpy as jnp
import optax
from flax import nnx
import jgraph as jg

jg.distribute.initialize()
model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
train = jg.TrainSpec([{"x": jnp.ones((2, 1))}], 1)
for call in (
    lambda: jg.train_and_evaluate(
        model, lambda model, batch: model(batch["x"])[:, 0], optax.sgd(0.1), train=train
    ),
    lambda: jg.Checkpoint("saved").save(1, force=True, model=model),
    lambda: jg.train_and_evaluate(
        model,
        lambda model, batch: model(batch["x"])[:, 0],
        optax.sgd(0.1),
        train=jg.TrainSpec([{"x": jnp.array([[1.0], [1.0], [jnp.nan], [1.0]])}], 1),
        strategy=jg.distribute.auto(),
    ),
    lambda: jg.train_and_evaluate(
        model,
        lambda model, batch: jnp.log(-(model(batch["x"])[:, 0] ** 2) - 1),
        optax.sgd(0.1),
        train=train,
        strategy=jg.distribute.auto(),
    ),
):
    try:
        call()
    except jg.InputError as error:
        print(error)
"""


def test_processes_that_would_train_a_model_each_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, ALONE) == 0
    out = capfd.readouterr().out.splitlines()
    for process in (0, 1):
        first, second, third, fourth = (line for line in out if line.startswith(f"[{process}] "))
        assert "2 processes need a strategy: strategy=jg.distribute.auto() trains one" in first
        assert "2 processes save arrays on the devices of all, 'model." in second
        assert "the batch['x'] holds NaN (1 of 4 values, in row 2 and no other)" in third
        assert "the operation that made it so is looked for in one process" in fourth


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--processes", "0", __file__], "processes must be at least 1, got 0"),
        (["--processes", "2", "nothing.py"], "there is no script nothing.py"),
    ],
)
def test_what_cannot_be_launched(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", *arguments]) == 2
    assert words in capsys.readouterr().err
