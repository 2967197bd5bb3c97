"""A small module, a cache of each test's own, and a server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
