"""A small module, a cache of each test's own, and a server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import jax.numpy as jnp
import pytest
from flax import nnx

import jgraph as jg
from jgraph._handles import _http
from tests.hub.server import Server, running


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a module y = x W + b, [b, 2] to [b, 1]. Look, don't touch."""
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    folder = tmp_path_factory.mktemp("line") / "line"
    return jg.hub.publish(
        folder, model, inputs={"x": jnp.zeros((1, 2))}, licence="CC0-1.0", labels=["up"]
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache, and nobody waits."""
    monkeypatch.setenv("JGRAPH_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("JGRAPH_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(_http, "_WAIT_SECONDS", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def server(cache: Path) -> Iterator[Server]:
    with running() as server:
        yield server


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def hub(server: Server, line: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """The server as the Hugging Face Hub, with the module as me/line."""
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "hf" / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.commit("me/line", files_of(line))
    return server
