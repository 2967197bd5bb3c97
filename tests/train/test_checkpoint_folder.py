"""Checkpoints of hand-written loops: what is kept, restored, refused, and survives damage."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jgraph as jg
from jgraph._errors import (
    CheckpointIntegrityError,
    CheckpointMismatchError,
    CheckpointWriteError,
    InputError,
)
from jgraph.train._checkpoint import _checkpoint, _folder


class Network(nnx.Module):
    """Params, running statistics, random state, a bfloat16 and an empty Variable."""

    def __init__(self, seed: int = 0) -> None:
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.half = nnx.Param(jnp.full((2,), 1.5, jnp.bfloat16))
        self.empty = nnx.Variable(jnp.zeros((0, 3)))
        self.head = self.layers[1]  # shared: once in the checkpoint


def values(tree: Any) -> dict[str, np.ndarray]:
    state = nnx.to_pure_dict(nnx.state(tree)) if isinstance(tree, nnx.Module) else tree
    return {
        jax.tree_util.keystr(k): np.array(
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        )
        for k, x in jax.tree.leaves_with_path(state)
    }


def same(first: Any, second: Any) -> bool:
    a, b = values(first), values(second)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def saved(folder: Path, *steps: int, **options: Any) -> Path:
    """Save networks whose bias is the step."""
    with jg.Checkpoint(folder, **options) as checkpoint:
        for step in steps:
            checkpoint.save(step, net=numbered(step), force=True)
    return folder


def numbered(step: int) -> nnx.Linear:
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    assert model.bias is not None
    model.bias.set_value(jnp.array([float(step)]))
    return model


def number_of(model: nnx.Linear) -> float:
    assert model.bias is not None
    return float(model.bias.get_value()[0])


def restored_step(folder: Path) -> int:
    """Restore and check that the values are the step's."""
    model = numbered(-1)
    found = jg.Checkpoint(folder).restore(net=model)
    assert found is not None
    assert number_of(model) == found.step
    return found.step


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, other = Network(0), Network(1)
    optimizer = nnx.Optimizer(model, optax.sgd(1e-2, momentum=0.9), wrt=nnx.Param)
    gradients = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, gradients)
    model.dropout(jnp.ones(3))  # a key has been drawn
    extra = {"ema": jnp.arange(3.0), "key": jax.random.key(7), "count": 5}
    with jg.Checkpoint(tmp_path, every_steps=1) as checkpoint:
        assert checkpoint.save(4, model=model, optimizer=optimizer, extra=extra, info={"epoch": 2})
        before = values(model)
        fresh = nnx.Optimizer(other, optax.sgd(1e-2, momentum=0.9), wrt=nnx.Param)
        zeros = {"ema": jnp.zeros(3), "key": jax.random.key(0), "count": 0}
        found = checkpoint.restore(model=other, optimizer=fresh, extra=zeros)
    assert found is not None
    assert (found.step, found.info) == (4, {"epoch": 2})
    assert values(other).keys() == before.keys()
    assert same(model, other)
    assert same(nnx.to_pure_dict(nnx.state(optimizer)), nnx.to_pure_dict(nnx.state(fresh)))
    assert other.head is other.layers[1]
    new = found.state["extra"]
    assert new["count"] == 5
    assert isinstance(new["count"], int)
    np.testing.assert_array_equal(new["ema"], [0, 1, 2])
    assert jax.random.key_data(new["key"]).tolist() == jax.random.key_data(extra["key"]).tolist()


def test_nothing_of_the_program_is_needed_to_read(tmp_path: Path) -> None:
    model = Network()
    with jg.Checkpoint(tmp_path) as checkpoint:
        checkpoint.save(1, model=model, force=True)
        found = checkpoint.restore()
    assert found is not None
    np.testing.assert_array_equal(found.arrays["model.layers[0].kernel"], model.layers[0].kernel)
    assert found.arrays["model.half"].dtype == jnp.bfloat16
    assert found.arrays["model.empty"].shape == (0, 3)
    shared = {"model.head.kernel", "model.layers[1].kernel"}
    assert len(shared & found.arrays.keys()) == 1


def test_what_is_overwritten_after_save_returns_is_saved_as_it_was(tmp_path: Path) -> None:
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros((1 << 20,))
    with jg.Checkpoint(tmp_path) as checkpoint:
        checkpoint.save(1, x=x, force=True)
        for _ in range(20):
            x = add(x)
        jax.block_until_ready(x)
        found = checkpoint.restore()
    assert found is not None
    assert not found.arrays["x"].any()


