"""Small folders of pictures, a tiny network, and one run that many tests look at."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from jgraph import models
from jgraph._cli import main
from jgraph._preprocessing import Preprocessing

Paint = Callable[..., Path]

_Y, _X = np.mgrid[:40, :40]
_KINDS = {
    "dots": ((_X // 6 + _Y // 6) % 2, (220, 60, 60)),
    "plain": (np.ones_like(_X), (70, 80, 220)),
    "rows": ((_Y // 4) % 2, (60, 200, 80)),
}


def paint_pictures(folder: Path, counts: Mapping[str, int], *, noise: float = 25.0) -> Path:
    """Write pictures of classes that differ in colour and texture."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        pattern, color = _KINDS[name]
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = pattern[..., None] * np.array(color) + rng.normal(0, noise, (40, 40, 3))
            picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            picture.save(folder / name / f"{i:03}.png")
    return folder


class Tiny(nnx.Module):
    """A backbone in two stages that compiles in no time: colours and edges through two layers."""

    def __init__(self) -> None:
        self.first = nnx.Linear(9, 12, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(12, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(12, 16, rngs=nnx.Rngs(1))
        self.preprocessing = Preprocessing(
            32, 36, "bilinear", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)
        )

    @property
    def feature_size(self) -> int:
        return 16

    @property
    def stages(self) -> tuple[tuple[nnx.Module, ...], ...]:
        return ((self.first, self.norm), (self.second,))

    def features(self, x_BHWC: jax.Array) -> jax.Array:
        rows, columns = (jnp.abs(jnp.diff(x_BHWC, axis=axis)).mean((1, 2)) for axis in (1, 2))
        x = jnp.concatenate([x_BHWC.mean((1, 2)), rows, columns], axis=-1)
        return self.second(jnp.tanh(self.norm(self.first(x))))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the tiny network in the place of every backbone."""

    def create(name: str, **_: Any) -> Tiny:
        network = Tiny()
        network.eval()
        return network

    monkeypatch.setattr(models, "create", create)


@contextlib.contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Keep compiled programs on disk while the context holds: every run makes the same ones."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    for name, value in zip(names, (str(folder), 0.1), strict=True):
        jax.config.update(name, value)
    # jax decides once, at its first compilation, whether there is a cache.
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: Path) -> Iterator[Path]:
    """An empty working folder; nothing is written outside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JGRAPH_CACHE", str(tmp_path / "cache"))
    with compiled_once(compiled):
        yield tmp_path


@pytest.fixture
def paint() -> Paint:
    return paint_pictures


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, compiled: Path) -> Path:
    """A folder with pictures/ and runs/pictures-001 of the real network. Look, don't touch."""
    place = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(place), compiled_once(compiled), pytest.MonkeyPatch.context() as patch:
        patch.setenv("JGRAPH_CACHE", str(tmp_path_factory.mktemp("cache")))
        paint_pictures(Path("pictures"), {"dots": 8, "plain": 8, "rows": 8})
        assert main(["finetune", "pictures", "--image-size", "32"]) == 0
    return place


@pytest.fixture
def copied(finished: Path, workplace: Path) -> Path:
    """A copy of the finished folder as working folder, to be broken."""
    shutil.copytree(finished, workplace, symlinks=True, dirs_exist_ok=True)
    return workplace
