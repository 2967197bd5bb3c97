"""GPT: its numbers, what it may see, and how it is trained, sampled and split."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from flax import nnx

import jgraph as jg
from jgraph._errors import InputError
from jgraph.models import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=24, context=8, width=16, depth=2, heads=4)
NORMS = ("attention_norm", "mlp_norm")
TEXT = np.frombuffer(b"the cat sat on the mat and the rat sat on the cat. " * 8, np.uint8) % 24


@pytest.fixture(scope="module")
def model() -> GPT:
    """Look, don't touch."""
    model = GPT(CONFIG, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    # At first biases are 0 and scales 1, which would hide where they are forgotten.
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        value = variable.get_value()
        noise = 0.3 * rng.standard_normal(value.shape)
        variable.set_value(value + jnp.asarray(noise, value.dtype))
    return model


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 24, (3, 8), dtype=np.int32)


@nnx.jit
def logits_of(model: GPT, tokens: Any) -> jax.Array:
    return model(tokens)


def by_hand(model: GPT, tokens: np.ndarray) -> np.ndarray:
    """Return the logits of GPT-2's equations, one token and head after the other, in float64."""
    w = {name: np.asarray(x, np.float64) for name, x in jg.models.weights_of(model).items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}/scale"] + w[f"{name}/bias"]

    def attention(name: str, x: np.ndarray) -> np.ndarray:
        q, k, v = (linear(f"{name}/{part}", x) for part in ("query", "key", "value"))
        out = np.zeros_like(x)
        for t in range(len(x)):
            for head in np.split(np.arange(16), 4):
                score = np.exp(q[t, head] @ k[: t + 1, head].T / math.sqrt(len(head)))
                out[t, head] = score / score.sum() @ v[: t + 1, head]
        return linear(f"{name}/out", out)

    def mlp(name: str, x: np.ndarray) -> np.ndarray:
        h = linear(f"{name}/up", x)
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        return linear(f"{name}/down", h)

    def one(ids: np.ndarray) -> np.ndarray:
        x = w["tokens/embedding"][ids] + w["positions/embedding"][: len(ids)]
        for block in ("blocks/0", "blocks/1"):
            x = x + attention(f"{block}/attention", norm(f"{block}/attention_norm", x))
            x = x + mlp(f"{block}/mlp", norm(f"{block}/mlp_norm", x))
        return norm("norm", x) @ w["head/kernel"]

    return np.stack([one(ids) for ids in tokens])


def test_the_logits_are_those_of_the_equations(model: GPT, tokens: np.ndarray) -> None:
    found, expected = logits_of(model, tokens), by_hand(model, tokens)
    assert found.dtype == jnp.float32
    # float32 through two blocks.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        logits_of(model, tokens[:, :5]), expected[:, :5], rtol=1e-4, atol=1e-4
    )


def test_the_sizes_of_gpt2_give_its_number_of_parameters() -> None:
    model = nnx.eval_shape(lambda: GPT(GPTConfig.gpt2(), rngs=nnx.Rngs(0)))
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    # The published 124,439,808, whose head is the embedding.
    assert sum(sizes) == 124_439_808 + 50257 * 768


def test_a_later_token_changes_no_earlier_logits(model: GPT, tokens: np.ndarray) -> None:
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 24
    before, after = (np.asarray(logits_of(model, x)) for x in (tokens, changed))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()


def test_at_first_every_token_is_about_as_likely(tokens: np.ndarray) -> None:
    logits = logits_of(GPT(CONFIG, rngs=nnx.Rngs(0)), tokens)
    loss = jg.losses.sparse_softmax_cross_entropy(logits, tokens).mean()
    assert abs(float(loss) - math.log(24)) < 0.3


@pytest.mark.slow
def test_the_head_is_one_matrix_for_the_fused_loss(model: GPT, tokens: np.ndarray) -> None:
    features = nnx.jit(GPT.features)(model, tokens)
    fused = jg.losses.linear_softmax_cross_entropy(
        features.reshape(-1, 16), model.head.kernel.get_value(), jnp.asarray(tokens.ravel())
    )
    plain = jg.losses.sparse_softmax_cross_entropy(logits_of(model, tokens), tokens)
    np.testing.assert_allclose(fused, plain.ravel(), rtol=1e-4)


def batches(size: int = 16) -> list[dict[str, np.ndarray]]:
    starts = np.random.default_rng(2).integers(0, len(TEXT) - 9, (4, size, 1))
    return [{"tokens": TEXT[s + np.arange(9)].astype(np.int32)} for s in starts]


def next_token_loss(model: GPT, batch: dict[str, Any]) -> jax.Array:
    tokens = batch["tokens"]
    return jg.losses.sparse_softmax_cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])


@pytest.mark.slow
@pytest.mark.parametrize("compute_dtype", [None, jnp.bfloat16])
def test_it_learns(compute_dtype: Any) -> None:
    model = GPT(CONFIG, rngs=nnx.Rngs(0))
    # Flax's norms mix bfloat16 with float32 by themselves.
    with jax.numpy_dtype_promotion("standard"):
        result = jg.train_and_evaluate(
            model,
            next_token_loss,
            optax.adam(1e-2),
            train=jg.TrainSpec(batches(), max_steps=20, log_every=1),
            compute_dtype=compute_dtype,
        )
    losses = [row["loss"] for row in result.rows("train")]
    assert losses[-1] < 0.8 * losses[0]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_bfloat16_rounds_and_changes_nothing_else(model: GPT, tokens: np.ndarray) -> None:
    with jax.numpy_dtype_promotion("standard"):
        rounded = jg.predict(model, lambda model, x: model(x), [tokens], compute_dtype=jnp.bfloat16)
    assert rounded.dtype == jnp.bfloat16
    exact = np.asarray(logits_of(model, tokens))
    # 8 bits of mantissa: 2 to the -8 per operation, some tens of them in a row.
    assert 1e-3 < np.abs(rounded.astype(np.float32) - exact).max() / exact.std() < 0.1


