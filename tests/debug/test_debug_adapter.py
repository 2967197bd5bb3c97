"""Debug mode under a real debugger: debugpy, driven as an IDE drives it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.debug.dap import Breakpoint, Debugger, HungError, Stop

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).with_name("programs")
STEPS = 3
LOSSES = ["4.160852", "4.003708", "3.853060"]


def line(program: str, mark: str) -> int:
    """Return the number of the line that carries a mark."""
    lines = (PROGRAMS / program).read_text().splitlines()
    return next(i for i, text in enumerate(lines, 1) if text.endswith(f"# mark: {mark}"))


@pytest.fixture(scope="session", autouse=True)
def compiled_operations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep on disk what programs compile: they run the same operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("operations")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


def environment(**more: str) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **more}


def debugger(
    program: str, breakpoints: Sequence[Breakpoint], *args: str, **options: Any
) -> Debugger:
    """Return a program under the debugger, with jgraph a library, as it is where it's installed."""
    launch = {
        "program": str(PROGRAMS / program),
        "args": args,
        "cwd": str(ROOT),
        "env": environment(),
        "rules": [{"path": str(ROOT / "jgraph" / "**"), "include": False}],
        **options,
    }
    return Debugger(launch, {PROGRAMS / program: breakpoints})


def at(stop: Stop | None, program: str, mark: str) -> Stop:
    """Return a stop that is at a mark."""
    assert stop is not None
    assert (stop.file, stop.line) == (program, line(program, mark))
    return stop


def test_breakpoints_stop_at_each_step_on_plain_values() -> None:
    places = ["model", "scanned body", "loss", "step"]
    marks = {line("by_hand.py", mark): mark for mark in places}
    hits: list[str] = []
    with debugger("by_hand.py", [Breakpoint(n) for n in marks]) as session:

        def look(stop: Stop) -> None:
            assert stop.reason == "breakpoint"
            hits.append(marks[stop.line])
            if marks[stop.line] == "model" and len(hits) == 1:
                check_watches(session, stop)
            name = {"model": "h", "scanned body": "carry", "loss": "losses", "step": "loss"}
            shown = session.evaluate(stop, f"type({name[marks[stop.line]]}).__name__")
            assert shown == "'ArrayImpl'", marks[stop.line]

        session.run(look)
    a_step = ["model", "scanned body", "scanned body", "loss", "step"]
    assert hits == a_step * STEPS
    assert re.findall(r"loss (\S+)", session.printed()) == LOSSES
    assert session.exit_code == 0


def check_watches(session: Debugger, stop: Stop) -> None:
    """Evaluate what a person would at a stop in the model."""
    total = float(session.evaluate(stop, "float(h.sum())"))
    assert session.evaluate(stop, "h").startswith("Array([[")
    assert session.evaluate(stop, "np.asarray(h)").startswith("array([[")
    assert session.evaluate(stop, 'f"{h.mean():.3f}"') == f"'{total / 20:.3f}'"
    row = session.evaluate(stop, "h[0].tolist()")
    assert len([float(x) for x in row.strip("[]").split(",")]) == 4
    assert session.evaluate(stop, 'type(h).__name__ == "ArrayImpl"') == "True"
    assert session.evaluate(stop, "bool((h > 5).any())") == "False"
    assert "no_such_name" in session.evaluate(stop, "no_such_name")


