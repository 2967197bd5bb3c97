"""FSDP splits the state, and only where that pays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jgraph as jg
from jgraph.distribute import FSDP, OneDevice, Strategy

SIZE = 16


def state_of(step: Any) -> dict[str, jax.Array]:
    """Return what a step trains: Params, and what the optimizer keeps for them."""
    carry = step._carry.get_raw_value()
    return {k: x for k, x in carry.items() if k.startswith(("model.", "optimizer"))}


def shard(x: jax.Array) -> tuple[int, ...]:
    return x.addressable_shards[0].data.shape


def test_the_state_it_trains_is_sharded(tasks: Any) -> None:
    task, s = tasks["gpt"], FSDP(min_size=64)
    step = jg.train.make_step(task.model(), task.loss, task.optimizer, strategy=s)
    (batch,) = s.batches(task.batches(1, SIZE))
    for _ in range(2):  # as it was put, and as a step hands it to the next
        step(batch)
        check_transformer(state_of(step))


def check_transformer(state: dict[str, jax.Array]) -> None:
    momentum = "optimizer[0].trace"
    assert shard(state["model.embed.embedding"]) == (32 // 8, 16)
    assert shard(state[f"{momentum}['embed']['embedding']"]) == (32 // 8, 16)
    assert shard(state["model.up.kernel"]) == (16, 64 // 8)
    assert shard(state[f"{momentum}['up']['kernel']"]) == (16, 64 // 8)
    assert shard(state["model.attention.query.kernel"]) == (16 // 8, 2, 8)
    assert shard(state["model.norms.0.scale"]) == (16,)  # smaller than min_size
    for path, x in state.items():
        assert x.addressable_shards[0].data.size * (8 if x.size >= 64 else 1) == x.size, path


def test_what_a_run_hands_back_is_sharded(tasks: Any) -> None:
    task, model = tasks["gpt"], tasks["gpt"].model()
    spec = jg.TrainSpec(task.batches(1, SIZE), 1)
    strategy = FSDP(min_size=64)
    result = jg.train_and_evaluate(model, task.loss, task.optimizer, train=spec, strategy=strategy)
    assert shard(model.up.kernel.get_raw_value()) == (16, 8)
    assert shard(result.states["last"]["up"]["kernel"].get_raw_value()) == (16, 8)


class Wide(nnx.Module):
    """Nearly all of it is in large kernels."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.up = nnx.Linear(8, 512, rngs=rngs)
        self.down = nnx.Linear(512, 8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jnp.tanh(self.up(x)))


def reconstruct(model: Any, x: Any) -> jax.Array:
    return ((model(x) - x) ** 2).sum(-1)


