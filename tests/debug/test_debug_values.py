"""In debug mode user code sees plain arrays in every construct, and gradients are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import jgraph as jg

SEEN: list[Any] = []
MODES = [{}, {"vmap": "loop"}, {"level": "functions"}, {"check": ()}]


def see(x: Any) -> Any:
    SEEN.append(x)
    return x


@jax.checkpoint
def checkpointed(x: jax.Array) -> jax.Array:
    return jnp.sin(see(x)) * x


def saved(x: jax.Array) -> jax.Array:
    policy = jax.checkpoint_policies.dots_saveable
    return jax.checkpoint(lambda x: see(jnp.sin(x)) * x, policy=policy)(x)


@jax.custom_vjp
def with_vjp(x: jax.Array) -> jax.Array:
    return see(x) ** 2


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return see(x) ** 2, x


def _backward(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    return (see(cotangent) * 3 * see(x),)


with_vjp.defvjp(_forward, _backward)


@jax.custom_jvp
def with_jvp(x: jax.Array) -> jax.Array:
    return see(x) ** 2


@with_jvp.defjvp
def _rule(primals: Any, tangents: Any) -> Any:
    (x,), (tangent,) = primals, tangents
    return see(x) ** 2, see(tangent) * 5 * x


def scanned(x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda c, t: (jnp.tanh(see(c) + t), c.sum()), x, jnp.arange(3.0))[0]


def looped(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 3, lambda _, c: see(c) * x, x)


def branched(x: jax.Array) -> jax.Array:
    def twice(x: jax.Array) -> jax.Array:
        return 2 * see(x)

    x = jax.lax.cond(x.mean() > 0, twice, jnp.cos, x)
    return jax.lax.switch(1, [jnp.sin, twice], x)


def halved(x: jax.Array) -> jax.Array:
    y = jax.lax.stop_gradient(x)
    return x * jax.lax.while_loop(lambda y: y.max() > 1, lambda y: see(y) / 2, y)


def mapped(x: jax.Array) -> jax.Array:
    return jax.lax.map(lambda v: see(v) * v, x)


def jitted(x: jax.Array) -> jax.Array:
    sin = jax.jit(lambda x: jnp.sin(see(x)))
    return sin(sin(sin(x)))


X = jnp.array([0.5, 1.5, 2.5])
BODIES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "checkpointed": checkpointed,
    "saved": saved,
    "with_vjp": with_vjp,
    "with_jvp": with_jvp,
    "scanned": scanned,
    "looped": looped,
    "branched": branched,
    "halved": halved,
    "mapped": mapped,
    "jitted": jitted,
}
ONLY_REVERSE = {"with_vjp"}
# Under "functions" what jax.jit and control flow run stays compiled.
COMPILED = {"scanned", "looped", "branched", "halved", "mapped", "jitted"}


def same(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if a.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def is_plain() -> bool:
    return bool(SEEN) and all(type(x).__name__ == "ArrayImpl" for x in SEEN)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_gradients_are_equal_and_values_plain(name: str, mode: Any) -> None:
    body = BODIES[name]

    def run() -> Any:
        return jax.value_and_grad(lambda x: (2 * body(x)).sum())(X)

    want = jax.jit(run)()
    SEEN.clear()
    with jg.debug_mode(**mode):
        got = run()
    assert is_plain() or (mode.get("level") == "functions" and name in COMPILED)
    same(got, want)


@pytest.mark.parametrize("name", [name for name in BODIES if name not in ONLY_REVERSE])
def test_forward_mode_and_both(name: str) -> None:
    body = BODIES[name]

    def run() -> Any:
        pushed = jax.jvp(body, (X,), (jnp.cos(X),))
        return pushed, jax.jacfwd(body)(X), jax.hessian(lambda x: body(x).sum())(X)

    want = jax.jit(run)()
    SEEN.clear()
    with jg.debug_mode(vmap="loop"):
        got = run()
    assert is_plain()
    same(got, want)
    with jg.debug_mode():
        same(run(), want)


@pytest.mark.parametrize("name", BODIES)
def test_jacobians_and_nested_gradients(name: str) -> None:
    body = BODIES[name]

    def run() -> Any:
        def slope(x: jax.Array) -> jax.Array:
            return (jax.grad(lambda x: (body(x) ** 2).sum())(x) ** 2).sum()

        return jax.jacrev(body)(X), jax.grad(slope)(X)

    want = jax.jit(run)()
    SEEN.clear()
    with jg.debug_mode(vmap="loop"):
        got = run()
    assert is_plain()
    same(got, want, 1e-4)


MORE: dict[str, Callable[[], Any]] = {
    "third derivative": lambda: jax.grad(jax.grad(jax.grad(lambda v: see(v) ** 4)))(2.0),
    "gradient of a pushforward": lambda: jax.grad(
        lambda x: jax.jvp(lambda y: see(jnp.sin(y)), (x,), (x,))[1]
    )(2.0),
    "dicts": lambda: jax.grad(
        lambda a, b: (see(a["w"]) * b).sum() + (a["w"] * a["v"]).sum(), argnums=(0, 1)
    )({"w": jnp.ones(2), "v": jnp.ones(2)}, jnp.arange(2.0)),
    "the same array twice": lambda: jax.grad(lambda a, b: (see(a) * b * X).sum(), (0, 1))(X, X),
    "an output is an input": lambda: jax.vjp(lambda x: (see(x), x), X)[1]((X, X)),
    "auxiliary results": lambda: jax.value_and_grad(
        lambda x: ((see(x) ** 2).sum(), x + 1), has_aux=True
    )(X),
    "integers": lambda: jax.grad(
        lambda x, i: see(x)[i].sum() + i.sum().astype(jnp.float32), allow_int=True
    )(X, jnp.array([0, 2])),
    "sorting": lambda: jax.grad(lambda x: jax.lax.top_k(see(jnp.sort(x)), 2)[0].sum())(X),
    "a copy": lambda: jax.grad(lambda x: (jnp.array(see(x), copy=True) * x).sum())(X),
    "indexing": lambda: jax.grad(lambda x: see(x)[1] * x[0] + sum(v * v for v in x))(X),
    "linear algebra": lambda: jax.grad(
        lambda x: jnp.linalg.slogdet(jnp.outer(see(x), x) + jnp.eye(3))[1]
    )(X),
    "random": lambda: jax.grad(
        lambda x: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, (3,)), see(x), 0).sum()
    )(X),
    "bfloat16": lambda: jax.grad(
        lambda x: (see(x) * jnp.ones(2, jnp.bfloat16)).sum().astype(jnp.float32)
    )(2.0),
    "a constant": lambda: jax.grad(lambda x: 1.0)(see(jnp.float32(3))),
}


@pytest.mark.parametrize("name", MORE)
def test_more(name: str) -> None:
    want = MORE[name]()
    SEEN.clear()
    with jg.debug_mode():
        got = MORE[name]()
    assert is_plain()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.weak_type == b.weak_type if hasattr(b, "weak_type") else a.dtype == b.dtype
    same(got, want)


@pytest.mark.parametrize("batched", [False, True])
def test_control_flow_sees_no_python_numbers(batched: bool) -> None:
    def program(x: jax.Array) -> Any:
        def body(i: jax.Array, carry: Any) -> Any:
            total, count = carry
            return total + x * see(i).astype(jnp.float32), see(count) + 1

        total, count = jax.lax.fori_loop(1, 4, body, (0.0, 0))
        count, _ = jax.lax.scan(lambda c, _: (see(c) * 2, None), count, None, length=2)
        count, _ = jax.lax.while_loop(
            lambda c: see(c[1]) < 3, lambda c: (c[0], c[1] + 1), (count, 0)
        )
        more = jax.lax.cond(count > 1, lambda n: see(n) + 1, lambda n: n, 2)
        more = more + jax.lax.switch(0, [lambda n: see(n) * 3], 1)
        empty, rows = jax.lax.scan(lambda c, v: (c, v * c), 2.0, jnp.ones((0, 2)))
        squared = jax.checkpoint(lambda n: see(n) * n)(2.0)
        return total, count, more, empty, rows, with_jvp(2.0) + with_vjp(2.0) + squared

    run = jax.vmap(program) if batched else program
    x = jnp.ones(2) if batched else jnp.float32(1)
    want = jax.jit(run)(x)
    SEEN.clear()
    with jg.debug_mode():
        got = run(x)
    assert all(isinstance(x, jax.Array) for x in SEEN)
    assert batched or is_plain()
    same(got, want)


def test_a_vjp_can_be_pulled_back_twice_and_checks_what_it_is_given() -> None:
    with jg.debug_mode():
        _, pull = jax.vjp(lambda x: x**2, X)
        same(pull(jnp.ones(3)), (2 * X,))
        same(pull(jnp.full(3, 2.0)), (4 * X,))
        with pytest.raises(ValueError, match=r"float32\[3\], got float32\[2\]"):
            pull(jnp.ones(2))
        with pytest.raises(ValueError, match="must have the structure"):
            pull((jnp.ones(3), jnp.ones(3)))


def test_forward_mode_refuses_what_jax_refuses() -> None:
    with jg.debug_mode(), pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(with_vjp, (X,), (X,))
    with jg.debug_mode(), pytest.raises(ValueError, match="different primal and tangent shapes"):
        jax.jvp(jnp.sin, (X,), (X[:2],))


def test_a_rule_that_closes_over_what_is_differentiated_is_refused() -> None:
    def outer(w: jax.Array) -> jax.Array:
        @jax.custom_vjp
        def inner(x: jax.Array) -> jax.Array:
            return x * w

        inner.defvjp(lambda x: (x * w, None), lambda _, cotangent: (cotangent,))
        return inner(w * 2.0)

    with jg.debug_mode(), pytest.raises(ValueError, match="pass that value as an argument"):
        jax.grad(outer)(2.0)


def test_mutable_arrays_are_refused_in_gradients() -> None:
    def loss(x: jax.Array) -> jax.Array:
        ref = jax.new_ref(x)
        return ref[...].sum()

    with jg.debug_mode(), pytest.raises(NotImplementedError, match="mutable arrays"):
        jax.grad(loss)(X)


def test_per_example_bodies_show_the_batch_or_run_as_a_loop() -> None:
    shown: list[str] = []

    def row(x: jax.Array) -> jax.Array:
        shown.extend((repr(x), f"{x.sum():.1f}", str(np.asarray(x).shape)))
        return see(x) ** 2

    def run() -> Any:
        return jax.vmap(row, in_axes=1, out_axes=1)(jnp.ones((3, 2)))

    SEEN.clear()
    with jg.debug_mode():
        same(run(), jnp.ones((3, 2)))
        assert jg.value(SEEN[0]).shape == (3, 2)
        with pytest.raises(jax.errors.ConcretizationTypeError):
            jax.vmap(lambda x: float(x))(jnp.ones(2))
    assert "the whole batch; here each example's float32[3]" in shown[0]
    assert shown[1:] == ["[3.0 3.0]", "(3, 2)"]
    SEEN.clear()
    with jg.debug_mode(vmap="loop"):
        same(run(), jnp.ones((3, 2)))
        assert jax.vmap(lambda x: float(x) * x)(jnp.arange(3.0)).tolist() == [0, 1, 4]
    assert is_plain()
    assert SEEN[0].shape == (3,)
    assert repr(jax.jit(lambda x: repr(x) and x)(X)) == repr(X)


def test_shards_are_shown_and_differentiated() -> None:
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))
    split = PartitionSpec("i")
    w = jnp.float32(2)

    def run() -> Any:
        def loss(x: jax.Array, w: jax.Array) -> jax.Array:
            def shard(v: jax.Array) -> jax.Array:
                return jnp.sin(see(v)) * w + jax.lax.psum(v, "i")

            return jax.shard_map(shard, mesh=mesh, in_specs=split, out_specs=split)(x).sum()

        x = jnp.arange(4.0)
        return jax.grad(loss, argnums=(0, 1))(x, w), jax.jacfwd(loss)(x, w)

    want = jax.jit(run)()
    SEEN.clear()
    with jg.debug_mode():
        got = run()
        assert jg.value(SEEN[0]).tolist() == [[0, 1], [2, 3]]
    same(got, want)


def test_pmap_inside_a_gradient() -> None:
    def run() -> Any:
        def loss(x: jax.Array) -> jax.Array:
            replica = jax.pmap(lambda v: jax.lax.psum(v**2, "i") * v, axis_name="i")
            return replica(x).sum()

        return jax.grad(loss)(jnp.arange(4.0).reshape(2, 2))

    want = run()
    with jg.debug_mode():
        same(run(), want)
