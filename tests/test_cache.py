from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jgraph as jg
from jgraph._cache import cache_folder, enable_compilation_cache


@pytest.fixture
def no_cache():
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"JGRAPH_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"JGRAPH_CACHE": "~/own"}, "/home/me/own"),
        ({"JGRAPH_CACHE": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/jgraph"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/jgraph"),
        ({}, "/home/me/.cache/jgraph"),
    ],
)
def test_the_folder_is_the_users_choice(variables, folder, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("JGRAPH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


@pytest.mark.usefixtures("no_cache")
def test_compiled_programs_are_kept_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("JGRAPH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "compiled"
    assert enable_compilation_cache() == folder
    assert folder.is_dir()
    assert jax.config.values["jax_compilation_cache_dir"] == str(folder)


@pytest.mark.usefixtures("no_cache")
def test_a_folder_the_user_gave_jax_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("JGRAPH_CACHE", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert enable_compilation_cache() == tmp_path / "own"
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("no_cache")
def test_without_a_place_to_write_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JGRAPH_CACHE", str(tmp_path / "file" / "cache"))
    assert enable_compilation_cache() is None
    monkeypatch.setenv("JGRAPH_CACHE", str(tmp_path))
    # The tests may run as root, whom no mode keeps from writing.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert enable_compilation_cache() is None
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_the_next_process_finds_what_was_compiled_where_the_variable_says(tmp_path):
    script = """if True:
        import jax, jgraph as jg
        import jax.numpy as jnp
        print(jg.enable_compilation_cache())
        hits = []
        jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
        jax.jit(lambda x: jnp.tanh(x) @ x)(jnp.ones((8, 8)))
        print("/jax/compilation_cache/cache_hits" in hits)
    """
    variables = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JGRAPH_CACHE": str(tmp_path / "jgraph"),
        "PYTHONPATH": str(Path(jg.__file__).parents[1]),
    }
    for found in ("False", "True"):
        shown = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stdout.split() == [str(tmp_path / "own"), found]
    assert not (tmp_path / "jgraph").exists()