@pytest.mark.slow
def test_conditions_log_messages_steps_and_changed_variables() -> None:
    program = "by_hand.py"
    points = [
        Breakpoint(line(program, "scanned body"), log="carry {float(carry.sum())}, {carry.size}"),
        Breakpoint(line(program, "call"), condition="float(batch['x'][0, 0]) > 100"),
        Breakpoint(line(program, "loss"), condition="float(losses.mean()) < 4.1"),
        Breakpoint(line(program, "step"), condition="float(loss) < 4.1"),
    ]
    with debugger(program, points) as session:
        # Of the first two steps' losses, 4.16 and 4.00, one is below 4.1.
        stop = at(session.next_stop(), program, "loss")
        shown = float(session.evaluate(stop, "float(losses.mean())"))
        assert f"{shown:.6f}" == LOSSES[1]
        stop = session.step(stop, "next")
        assert (stop.reason, stop.line) == ("step", line(program, "loss") + 1)
        assert session.evaluate(stop, "scale") == "1.0"
        assert session.set_variable(stop, "scale", "2.0") == "2.0"
        session.go_on(stop)
        # Twice that loss is above 4.1 at the end of the step: the third is the next that stops.
        stop = at(session.next_stop(), program, "loss")
        session.go_on(stop)
        stop = at(session.next_stop(), program, "step")
        session.go_on(stop)
        assert session.next_stop() is None
    doubled = f"{2 * float(LOSSES[1]):.6f}"
    found = re.findall(r"loss (\S+)", session.printed())
    assert found[:2] == [LOSSES[0], doubled]
    # A loss twice as large has another gradient, so Adam goes another way.
    assert found[2] != LOSSES[2]
    assert float(found[2]) == pytest.approx(float(LOSSES[2]), rel=1e-2)
    logged = re.findall(r"carry (-?\d+\.\d+), 20", session.printed())
    assert len(logged) == 2 * STEPS
    # Each pair is the scan's two turns: the second multiplies by 0.8.
    first, second = map(float, logged[:2])
    assert second == pytest.approx(0.8 * first, rel=1e-6)


@pytest.mark.slow
def test_step_into_a_model_and_out_of_it() -> None:
    program = "by_hand.py"
    with debugger(program, [Breakpoint(line(program, "call"))]) as session:
        stop = at(session.next_stop(), program, "call")
        inside = session.step(stop, "stepIn")
        assert (inside.file, inside.function) == (program, "__call__")
        assert session.evaluate(inside, "x.shape") == "(5, 3)"
        outside = session.step(inside, "stepOut")
        assert (outside.file, outside.function) == (program, "loss_fn")


@pytest.mark.parametrize(
    ("mark", "error"),
    [("log", "FloatingPointError"), pytest.param("shape", "TypeError", marks=pytest.mark.slow)],
)
def test_what_nobody_catches_stops_once_at_the_users_line(mark: str, error: str) -> None:
    stops: list[Stop] = []
    with debugger("uncaught.py", [], mark) as session:
        session.run(stops.append)
    assert [(s.reason, s.text, s.file, s.line) for s in stops] == [
        ("exception", error, "uncaught.py", line("uncaught.py", mark))
    ]
    assert session.exit_code == 1


@pytest.mark.slow
def test_the_environment_asks_for_debug_mode() -> None:
    program = "by_trainer.py"
    places = [Breakpoint(line(program, mark)) for mark in ("model", "loss")]
    hits: Counter[int] = Counter()
    with debugger(program, places, env=environment(JGRAPH_DEBUG="1")) as session:

        def look(stop: Stop) -> None:
            hits[stop.line] += 1
            name = "h" if stop.line == places[0].line else "errors"
            assert session.evaluate(stop, f"type({name}).__name__") == "'ArrayImpl'"
            assert float(session.evaluate(stop, f"float(abs({name}).sum())")) > 0

        session.run(look)
    assert hits == {place.line: STEPS for place in places}
    compiled = subprocess.run(
        [sys.executable, PROGRAMS / program],
        env={**os.environ, **environment()},
        capture_output=True,
        text=True,
        check=True,
        timeout=90,
    )
    assert session.printed() == compiled.stdout != ""


def test_a_wait_that_gets_nothing_ends_with_the_transcript() -> None:
    program = PROGRAMS / "by_hand.py"
    launch = {"program": str(program), "cwd": str(ROOT), "env": environment()}
    with (
        pytest.raises(HungError, match=r"in 0\.01 s") as caught,
        Debugger(launch, {}, seconds=0.01),
    ):
        pass
    assert "initialize" in "".join(caught.value.__notes__)


def test_pdb_stops_inside_a_loss() -> None:
    shown = subprocess.run(
        [sys.executable, PROGRAMS / "with_pdb.py"],
        env={**os.environ, **environment()},
        input="p float(loss.mean())\np type(loss).__name__\nc\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert "(Pdb) 6.25\n(Pdb) 'ArrayImpl'\n(Pdb) gradient [3.0, 4.0]" in shown.stdout, shown
    assert shown.returncode == 0
