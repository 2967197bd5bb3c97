"""The operations of forward passes, training steps, loops and branches."""

import inspect

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jgraph.graph._ops import ops_of, program_of


def net(params, x):
    with jax.named_scope("model"):
        for i, w in enumerate(params):
            with jax.named_scope(f"layers[{i}]"):
                x = jax.nn.relu(x @ w)
    return x


def step(params, opt_state, x):
    loss, gradients = jax.value_and_grad(lambda p: jnp.mean(net(p, x) ** 2))(params)
    # optax mixes its counter with floats.
    with jax.named_scope("optimizer"), jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optax.adam(1e-3).update(gradients, opt_state, params)
        return loss, optax.apply_updates(params, updates), opt_state


PARAMS = [jnp.ones((4, 4)), jnp.ones((4, 4))]
X = jnp.ones((2, 4))


def traced_step():
    return jax.make_jaxpr(step)(PARAMS, optax.adam(1e-3).init(PARAMS), X)


def test_calls_are_inlined_and_linked():
    program = program_of(jax.make_jaxpr(jax.jit(net))(PARAMS, X))
    assert [op.name for op in program.ops] == ["dot_general", "max", "dot_general", "max"]
    assert [op.scope for op in program.ops[::2]] == [("model", "layers[0]"), ("model", "layers[1]")]
    assert [op.function for op in program.ops] == [None, "relu", None, "relu"]
    assert program.ops[0].producers == ((-3,), (-1,))  # x is input 2, the first matrix input 0
    assert program.ops[2].producers == ((1,), (-2,))
    assert program.ops[2].reads == (1, -2)
    assert program.results == ((3,),)
    assert program.ops[0].inputs == ("f32[2,4]", "f32[4,4]")
    assert {op.phase for op in program.ops} == {"forward"}


def test_lines_are_those_of_the_caller_not_of_the_first_one():
    jax.make_jaxpr(jax.nn.relu)(X)  # JAX keeps what it traced here, and its lines
    lines, first = inspect.getsourcelines(net)
    wanted = f"test_ops.py:{first + next(i for i, x in enumerate(lines) if 'relu' in x)}"
    found = ops_of(jax.make_jaxpr(net)(PARAMS, X))
    assert {op.source for op in found} == {wanted}
    assert all(op.source_path and op.source_path.endswith(f"graph/{wanted}") for op in found)


def test_phases_of_a_training_step():
    found = ops_of(traced_step())
    products = [(op.phase, op.scope[-1]) for op in found if op.name == "dot_general"]
    assert products == [
        ("forward", "layers[0]"),
        ("forward", "layers[1]"),
        ("backward", "layers[1]"),  # of the matrix
        ("backward", "layers[1]"),  # of the input
        ("backward", "layers[0]"),
    ]
    assert {op.phase for op in found if op.scope[:1] == ("optimizer",)} == {"update"}
    assert {op.scope[:1] for op in found if op.phase == "update"} == {("optimizer",)}
    # The masks of relu are made in the forward pass, and only for the backward pass.
    assert {op.phase for op in found if op.name == "gt"} == {"backward"}
    forward = [op.function or op.name for op in found if op.phase == "forward" and op.scope]
    assert forward == ["dot_general", "relu", "dot_general", "relu"]


def test_a_gradient_without_its_value_keeps_a_forward_pass():
    found = ops_of(jax.make_jaxpr(jax.grad(lambda p, x: jnp.mean(net(p, x) ** 2)))(PARAMS, X))
    assert [op.phase for op in found if op.name == "dot_general"][:2] == ["forward"] * 2
    assert "update" not in {op.phase for op in found}


def test_a_recomputed_pass_is_backward():
    f = jax.checkpoint(lambda p, x: jnp.sum(net(p, x)))
    products = ops_of(jax.make_jaxpr(jax.value_and_grad(f))(PARAMS, X))
    phases = [op.phase for op in products if op.name == "dot_general"]
    assert phases.count("forward") == 2
    assert phases.count("backward") >= 4
    assert all("model" in op.scope for op in products if op.name == "dot_general")


def test_a_scan_repeats_its_body():
    def scanned(params, x):
        return lax.scan(lambda c, w: (net([w], c), None), x, params)[0] * 2.0

    program = program_of(jax.make_jaxpr(scanned)(jnp.ones((5, 4, 4)), X))
    scan, product, relu, double = program.ops
    assert (scan.name, scan.flops, scan.parent) == ("scan", 0, None)
    assert (product.parent, product.repeat, product.total_flops) == (0, 5, 5 * 64)
    assert double.producers[0] == (relu.id,)  # the result comes from inside the loop
    assert product.producers == ((-2,), (-1,))


def test_the_dearer_branch_counts():
    def branched(x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x + 1.0, x)

    found = {op.name: op for op in ops_of(jax.make_jaxpr(branched)(jnp.ones((4, 4))))}
    assert (found["dot_general"].repeat, found["add"].repeat) == (1, 0)
    assert found["add"].parent == found["cond"].id
    program = program_of(jax.make_jaxpr(branched)(jnp.ones((4, 4))))
    assert set(program.results[0]) == {found["dot_general"].id, found["add"].id}


def test_convolutions_say_their_window():
    def f(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x,
            w,
            (2, 2),
            "SAME",
            rhs_dilation=(1, 2),
            feature_group_count=6,
            dimension_numbers=numbers,
        )

    (op,) = ops_of(jax.make_jaxpr(f)(jnp.ones((1, 9, 9, 6)), jnp.ones((3, 5, 1, 6))))
    assert op.detail == "3x5 stride 2 dilation 1x2 depthwise"
    assert op.is_product
