"""What .vscode/launch.json offers is started, as VS Code starts it."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.debug.dap import Breakpoint, Debugger, Stop

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("programs") / "by_trainer.py"
SCRIPTS = {"Run this script compiled": "0", "Run this script in debug mode": "1"}
TEST = "Run the selected test"


def configurations(**variables: str) -> dict[str, dict[str, Any]]:
    """Return the configurations by name, with values for VS Code's variables."""
    text = (ROOT / ".vscode" / "launch.json").read_text()
    text = re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)
    for name, value in {"workspaceFolder": str(ROOT), **variables}.items():
        text = text.replace(f"${{{name}}}", value)
    assert "${" not in text, "a variable that the test doesn't know"
    return {found["name"]: found for found in json.loads(text)["configurations"]}


def launch(configuration: dict[str, Any], **more: str) -> dict[str, Any]:
    """Return a configuration for this Python, as the editor's choice of interpreter adds it."""
    env = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **configuration["env"], **more}
    return {**configuration, "env": env, "python": sys.executable}


def line(mark: str) -> int:
    lines = PROGRAM.read_text().splitlines()
    return next(i for i, text in enumerate(lines, 1) if text.endswith(f"# mark: {mark}"))


def test_it_is_json_with_comments_and_names_what_there_is() -> None:
    found = configurations(file=str(PROGRAM), selectedText="some_test")
    assert list(found) == [*SCRIPTS, TEST]
    for configuration in found.values():
        assert (configuration["type"], configuration["request"]) == ("debugpy", "launch")
        assert ("program" in configuration) != ("module" in configuration)
    for name, asked in SCRIPTS.items():
        assert found[name]["env"]["JGRAPH_DEBUG"] == asked


@pytest.mark.slow
@pytest.mark.parametrize(("name", "asked"), SCRIPTS.items())
def test_scripts_run_compiled_and_in_debug_mode(name: str, asked: str) -> None:
    configuration = configurations(file=str(PROGRAM), selectedText="")[name]
    is_tracer: Counter[str] = Counter()
    with Debugger(launch(configuration), {PROGRAM: [Breakpoint(line("loss"))]}) as session:

        def look(stop: Stop) -> None:
            is_tracer[session.evaluate(stop, "isinstance(errors, jax.core.Tracer)")] += 1

        session.run(look)
    # A compiled step's loss is met while it is traced only, that of debug mode in all three steps.
    assert is_tracer.keys() == {"True"} if asked == "0" else is_tracer == {"False": 3}
    assert re.fullmatch(r"\[\d\.\d+, \d\.\d+, \d\.\d+\]\n", session.printed())
    assert session.exit_code == 0


@pytest.mark.slow
def test_a_test_runs_and_stops_in_jgraph() -> None:
    file, name = ROOT / "tests" / "test_suggest.py", "test_the_nearest_name_is_meant"
    configuration = configurations(file=str(file), selectedText=name)[TEST]
    inside = ROOT / "jgraph" / "_suggest.py"
    lines = inside.read_text().splitlines()
    number = next(i for i, text in enumerate(lines, 1) if text.startswith("    near = "))
    stops: list[Stop] = []
    with Debugger(launch(configuration), {inside: [Breakpoint(number)]}) as session:
        session.run(stops.append)
    assert [stop.file for stop in stops] == ["_suggest.py"] * 4  # the test has four cases
    assert "4 passed" in session.printed()
    assert session.exit_code == 0