def test_what_is_restored_may_be_overwritten(tmp_path: Path) -> None:
    with jg.Checkpoint(tmp_path) as checkpoint:
        checkpoint.save(1, x=jnp.ones((64, 64)), force=True)
        found = checkpoint.restore(x=jnp.zeros((64, 64)))
        assert found is not None
        np.asarray(found.arrays["x"])
        jax.block_until_ready(jax.jit(lambda x: x + 1, donate_argnums=0)(found.state["x"]))
        assert (found.arrays["x"] == 1).all()


def test_saves_where_due_and_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    scores = {3: 0.5, 4: 0.9, 9: 0.7}
    with jg.Checkpoint(tmp_path, every_steps=5, keep=2, best=("val/accuracy", "max")) as checkpoint:
        due = [
            step
            for step in range(1, 22)
            if checkpoint.save(
                step,
                metrics={"val/accuracy": scores[step]} if step in scores else {},
                net=numbered(step),
            )
        ]
        checkpoint.wait()
        assert due == [3, 4, 5, 10, 15, 20]
        assert checkpoint.steps() == [4, 15, 20]
        found = checkpoint.restore(4, net=numbered(0))
    assert found is not None
    assert found.metrics == {"val/accuracy": 0.9}


def test_saves_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = types.SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(_checkpoint, "time", clock)
    due = []
    with jg.Checkpoint(tmp_path, every_secs=60) as checkpoint:
        for step in range(1, 201):
            clock.now += 1
            if checkpoint.save(step, x=jnp.zeros(1)):
                due.append(step)
    assert due == [60, 120, 180]


def test_a_folder_without_checkpoints_restores_nothing(tmp_path: Path) -> None:
    assert jg.Checkpoint(tmp_path / "new").restore(net=numbered(0)) is None


def test_every_difference_is_named_with_the_remedy(tmp_path: Path) -> None:
    with jg.Checkpoint(tmp_path) as checkpoint:
        one = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3), "scale": jnp.zeros(3)}
        other = {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(3, jnp.int32), "skale": jnp.ones(3)}
        checkpoint.save(1, net=one, force=True)
        with pytest.raises(CheckpointMismatchError) as error:
            checkpoint.restore(net=other)
    text = str(error.value)
    assert "of another kind: net['kernel'] is float32[2,3], not float32[2,4]" in text
    assert "of another kind: net['bias'] is float32[3], not int32[3]" in text
    assert "missing: net['skale'] float32[3]; did you mean net['scale']?" in text
    assert "extra: net['scale'] float32[3]" in text
    assert 'restore="model"' in text


def test_parts_are_restored_once_then_everything(tmp_path: Path) -> None:
    old, new = {"mu": jnp.ones(2)}, {"trace": jnp.zeros(3)}
    with jg.Checkpoint(tmp_path) as first:
        first.save(1, net=numbered(1), optimizer=old, force=True)
    with jg.Checkpoint(tmp_path, restore="net") as second:
        model = numbered(0)
        found = second.restore(net=model, optimizer=new)
        assert found is not None
        assert found.state["optimizer"] is new
        assert number_of(model) == 1
        second.save(2, net=model, optimizer={"trace": jnp.full(3, 7.0)}, force=True)
    third = jg.Checkpoint(tmp_path, restore="net")
    found = third.restore(net=model, optimizer=new)
    assert found is not None
    np.testing.assert_array_equal(found.state["optimizer"]["trace"], [7, 7, 7])
    with pytest.raises(InputError, match=re.escape("net, optimizer") + ".*got 'nett'; did you"):
        jg.Checkpoint(tmp_path, restore=["nett"]).restore(net=model, optimizer=new)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("harm", [flip, truncate, Path.unlink], ids=["flip", "truncate", "remove"])
def test_each_damaged_file_is_named_and_the_step_before_used(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    whole = saved(tmp_path / "whole", 10, 20)
    names = [path.relative_to(whole) for path in files(whole / "00000020")]
    assert len(names) >= 8
    for name in names:
        broken = tmp_path / "broken"
        shutil.copytree(whole, broken)
        harm(broken / name)
        caplog.clear()
        assert restored_step(broken) == 10, name
        assert "goes on from step 10" in caplog.text
        assert name.name in caplog.text
        shutil.rmtree(broken)


def test_damage_everywhere_is_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path, 10, 20)
    for step in ("00000010", "00000020"):
        flip(next((tmp_path / step / "arrays").glob("_METADATA")))
    before = [path.read_bytes() for path in files(tmp_path)]
    with pytest.raises(CheckpointIntegrityError) as error:
        restored_step(tmp_path)
    assert "00000010 is not as it was written: arrays/_METADATA has changed" in str(error.value)
    assert "00000020" in str(error.value)
    assert [path.read_bytes() for path in files(tmp_path)] == before
    with pytest.raises(CheckpointIntegrityError, match="_METADATA has changed"):
        jg.Checkpoint(tmp_path).restore(20, net=numbered(0))


