"""`jgraph doctor`: one sentence each, and 1 where something is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import pytest

import jgraph
from jgraph._cli import _doctor, main
from jgraph.debug import _engine, _mode

pytestmark = pytest.mark.usefixtures("workplace")

Report = Callable[[], tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Report:
    """Run `jgraph doctor --json`; return the exit code and the checks by name."""

    def run() -> tuple[int, dict[str, dict[str, Any]]]:
        code = main(["doctor", "--json"])
        report = json.loads(capsys.readouterr().out)
        assert report["works"] == (code == 0)
        return code, {check["name"]: check for check in report["checks"]}

    return run


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    for line in lines:
        assert line.startswith("ok      ")
        assert line.endswith(".")
    assert "Debug mode, level 'all', works" in lines[2]


def test_what_it_reports(doctor: Report, compiled: Path) -> None:
    code, checks = doctor()
    assert code == 0
    assert checks["versions"]["details"]["jgraph"] == jgraph.__version__
    assert checks["versions"]["details"]["jax"] == jax.__version__
    assert checks["versions"]["details"]["flax"] == flax.__version__
    assert checks["versions"]["details"]["numpy"] == np.__version__
    assert checks["devices"]["sentence"] == "JAX compiles and computes on 8 x cpu."
    assert checks["debug level all"]["details"] == ["ArrayImpl"]
    assert checks["debug level functions"]["works"]
    assert checks["cache"]["details"] == str(Path("cache").resolve())
    assert checks["compiled programs"]["details"] == str(compiled)
    assert not list(Path("cache").iterdir())


def test_an_unknown_jax(doctor: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("another inside")

    monkeypatch.setattr(_engine, "self_test", fail)
    _mode._tested_engine.cache_clear()
    try:
        code, checks = doctor()
    finally:
        _mode._tested_engine.cache_clear()
    assert code == 1
    for level in ("all", "functions"):
        assert not checks[f"debug level {level}"]["works"]
        assert "inside gradients values are tracers" in checks[f"debug level {level}"]["sentence"]
    assert checks["devices"]["works"]


def test_a_cache_that_cannot_be_written(doctor: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a-file").write_text("")
    monkeypatch.setenv("JGRAPH_CACHE", str(Path("a-file/cache").resolve()))
    jax.config.update("jax_compilation_cache_dir", None)
    code, checks = doctor()
    assert code == 1
    assert "NotADirectoryError" in checks["cache"]["sentence"]
    assert "let JGRAPH_CACHE name a folder" in checks["compiled programs"]["sentence"]


def test_without_jax_it_still_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_doctor, "_PACKAGES", ("jax", "no_such_package"))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert out == "BROKEN  versions: ModuleNotFoundError: No module named 'no_such_package'\n"


def test_devices_that_compute_wrongly(doctor: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "jit", lambda fn: lambda x: fn(x) + 1)
    code, checks = doctor()
    assert code == 1
    assert "0 + 1 + 4 + 9 came out as 15" in checks["devices"]["sentence"]


def test_a_driver_without_its_jax(
    doctor: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_doctor, "_NVIDIA", tmp_path)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    code, checks = doctor()
    assert code == 0
    assert checks["devices"]["sentence"].endswith("the extra jgraph[cuda] would use it.")
