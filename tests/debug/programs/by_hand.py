"""Three training steps by hand, in debug mode. The marks name places for breakpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jgraph as jg


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.last = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jnp.tanh(self.first(x))
        h = h + 1.0  # mark: model

        def decay(carry: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
            carry = carry * rate
            return carry, carry.sum()  # mark: scanned body

        h, _ = jax.lax.scan(decay, h, jnp.array([0.9, 0.8]))
        return self.last(h)


def loss_fn(model: Network, batch: dict[str, jax.Array]) -> jax.Array:
    predictions = model(batch["x"])  # mark: call
    errors = predictions - batch["y"]
    losses = (errors**2)[:, 0]
    scale = 1.0  # mark: loss
    return losses * scale


@jg.function
def train_step(model: Network, optimizer: nnx.Optimizer, batch: dict[str, jax.Array]) -> jax.Array:
    loss, gradients = nnx.value_and_grad(lambda m: loss_fn(m, batch).mean())(model)
    optimizer.update(model, gradients)
    return loss  # mark: step


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 3)).astype(np.float32)
    batch = {"x": jnp.asarray(x), "y": jnp.asarray(x.sum(1, keepdims=True))}
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    with jg.debug_mode():
        for _ in range(3):
            loss = train_step(model, optimizer, batch)
            print(f"loss {float(loss):.6f}", flush=True)


if __name__ == "__main__":
    main()
