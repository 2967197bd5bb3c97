from __future__ import annotations

from pathlib import Path

import jax
import pytest

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