def test_empty_and_unfinished_folders_do_not_count(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    (tmp_path / "00000030").mkdir()
    shutil.copytree(tmp_path / "00000010", tmp_path / "00000020")
    (tmp_path / "00000020" / "manifest.json").unlink()
    assert jg.Checkpoint(tmp_path).steps() == [10]
    assert restored_step(tmp_path) == 10
    saved(tmp_path, 40)  # tidies up
    assert sorted(os.listdir(tmp_path)) == ["00000010", "00000040"]


def test_only_unfinished_folders_are_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "00000030").mkdir()
    assert jg.Checkpoint(tmp_path).restore(net=numbered(0)) is None
    saved(tmp_path, 30)
    assert restored_step(tmp_path) == 30


def test_steps_beyond_the_one_gone_on_from_are_set_aside(tmp_path: Path) -> None:
    saved(tmp_path, 10, 20)
    flip(tmp_path / "00000020" / "manifest.json")
    assert restored_step(tmp_path) == 10
    saved(tmp_path, 15, keep=1)
    assert restored_step(tmp_path) == 15
    assert (tmp_path / "00000020.aside" / "manifest.json").is_file()
    saved(tmp_path, 25, keep=1)  # the run has come as far again
    assert os.listdir(tmp_path) == ["00000025"]


def test_the_best_survives_damage_to_others(tmp_path: Path) -> None:
    with jg.Checkpoint(tmp_path, keep=1, best=("val/loss", "min")) as checkpoint:
        for step, loss in ((1, 0.2), (2, 0.5), (3, 0.4)):
            checkpoint.save(step, metrics={"val/loss": loss}, net=numbered(step), force=True)
    flip(tmp_path / "00000003" / "manifest.json")
    assert restored_step(tmp_path) == 1


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may become longer than a page."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Orbax leaves a callback behind where its write fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_full_while_arrays_are_written(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    saved(tmp_path, 10)
    noise = np.random.default_rng(0).standard_normal((1 << 18,))
    request.getfixturevalue("full_disk")
    checkpoint = jg.Checkpoint(tmp_path)
    checkpoint.save(20, net=numbered(20), noise=noise.astype(np.float32), force=True)
    with pytest.raises(CheckpointWriteError, match=r"00000020 couldn't be written.*make room"):
        checkpoint.close()
    assert os.listdir(tmp_path) == ["00000010"]
    assert restored_step(tmp_path) == 10


def test_a_disk_that_is_full_at_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 10)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint = jg.Checkpoint(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(_folder.json, "dump", refuse)
        checkpoint.save(20, net=numbered(20), force=True)
        with pytest.raises(CheckpointWriteError, match="No space left on device"):
            checkpoint.save(30, net=numbered(30), force=True)  # which hears of it
    checkpoint.save(40, net=numbered(40), force=True)  # room has been made
    checkpoint.close()
    assert checkpoint.steps() == [10, 40]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointWriteError, match=r"folder that can be written, and .*file"):
        jg.Checkpoint(tmp_path / "file").save(1, net=numbered(1), force=True)


def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    path = tmp_path / "00000010" / "manifest.json"
    values = json.loads(path.read_text())
    values["version"] = 99
    from jgraph._digests import value_digest

    path.write_text(json.dumps(values | {"sha256": value_digest(values)}))
    with pytest.raises(CheckpointIntegrityError, match=r"of version 1, got .* of version 99"):
        jg.Checkpoint(tmp_path).restore()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every_secs": 0.0}, "every_secs must be a positive number"),
        ({"every_steps": 0}, "every_steps must be at least 1, got 0"),
        ({"keep": 0}, "keep must be at least 1, got 0"),
        ({"best": ("accuracy", "max")}, "must be named 'set/name'"),
    ],
)
def test_options_out_of_range(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        jg.Checkpoint(tmp_path, **options)


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    checkpoint = jg.Checkpoint(tmp_path)
    with pytest.raises(InputError, match=r"state\['name'\]. is a str; pass what is JSON as info"):
        checkpoint.save(1, state={"name": "x"}, force=True)
    with pytest.raises(InputError, match="by name"):
        checkpoint.save(1, force=True)
    with pytest.raises(InputError, match="info must be JSON"):
        checkpoint.save(1, x=jnp.zeros(1), info={"x": object()}, force=True)
    with pytest.raises(InputError, match=r"which has nothing; got 7"):
        checkpoint.restore(7, x=jnp.zeros(1))
