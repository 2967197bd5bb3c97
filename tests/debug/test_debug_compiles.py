"""Steps in debug mode compile operations once, whatever the number of the step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import jgraph as jg
from jgraph.graph._compiles import COMPILES


@pytest.mark.parametrize("level", ["all", "functions"])
@jax.numpy_dtype_promotion("standard")  # optax raises float32 to int32
def test_steps_of_adam_compile_nothing_after_the_third(level: str) -> None:
    jax.clear_caches()  # else what another test compiled would hide what this one needs
    optimizer = optax.adam(0.1)

    def step(w: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        updates, state = optimizer.update(jax.grad(lambda w: (w**2).sum())(w), state, w)
        return optax.apply_updates(w, updates), state  # pyright: ignore[reportReturnType]

    compiled, want, state = jax.jit(step), jnp.arange(5.0), optimizer.init(jnp.arange(5.0))
    for _ in range(20):
        want, state = compiled(want, state)
    got, state, totals = jnp.arange(5.0), optimizer.init(jnp.arange(5.0)), []
    for _ in range(20):
        with jg.debug_mode(level):
            got, state = step(got, state)
        totals.append(COMPILES.total)
    assert totals[2:] == [totals[2]] * 18
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("exponent", [-3, 3, 8])
@pytest.mark.parametrize("base", [-1.5, jnp.float32(-1.5), jnp.bfloat16(-1.5)])
def test_powers_have_the_type_and_value_that_they_have_elsewhere(base: Any, exponent: int) -> None:
    count = jnp.asarray(exponent)
    want = base**count
    with jg.debug_mode():
        got = base**count
    assert got.aval == want.aval
    np.testing.assert_allclose(np.float32(got), np.float32(want), rtol=1e-6)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """JAX's cache of compiled programs in a folder of its own."""
    before = jax.config.values["jax_compilation_cache_dir"]
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def kept_by(cache: Path, size: int) -> int:
    """Compile what no other test does, and return how many programs that has put on disk."""
    seen = len(list(cache.iterdir()))
    jnp.tanh(jnp.zeros(size))
    return len(list(cache.iterdir())) - seen


def test_where_programs_are_kept_on_disk_those_of_debug_mode_are(cache: Path) -> None:
    assert kept_by(cache, 10007) == 0
    with jg.debug_mode():
        assert kept_by(cache, 10009) > 0
        with jg.debug_mode("functions"):
            assert kept_by(cache, 10037) > 0
    assert kept_by(cache, 10039) == 0
    name, default = "jax_persistent_cache_min_compile_time_secs", 1.0
    jax.config.update(name, 60.0)
    try:
        with jg.debug_mode():
            assert kept_by(cache, 10061) == 0
    finally:
        jax.config.update(name, default)
