"""The optimizer recipe: its rates over a run, and what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jgraph as jg


def updates_of(optimizer, gradients, params, steps):
    state, found = optimizer.init(params), []
    for _ in range(steps):
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its counter with floats
            updates, state = optimizer.update(gradients, state, params)
        found.append(updates)
    return found


def test_weights_decay_but_biases_and_scales_do_not():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    (updates,) = updates_of(jg.train.adamw(0.1, 10), zeros, params, 1)
    assert [bool((updates[key] != 0).any()) for key in params] == [True, False, False]


def test_the_rate_rises_and_falls():
    params = {"bias": jnp.ones(3)}
    optimizer = jg.train.adamw(0.1, 20, end=0.1)
    # Adam's update of a constant gradient is the rate.
    rates = [-float(u["bias"][0]) for u in updates_of(optimizer, params, params, 20)]
    assert rates[0] == pytest.approx(0.1 / 3, rel=1e-3)
    assert rates.index(max(rates)) == 2
    assert max(rates) == pytest.approx(0.1, rel=1e-3)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0.01 < rates[-1] < 0.013


def test_a_run_of_one_step_learns_something():
    params = {"bias": jnp.ones(3)}
    (updates,) = updates_of(jg.train.adamw(0.1, 1), params, params, 1)
    assert (updates["bias"] < -0.01).all()


def test_no_step_is_refused():
    with pytest.raises(jg.InputError, match="steps must be at least 1, got 0"):
        jg.train.adamw(0.1, 0)


def test_an_optimizer_may_begin_with_the_params_themselves():
    def update(updates, state, params=None, **_):
        pulled = jax.tree.map(lambda u, p, s: -0.1 * u - 0.5 * (p - s), updates, params, state[0])
        return pulled, state

    towards_the_start = optax.GradientTransformation(lambda params: (params, params), update)
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    before = jax.device_get(model.kernel[...])
    step = jg.train.make_step(model, lambda m, b: m(b["x"]) ** 2, towards_the_start)
    batch = {"x": np.ones((4, 2), np.float32)}
    losses = [float(step(batch)["loss"]) for _ in range(3)]
    assert losses[2] < losses[0]
    assert (model.kernel[...] == before).all()  # until step.model is read
    step.model  # noqa: B018  reading it gives the model its state
    assert not (model.kernel[...] == before).all()


def test_an_optimizer_that_begins_with_a_weak_number_is_compiled_once():
    counted = optax.GradientTransformation(
        lambda params: jnp.asarray(1.0),
        lambda updates, state, params=None, **_: (updates, state + jnp.float32(1)),
    )
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    step = jg.train.make_step(model, lambda m, b: m(b["x"]) ** 2, counted)
    for _ in range(3):
        step({"x": np.ones((4, 2), np.float32)})
    assert len(step.function.graphs) == 1


def test_a_step_that_began_in_debug_mode_goes_on_compiled():
    begins_with_the_params = optax.GradientTransformation(
        lambda params: (params,), lambda updates, state, params=None, **_: (updates, state)
    )
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    step = jg.train.make_step(model, lambda m, b: m(b["x"]) ** 2, begins_with_the_params)
    batch = {"x": np.ones((4, 2), np.float32)}
    with jg.debug_mode():
        assert step.locate(batch) is None
    assert np.isfinite(float(step(batch)["loss"]))
