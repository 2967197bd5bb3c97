"""How a program is grouped, merged and joined, before it has a size."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jgraph.graph._ops import program_of
from jgraph.graph._picture._facts import Port
from jgraph.graph._picture._node import TOP, merged_name
from jgraph.graph._picture._tree import tree_of
from jgraph.graph._picture._view import view_of
from jgraph.graph._picture._words import op_word, phrase

X = jnp.ones((2, 8))
W = jnp.ones((8, 8))


def scope(name):
    return jax.named_scope(name)


def linear(name, x, w=W):
    with scope(name):
        return x @ w


def residual(name, x, w=W):
    with scope(name):
        return x + linear("down", jax.nn.relu(linear("up", x, w)), w)


def tree(f, *args, state=0):
    program = program_of(jax.make_jaxpr(f)(*args))
    inputs = [
        Port(f"in{k}", is_state=k < state, is_param=k < state) for k in range(len(program.inputs))
    ]
    outputs = [Port(f"out{k}") for k in range(len(program.outputs))]
    return tree_of(program, inputs, outputs, "net")


def body(root):
    """Return the root's parts without its ends."""
    return [child for child in root.children if child.kind not in ("input", "output")]


def shown(node):
    return [
        (child.title or child.phrase, child.copies)
        for child in node.children
        if child.kind not in ("input", "output")
    ]


def joined(node):
    return [(edge.source, edge.target) for edge in node.edges]


def test_equal_blocks_become_one():
    def net(x):
        for i in range(100):
            x = residual(f"blocks[{i}]", x)
        return x

    root = tree(net, X)
    assert shown(root) == [("blocks[0…99]", 100)]
    (blocks,) = body(root)
    assert shown(blocks) == [("up", 1), ("relu", 1), ("down", 1), ("add", 1)]
    # Into `up` and round it into `add`; then down the column and out.
    assert joined(blocks) == [(TOP, 0), (TOP, 3), (0, 1), (1, 2), (2, 3), (3, 4)]
    assert root.flops == blocks.flops == 100 * (2 * 2 * 2 * 64 + 2 * 16)
    assert joined(root) == [(0, 1), (1, 2)]


def test_the_first_of_a_stage_stands_alone_where_it_differs():
    def net(x):
        x = linear("blocks[0]", x, jnp.ones((8, 6)))
        for i in range(1, 4):
            x = linear(f"blocks[{i}]", x, jnp.ones((6, 6)))
        return linear("blocks[4]", x, jnp.ones((6, 8)))

    assert shown(tree(net, X)) == [("blocks[0]", 1), ("blocks[1…3]", 3), ("blocks[4]", 1)]


def test_a_pattern_of_several_modules_is_merged():
    def net(x):
        for i in range(0, 8, 2):
            x = jnp.sin(linear(f"layers[{i + 1}]", jnp.tanh(linear(f"layers[{i}]", x))))
        return x

    root = tree(net, X)
    (group,) = body(root)
    assert (group.kind, group.copies) == ("group", 4)
    assert shown(group) == [("layers[0]", 1), ("tanh", 1), ("layers[1]", 1), ("sin", 1)]
    assert group.flops == root.flops


def test_parallel_heads_are_merged_and_a_different_input_is_not():
    def net(x, y):
        heads = [linear(f"heads[{i}]", x) for i in range(3)]
        return jnp.concatenate([*heads, linear("heads[3]", y)])

    assert shown(tree(net, X, X))[:2] == [("heads[0…2]", 3), ("heads[3]", 1)]


def test_a_block_whose_result_is_used_elsewhere_ends_the_run():
    def net(x):
        taps = []
        for i in range(4):
            x = linear(f"blocks[{i}]", x)
            taps.append(x)
        return jnp.concatenate([taps[1], taps[3]])

    assert shown(tree(net, X))[:2] == [("blocks[0…1]", 2), ("blocks[2…3]", 2)]


