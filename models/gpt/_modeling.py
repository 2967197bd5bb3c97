"""GPT as a Flax NNX module.

Shape suffixes: B sequences, T tokens, D width, H heads, K features of a head, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jgraph._errors import InputError
from jgraph.models.gpt._config import GPTConfig
from jgraph.models.gpt._generate import continued

# Of new kernels and embeddings: GPT-2's at its width, larger where fewer features are summed.
_STD, _STD_WIDTH = 0.02, 768


class Attention(nnx.Module):
    """Self-attention in which a token sees itself and those before it.

    The four projections are layers of their own, so that `tensor` devices can each have heads.

    Args:
        config: the sizes.
        rngs: source of the initial values.

    Source:
        Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, section 3.2.
    """

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs) -> None:
        self.heads = config.heads
        self.query = _linear(config.width, config.width, config, rngs)
        self.key = _linear(config.width, config.width, config, rngs)
        self.value = _linear(config.width, config.width, config, rngs)
        self.out = _last_linear(config.width, config, rngs)

    def __call__(self, x_BTD: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Return what each token gathers from itself and the tokens before it."""
        batch, length, width = x_BTD.shape
        shape = batch, length, self.heads, width // self.heads
        q_BTHK, k_BTHK, v_BTHK = (
            f(x_BTD).reshape(shape) for f in (self.query, self.key, self.value)
        )
        y_BTHK = jax.nn.dot_product_attention(q_BTHK, k_BTHK, v_BTHK, is_causal=True)
        return self.out(y_BTHK.reshape(x_BTD.shape))