def test_dropout_is_there_while_training_only(tokens: np.ndarray) -> None:
    model = GPT(GPTConfig(24, 8, 16, 1, 4, dropout=0.5), rngs=nnx.Rngs(0))
    assert not np.array_equal(logits_of(model, tokens), logits_of(model, tokens))
    model.eval()
    np.testing.assert_array_equal(logits_of(model, tokens), logits_of(model, tokens))


def test_its_parts_have_names_in_the_graph(model: GPT, tokens: np.ndarray) -> None:
    text = jg.function(lambda model, x: model(x)).graph(model, tokens).text()
    names = {line.split()[0] for line in text.splitlines() if line.strip()}
    parts = {"tokens", "positions", "blocks[0…1]", "attention_norm", "attention", "query", "key"}
    assert parts | {"value", "out", "mlp_norm", "mlp", "up", "down", "norm", "head"} <= names
    assert "×2" in text


def test_greedy_tokens_are_the_likeliest_ones(model: GPT, tokens: np.ndarray) -> None:
    sequence = tokens = tokens[:, :6]
    for _ in range(10):  # beyond the context of 8
        logits = logits_of(model, sequence[:, -8:])[:, -1]
        sequence = np.append(sequence, np.asarray(logits.argmax(-1, keepdims=True)), axis=1)
    found = model.generate(tokens, 10, temperature=0)
    np.testing.assert_array_equal(found, sequence[:, 6:])


@pytest.mark.slow
def test_drawn_tokens_are_as_frequent_as_likely(model: GPT) -> None:
    tokens = np.zeros((4000, 2), np.int32)
    drawn = np.asarray(model.generate(tokens, 1, temperature=2.0, seed=1))
    p = jax.nn.softmax(logits_of(model, tokens[:1])[0, -1] / 2.0)
    # Five standard deviations of a share of 4000 draws are at most 0.04.
    np.testing.assert_allclose(np.bincount(drawn[:, 0], minlength=24) / 4000, p, atol=0.04)
    np.testing.assert_array_equal(drawn, model.generate(tokens, 1, temperature=2.0, seed=1))
    assert not np.array_equal(drawn, model.generate(tokens, 1, temperature=2.0, seed=2))


def test_generate_leaves_the_model_as_it_was() -> None:
    model = GPT(GPTConfig(24, 8, 16, 1, 4, dropout=0.5), rngs=nnx.Rngs(0))
    before = jax.tree.leaves(nnx.state(model, nnx.RngCount))
    tokens = np.zeros((1, 20), np.int32)  # longer than the context
    first, second = (model.generate(tokens, 6, temperature=0) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not model.dropout.deterministic
    for a, b in zip(before, jax.tree.leaves(nnx.state(model, nnx.RngCount)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_tensor_rules_split_every_pair_of_layers(model: GPT, tokens: np.ndarray) -> None:
    strategy = jg.distribute.FSDP(4, tensor=2, rules=GPT.tensor_rules, min_size=10**6)
    split = strategy.put(nnx.merge(*nnx.split(model)))
    shards = {
        ".".join(map(str, path)): leaf.get_value().addressable_shards[0].data.shape
        for path, leaf in nnx.to_flat_state(nnx.state(split.blocks[1], nnx.Param))
    }
    assert shards == {
        **{f"attention.{name}.kernel": (16, 8) for name in ("query", "key", "value")},
        **{f"attention.{name}.bias": (8,) for name in ("query", "key", "value")},
        "attention.out.kernel": (8, 16),
        "attention.out.bias": (16,),
        "mlp.up.kernel": (16, 32),
        "mlp.up.bias": (32,),
        "mlp.down.kernel": (32, 16),
        "mlp.down.bias": (16,),
        **{f"{name}.{leaf}": (16,) for name in NORMS for leaf in ("scale", "bias")},
    }
    assert split.head.kernel.get_value().addressable_shards[0].data.shape == (16, 12)
    run = jg.function(lambda model, x: model(x), strategy=strategy)
    found = run(split, strategy.put_batch(np.repeat(tokens[:2], 2, axis=0)))
    np.testing.assert_allclose(found[::2], logits_of(model, tokens[:2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "came"),
    [
        (np.zeros((1, 9), np.int32), r"int32 of shape \[1, 9\]"),
        (np.zeros((1, 0), np.int32), r"int32 of shape \[1, 0\]"),
        (np.zeros(3, np.int32), r"int32 of shape \[3\]"),
        (np.zeros((1, 3), np.float32), r"float32 of shape \[1, 3\]"),
    ],
)
def test_tokens_are_a_batch_of_ids_within_the_context(
    model: GPT, tokens: np.ndarray, came: str
) -> None:
    # Without the shape types of the tests, as a user runs it.
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(InputError, match=rf"T from 1 to 8, its context; got {came}"):
            model(tokens)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_generate_refuses_numbers_out_of_range(model: GPT, tokens: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"got count=0 and temperature=1\.0"):
        model.generate(tokens, 0)
    with pytest.raises(InputError, match=r"got count=1 and temperature=-1\.0"):
        model.generate(tokens, 1, temperature=-1.0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"width": 30}, "heads must divide width, got 4 heads and width 30"),
        ({"dropout": 1.0}, "dropout must be from 0 up to, not including, 1, got 1.0"),
    ],
)
def test_sizes_that_fit_no_network_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GPTConfig(**sizes)