def test_a_module_called_twice_is_drawn_twice_and_never_in_a_circle():
    def net(x):
        return linear("shared", linear("between", linear("shared", x)))

    root = tree(net, X)
    assert shown(root) == [("shared", 1), ("between", 1), ("shared", 1)]
    assert joined(root) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_skips_go_round_and_parallel_boxes_stand_side_by_side():
    def net(x):
        a, b = linear("a", x), linear("b", x)
        return linear("c", a * b) + x

    view = view_of(tree(net, X))
    names = [[view.children[i].node.title or view.children[i].node.phrase for i in row]
             for row in view.rows]  # fmt: skip
    assert names == [["in0"], ["a", "b"], ["mul"], ["c"], ["add"], ["out0"]]
    lanes = {(line.source, line.target): line.lane for line in view.lines}
    add = next(i for i, child in enumerate(view.children) if child.node.phrase == "add")
    assert lanes.pop((0, add)) == 0
    assert set(lanes.values()) == {None}


def test_lanes_that_overlap_are_different():
    def net(x):
        a = linear("a", x)
        b = linear("b", a)
        c = linear("c", b) + a
        return linear("d", c) + x

    view = view_of(tree(net, X))
    spans = [line for line in view.lines if line.lane is not None]
    assert len(spans) == 2
    assert {line.lane for line in spans} == {0, 1}
    assert view.lanes == 2


def test_parameters_belong_to_the_module_that_reads_them():
    def net(params, x):
        with scope("model"):
            return linear("b", linear("a", x, params[0]), params[1]) @ params[0]

    root = tree(net, [jnp.ones((8, 8)), jnp.ones((8, 8))], X, state=2)
    (model,) = body(root)
    assert [child.params for child in model.children] == [(0, 0), (1, 64), (0, 0)]
    assert model.params == root.params == (2, 128)  # the shared one counts once, in `model`
    assert [child.name for child in root.children if child.kind == "input"] == ["in2"]


def train_step(params, x, labels):
    def loss(params):
        with scope("model"):
            y = linear("b", jnp.tanh(linear("a", x, params[0])), params[1])
        return jnp.mean((y - labels) ** 2)

    value, gradients = jax.value_and_grad(loss)(params)
    return value, [p - 0.1 * g for p, g in zip(params, gradients, strict=True)]


def test_a_training_step_shows_the_architecture():
    program = program_of(jax.make_jaxpr(train_step)([W, W], X, X))
    state = Port("", is_state=True, is_param=True)
    root = tree_of(program, [state, state, Port("x"), Port("labels")],
                   [Port("loss"), state, state])  # fmt: skip
    kinds = [(child.kind, child.name) for child in root.children]
    assert kinds == [
        ("input", "x"),
        ("input", "labels"),
        ("module", "model"),
        ("loss", "loss"),
        ("update", "update"),
        ("output", "loss"),
    ]
    # x into model, labels into loss, model into loss, loss into update and out.
    assert joined(root) == [(0, 2), (1, 3), (2, 3), (3, 4), (3, 5)]
    model = root.children[2]
    assert shown(model) == [("a", 1), ("tanh", 1), ("b", 1)]
    product = 2 * 2 * 64
    assert [child.forward for child in model.children] == [product, 16, product]
    # The first layer's input needs no gradient.
    assert model.children[0].backward == product
    assert model.children[2].backward == 2 * product
    assert root.flops == sum(op.total_flops for op in program.ops)


def test_gradients_alone_have_an_end_of_their_own():
    def gradient(params, x):
        return jax.grad(lambda p: jnp.sum(jnp.tanh(linear("a", x, p)) ** 2))(params)

    root = tree(gradient, W, X, state=1)
    assert root.children[-1].name == "gradients"
    assert "a" in [child.name for child in root.children]


