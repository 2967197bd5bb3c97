"""`breakpoint()` inside a loss whose gradient is taken."""

import jax
import jax.numpy as jnp

import jgraph as jg


def loss_fn(x: jax.Array) -> jax.Array:
    loss = x**2 / 2
    breakpoint()
    return loss.sum()


def main() -> None:
    with jg.debug_mode():
        gradient = jax.grad(loss_fn)(jnp.array([3.0, 4.0]))
    print(f"gradient {gradient.tolist()}")


if __name__ == "__main__":
    main()