class MLP(nnx.Module):
    """Two layers, four times as wide in between, each token by itself.

    Args:
        config: the sizes.
        rngs: source of the initial values.
    """

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs) -> None:
        self.up = _linear(config.width, 4 * config.width, config, rngs)
        self.down = _last_linear(4 * config.width, config, rngs)

    def __call__(self, x_BTD: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Return the two layers' output."""
        return self.down(jax.nn.gelu(self.up(x_BTD)))


class Block(nnx.Module):
    """Attention, then MLP: each normalises its input and is added to it.

    Args:
        config: the sizes.
        rngs: source of the initial values and of dropout.

    Source:
        Radford et al., 2019, GPT-2, section 2.3.
    """

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = _norm(config, rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = _norm(config, rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)

    def __call__(self, x_BTD: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Return the block's output."""
        # The sum keeps its own type, float32 under a narrower compute_dtype: rounding adds up.
        y_BTD = self.dropout(self.attention(self.attention_norm(x_BTD)))
        x_BTD = x_BTD + y_BTD.astype(x_BTD.dtype)
        y_BTD = self.dropout(self.mlp(self.mlp_norm(x_BTD)))
        return x_BTD + y_BTD.astype(x_BTD.dtype)


class GPT(nnx.Module):
    """GPT: a transformer that predicts the next token, with GPT-2's blocks and a head of its own.

    Like every NNX module a new one is in training mode: dropout is on, where there is any.

    Under `compute_dtype=jax.numpy.bfloat16` everything but the embeddings and the sum along the
    blocks is computed in bfloat16, logits included; the losses take them to float32.

    `GPT.tensor_rules` are the rules for `jgraph.distribute.FSDP(tensor=…)`: of each pair of
    layers the first is split by its outputs, the second by its inputs, so that each device has
    whole heads and its part of the MLP's middle. The devices must divide heads and vocabulary.

    Args:
        config: the sizes, for instance `GPTConfig.tiny()`.
        rngs: source of the initial values (stream `params`) and of dropout (stream `dropout`).

    Source:
        Radford et al., 2019, "Language Models are Unsupervised Multitask Learners"; the rules:
        Shoeybi et al., 2019, "Megatron-LM". GPT-2's head is its embedding; this one isn't.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = GPT(GPTConfig(context=8, width=16, depth=2, heads=2), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((3, 5), jnp.int32)).shape
        (3, 5, 256)
    """

    tensor_rules: ClassVar[Mapping[str, int]] = MappingProxyType(
        {
            **{f"attention.{name}.kernel": 1 for name in ("query", "key", "value")},
            **{f"attention.{name}.bias": 0 for name in ("query", "key", "value")},
            "attention.out.kernel": 0,
            "mlp.up.kernel": 1,
            "mlp.up.bias": 0,
            "mlp.down.kernel": 0,
            "head.kernel": 1,
        }
    )

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        draw = _draw(config.width)
        self.tokens = nnx.Embed(config.vocab_size, config.width, embedding_init=draw, rngs=rngs)
        self.positions = nnx.Embed(config.context, config.width, embedding_init=draw, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.depth)])
        self.norm = _norm(config, rngs)
        self.head = _linear(config.width, config.vocab_size, config, rngs, use_bias=False)

    def features(self, tokens_BT: Int[Array | np.ndarray, "b t"]) -> Float[Array, "b t d"]:
        """Return what the head sees, for `jgraph.losses.linear_softmax_cross_entropy`.

        Args:
            tokens_BT: token ids in `[0, V)`, integer, at most `config.context` of them each.

        Returns:
            Features, [B, T, D].

        Raises:
            InputError: the tokens are no such batch.
        """
        self._check(tokens_BT)
        tokens_BT = jnp.asarray(tokens_BT)
        position_1T = jnp.arange(tokens_BT.shape[1])[None]
        x_BTD = self.dropout(self.tokens(tokens_BT) + self.positions(position_1T))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm(x_BTD)

    def __call__(self, tokens_BT: Int[Array | np.ndarray, "b t"]) -> Float[Array, "b t v"]:
        """Return the logits of the token that follows each one.

        Args:
            tokens_BT: token ids in `[0, V)`, integer, at most `config.context` of them each.

        Returns:
            Logits, [B, T, V]; those at t depend on the tokens up to t alone.

        Raises:
            InputError: the tokens are no such batch.
        """
        return self.head(self.features(tokens_BT))

    def generate(
        self,
        tokens_BT: Int[Array | np.ndarray, "b t"],
        count: int,
        *,
        temperature: float | int = 1.0,
        seed: int = 0,
    ) -> Int[Array, "b n"]:
        """Continue sequences token by token, in evaluation mode; the model isn't changed.

        It sees the last `config.context` tokens. Each costs a whole forward pass.

        Args:
            tokens_BT: token ids to go on from, integer, at least one each.
            count: how many tokens to add, at least 1.
            temperature: what logits are divided by before drawing; 0 takes the likeliest token.
            seed: of the draws.

        Returns:
            The added tokens, int32 [B, count].

        Raises:
            InputError: there is nothing to go on from, or a number is out of range.

        Example:
            >>> import jax.numpy as jnp
            >>> from flax import nnx
            >>> model = GPT(GPTConfig(context=8, width=16, depth=1, heads=2), rngs=nnx.Rngs(0))
            >>> model.generate(jnp.array([[1, 2, 3]]), 20).shape
            (1, 20)
        """
        tokens_BT = jnp.asarray(tokens_BT)[:, -self.config.context :]
        self._check(tokens_BT)
        if count < 1 or not temperature >= 0:
            raise InputError(
                "count must be at least 1 and temperature at least 0, got "
                f"count={count} and temperature={temperature}"
            )
        twin = nnx.merge(*nnx.split(self))  # modes are flags on modules
        twin.eval()
        graphdef, state = nnx.split(twin)
        return continued(graphdef, state, tokens_BT, count, self.config.context, temperature, seed)

    def _check(self, tokens_BT: Array | np.ndarray) -> None:
        shape, context = jnp.shape(tokens_BT), self.config.context
        is_integer = jnp.issubdtype(jnp.result_type(tokens_BT), jnp.integer)
        if not is_integer or len(shape) != 2 or not 1 <= shape[1] <= context:
            raise InputError(
                f"GPT takes integer tokens of shape [B, T], T from 1 to {context}, its context; "
                f"got {jnp.result_type(tokens_BT)} of shape {list(shape)}"
            )


def _draw(width: int, *, branches: int = 1) -> nnx.Initializer:
    return nnx.initializers.normal(_STD * math.sqrt(_STD_WIDTH / width / branches))


def _linear(
    inputs: int, outputs: int, config: GPTConfig, rngs: nnx.Rngs, *, use_bias: bool = True
) -> nnx.Linear:
    draw = _draw(config.width)
    return nnx.Linear(inputs, outputs, use_bias=use_bias, kernel_init=draw, rngs=rngs)


def _last_linear(inputs: int, config: GPTConfig, rngs: nnx.Rngs) -> nnx.Linear:
    """Return the last layer of a branch: small, so that their sum doesn't grow with the depth."""
    draw = _draw(config.width, branches=2 * config.depth)
    return nnx.Linear(inputs, config.width, kernel_init=draw, rngs=rngs)


def _norm(config: GPTConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.width, epsilon=1e-5, rngs=rngs)