def test_a_scan_is_a_box_with_its_body_inside():
    def net(ws, x):
        return lax.scan(lambda c, w: (residual("block", c, w), None), x, ws)[0]

    root = tree(net, jnp.ones((5, 8, 8)), X, state=1)
    (loop,) = body(root)
    assert (loop.kind, loop.name) == ("loop", "scan ×5")
    assert shown(loop) == [("block", 1)]
    assert shown(loop.children[0]) == [("up", 1), ("relu", 1), ("down", 1), ("add", 1)]
    assert loop.params == (1, 5 * 64)
    assert root.flops == 5 * (2 * 2 * 2 * 64 + 2 * 16)


def test_what_jax_moves_out_of_a_loop_stays_in_its_module():
    def net(params, x):
        def body(c, _):
            with scope("cell"):
                return jnp.tanh(c @ params[0] + jnp.reshape(params[1], (1, 8))), None

        with scope("rnn"):
            return jnp.sum(lax.scan(body, x, None, length=3)[0])

    root = tree(jax.value_and_grad(net), [W, jnp.ones(8)], X, state=2)
    assert [child.name for child in root.children if child.kind == "module"] == ["rnn"]
    (rnn,) = (child for child in root.children if child.kind == "module")
    assert rnn.params == (2, 72)


def test_unscoped_code_has_one_box_for_each_product():
    def net(x):
        return jax.nn.relu(x @ W + 1.0) @ W

    assert shown(tree(net, X)) == [("matmul · add · relu", 1), ("matmul", 1)]


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (jax.nn.softmax, "softmax"),
        (jax.nn.log_softmax, "log softmax"),
        (jax.nn.gelu, "gelu"),
        (jax.nn.silu, "silu"),
        (lambda x: jnp.mean(x, axis=-1), "mean"),
        (lambda x: x.reshape(16).astype(jnp.int32), "reshape"),
        (lambda x: jnp.tanh(x) * x, "tanh · mul"),
        (jax.nn.logsumexp, "logsumexp"),
        # Like a name, but not what it says.
        (lambda x: jnp.sum(x) / 3.0, "sum · div"),
        (lambda x: x / jnp.sum(x), "sum · div"),
        (lambda x: jnp.tanh(lax.integer_pow(x, 5) + x), "power 5 · add · tanh"),
        (lambda x: lax.rsqrt(x) * x, "rsqrt · mul"),
    ],
)
def test_known_functions_have_their_names(f, words):
    assert phrase(program_of(jax.make_jaxpr(f)(X)).ops) == words


def test_convolutions_in_words():
    def f(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, w, (2, 2), "SAME", feature_group_count=6, dimension_numbers=numbers
        )

    (op,) = program_of(jax.make_jaxpr(f)(jnp.ones((1, 9, 9, 6)), jnp.ones((3, 3, 1, 6)))).ops
    assert op_word(op) == "depthwise conv 3×3, stride 2"


@pytest.mark.parametrize(
    ("first", "last", "name"),
    [
        ("blocks[9]", "blocks[10]", "blocks[9…10]"),
        ("layer1", "layer12", "layer1…12"),
        ("a[1].b", "a[1].b", "a[1].b"),
        ("h[10].x", "h[19].x", "h[10…19].x"),
        ("up", "down", "up … down"),
    ],
)
def test_names_of_merged_boxes(first, last, name):
    assert merged_name(first, last) == name


def test_few_boxes_are_open_at_first():
    def net(x):
        for i in range(30):
            with scope(f"stage{'abc'[i % 3]}{i}"):
                x = linear("b", jnp.tanh(linear("a", x, jnp.ones((8 + i, 9 + i)))),
                           jnp.ones((9 + i, 9 + i)))  # fmt: skip
        return x

    view = view_of(tree(net, X), limit=40)
    assert len(view.walk_open()) - 1 <= 40


def test_a_function_called_twice_is_listed_twice():
    def net(x):
        return jax.nn.relu6(jnp.sin(jax.nn.relu6(x)))

    (chip,) = (child for child in view_of(tree(net, X)).children if child.node.kind == "ops")
    assert [(row[0], row[2]) for row in chip.details()] == [("relu6 ×2", "64"), ("sin", "16")]