def pictures(size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((size, 8)).astype(np.float32)


def trained_wide(strategy: Strategy, steps: int = 3) -> tuple[list[float], Any]:
    step = jg.train.make_step(Wide(), reconstruct, optax.adam(1e-3), strategy=strategy)
    losses = [float(step(x)["loss"]) for x in strategy.batches([pictures(SIZE)] * steps)]
    return losses, step


def bytes_on_first_device(step: Any) -> int:
    shards = [s for x in state_of(step).values() for s in x.addressable_shards]
    return sum(s.data.nbytes for s in shards if s.device == jax.devices()[0])


@pytest.mark.parametrize("n", [4, 8])
def test_a_device_holds_its_share_of_params_and_adam(n: int) -> None:
    whole = bytes_on_first_device(trained_wide(OneDevice())[1])
    kernels, biases = 2 * 8 * 512, 512 + 8
    assert whole == 3 * 4 * (kernels + biases) + 4  # params, two moments, Adam's count
    share = bytes_on_first_device(trained_wide(FSDP(n, min_size=64))[1])
    assert share <= 1.1 * whole / n


RULES = {"up.kernel": 1, "up.bias": 0, "down.kernel": 0}


def test_tensor_computes_what_one_device_does_and_splits_both_ways(close: Any, values: Any) -> None:
    strategy = FSDP(tensor=2, rules=RULES, min_size=64)
    assert (strategy.num_devices, strategy.num_shards) == (8, 4)
    losses, step = trained_wide(strategy)
    want_losses, want = trained_wide(OneDevice())
    np.testing.assert_allclose(losses, want_losses, rtol=0, atol=2e-6)
    close(step.model, want.model)
    state = state_of(step)
    for name in ("model", "optimizer[0].mu", "optimizer[0].nu"):
        up, down, bias = (
            state[f"{name}.{layer}.{kind}" if name == "model" else f"{name}['{layer}']['{kind}']"]
            for layer, kind in (("up", "kernel"), ("down", "kernel"), ("up", "bias"))
        )
        # 512 over the two devices of a group by the rule, 8 over the four groups.
        assert shard(up) == (8 // 4, 512 // 2)
        assert shard(down) == (512 // 2, 8 // 4)
        assert shard(bias) == (512 // 2,)


@pytest.mark.slow
def test_tensor_trains_a_transformer(tasks: Any, close: Any) -> None:
    task = tasks["gpt"]
    rules = {
        "attention.[qkv]*.kernel": 1,
        "attention.out.kernel": 0,
        "up.kernel": -1,
        "down.kernel": 0,
        "embedding": 0,
    }
    found = []
    for strategy in (OneDevice(), FSDP(tensor=2, rules=rules, min_size=64)):
        step = jg.train.make_step(task.model(), task.loss, task.optimizer, strategy=strategy)
        losses = [float(step(b)["loss"]) for b in strategy.batches(task.batches(2, SIZE))]
        found.append((losses, step))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=0, atol=2e-6)
    close(found[1][1].model, found[0][1].model)
    state = state_of(found[1][1])
    assert shard(state["model.attention.query.kernel"]) == (16 // 4, 2 // 2, 8)
    assert shard(state["model.attention.out.kernel"]) == (2 // 2, 8, 16 // 4)
    assert shard(state["model.embed.embedding"]) == (32 // 2, 16 // 4)


def test_a_leading_rule_wins_and_a_glob_matches_whole_names() -> None:
    s = FSDP(tensor=2, rules={"up.kernel": 1, "kernel": 0}, min_size=10**6)
    put = s.put({"up": {"kernel": jnp.ones((4, 4))}, "my_kernel": jnp.ones((4, 4))})
    other = s.put({"down": {"kernel": jnp.ones((4, 4))}})
    assert shard(put["up"]["kernel"]) == (4, 2)
    assert shard(other["down"]["kernel"]) == (2, 4)
    assert shard(put["my_kernel"]) == (4, 4)


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        ((8, 16), (8, 2)),  # the largest axis
        ((24, 20), (3, 20)),  # the largest that 8 devices divide
        ((16, 16), (2, 16)),
        ((7, 9), (7, 9)),  # none
        ((8, 3), (8, 3)),  # small
        ((), ()),
    ],
)
def test_which_axis_is_split(shape: tuple[int, ...], want: tuple[int, ...]) -> None:
    assert shard(FSDP(min_size=63).put([jnp.ones(shape)])[0]) == want


def test_random_keys_stay_whole() -> None:
    keys = jax.random.split(jax.random.key(0), 64)
    assert shard(FSDP(min_size=8).put([keys])[0]) == (64,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor": 3}, "tensor must divide the number of devices, 8, got 3"),
        ({"tensor": 0}, "tensor must divide the number of devices, 8, got 0"),
        ({"n": 6, "tensor": 4}, "tensor must divide the number of devices, 6, got 4"),
        ({"rules": {"kernel": 0}}, "rules say how tensor > 1 devices share a layer, got tensor=1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: Any, message: str) -> None:
    with pytest.raises(jg.InputError, match=message):
        FSDP(**options)


@pytest.mark.parametrize("axis", [1, 2, -3])
def test_a_rule_that_does_not_fit_its_array_is_refused(axis: int) -> None:
    s = FSDP(tensor=2, rules={"up.kernel": axis})
    message = (
        rf"a rule's axis must be one that 2 devices divide, 'up.kernel' gives axis {axis} of "
        r"up.kernel, which has the shape \(4, 5\)"
    )
    with pytest.raises(jg.InputError, match=message):
        s.put({"up": {"kernel": jnp.ones((4, 5))}})


def test_a_rule_that_matches_nothing_is_logged(caplog):
    s = FSDP(tensor=2, rules={"up.kernel": 1, "upp.kernel": 1})
    s.put({"up": {"kernel": jnp.ones((4, 4))}})
    assert "no array placed so far matches 'upp.kernel' of FSDP's rules" in caplog.text
    caplog.clear()
    s.put({"upp": {"kernel": jnp.ones((4, 4))}})
    assert not caplog.records
