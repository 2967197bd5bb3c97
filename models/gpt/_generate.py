"""Drawing tokens, one forward pass each.

Shape suffixes: B sequences, T tokens, C context, N new tokens.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int


def continued(
    graphdef: Any,
    state: Any,
    tokens_BT: Int[Array, "b t"],
    count: int,
    context: int,
    temperature: float | int,
    seed: int,
) -> Int[Array, "b n"]:
    """Return the next tokens of each sequence.

    Args:
        graphdef: of a model that gives logits [B, C, V] of tokens [B, C].
        state: of that model.
        tokens_BT: what to go on from, at most as long as the context.
        count: how many tokens to add.
        context: how many tokens the model sees.
        temperature: what logits are divided by; 0 takes the likeliest token.
        seed: of the draws.

    Returns:
        The added tokens, int32 [B, N].
    """
    length = tokens_BT.shape[1]
    # What lies after a token can't change its logits, so the window is filled up with anything.
    window_BC = jnp.pad(tokens_BT.astype(jnp.int32), ((0, 0), (0, context - length)))
    draw = functools.partial(_draw, graphdef, count, temperature == 0)
    return draw(state, window_BC, length, max(temperature, 1e-6), jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draw(
    graphdef: Any,
    count: int,
    greedy: bool,
    state: Any,
    window_BC: Int[Array, "b c"],
    length: Any,
    temperature: Any,
    key: Any,
) -> Int[Array, "b n"]:
    def one(carry: tuple[Array, Any], key: Array) -> tuple[tuple[Array, Any], Array]:
        window_BC, length = carry
        logits_BCV = nnx.merge(graphdef, state)(window_BC)
        logits_BV = jax.lax.dynamic_index_in_dim(logits_BCV, length - 1, 1, keepdims=False)
        if greedy:
            token_B = logits_BV.argmax(-1)
        else:
            token_B = jax.random.categorical(key, logits_BV.astype(jnp.float32) / temperature)
        is_full = length == window_BC.shape[1]
        window_BC = jnp.where(is_full, jnp.roll(window_BC, -1, axis=1), window_BC)
        length = jnp.where(is_full, length, length + 1)
        token_B = token_B.astype(jnp.int32)
        window_BC = jax.lax.dynamic_update_index_in_dim(window_BC, token_B, length - 1, 1)
        return (window_BC, length), token_B

    _, token_NB = jax.lax.scan(one, (window_BC, length), jax.random.split(key, count))
    return token_NB.T
