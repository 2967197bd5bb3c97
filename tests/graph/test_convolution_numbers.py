"""Rewritten convolutions against lax's own, in float64, with derivatives of both orders."""

import dataclasses
import functools

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jgraph.graph._passes import run_passes


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution; groups, and what there is per group of inputs and outputs."""

    batch: int
    size: tuple[int, ...]
    groups: int
    inputs: int
    outputs: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    x_dilation: tuple[int, ...]
    dilation: tuple[int, ...]
    channels_first: bool = False
    batch_groups: int = 1

    def result(self, axis):
        length = (self.size[axis] - 1) * self.x_dilation[axis] + 1 + sum(self.padding[axis])
        return (length - (self.window[axis] - 1) * self.dilation[axis] - 1) // self.strides[axis]

    def __call__(self, x, kernel):
        letters = "HW"[-len(self.size) :]
        layout = ("NC" + letters, "OI" + letters, "NC" + letters)
        if not self.channels_first:
            layout = ("N" + letters + "C", letters + "IO", "N" + letters + "C")
        return lax.conv_general_dilated(
            x,
            kernel,
            self.strides,
            self.padding,
            self.x_dilation,
            self.dilation,
            layout,
            feature_group_count=self.groups,
            batch_group_count=self.batch_groups,
        )

    def arrays(self, seed=0):
        rng = np.random.default_rng(seed)
        channels, outputs = self.groups * self.inputs, self.groups * self.outputs
        x, kernel = (self.batch, *self.size, channels), (*self.window, self.inputs, outputs)
        if self.channels_first:
            x, kernel = (self.batch, channels, *self.size), (outputs, self.inputs, *self.window)
        return rng.normal(size=x), rng.normal(size=kernel)


@st.composite
def cases(draw):
    """Draw depthwise and 1x1 convolutions most often."""
    axes = draw(st.sampled_from([1, 2, 2, 2]))
    several = functools.partial(st.lists, min_size=axes, max_size=axes)

    def per_axis(low, high):
        return tuple(draw(several(st.integers(low, high))))

    groups, inputs, outputs = draw(
        st.sampled_from([(2, 1, 1), (5, 1, 1), (5, 1, 1), (1, 17, 18), (2, 2, 3), (3, 1, 2)])
    )
    window = per_axis(1, 3) if groups > 1 or draw(st.integers(0, 2)) == 0 else (1,) * axes
    ones = (1,) * axes
    is_dilated = draw(st.booleans())
    case = Case(
        batch=draw(st.integers(1, 3)),
        size=per_axis(1, 6),
        groups=groups,
        inputs=inputs,
        outputs=outputs,
        window=window,
        strides=ones if is_dilated and draw(st.booleans()) else per_axis(1, 3),
        padding=tuple(zip(per_axis(-1, 3), per_axis(-1, 3), strict=True)),
        x_dilation=per_axis(1, 3) if is_dilated else ones,
        dilation=per_axis(1, 2),
        channels_first=draw(st.booleans()),
    )
    lengths = [case.size[i] + min(0, *case.padding[i]) * 2 for i in range(axes)]
    if min(lengths) < 1 or min(map(case.result, range(axes))) < 0:
        padding = tuple((2 * d, 2 * d) for d in case.dilation)
        case = dataclasses.replace(case, padding=padding)
    return case


def everything(case, x, kernel, dx, dkernel):
    """Return the value, the gradients, forward mode, and forward mode over the gradients."""

    def loss(x, kernel):
        return jnp.sin(case(x, kernel)).sum()

    gradients = jax.grad(loss, (0, 1))
    value, tangent = jax.jvp(case, (x, kernel), (dx, dkernel))
    return value, tangent, jax.jvp(gradients, (x, kernel), (dx, dkernel))


def check(case):
    with jax.enable_x64(True):
        args = *case.arrays(0), *case.arrays(1)
        program = jax.make_jaxpr(functools.partial(everything, case))(*args)
        outputs = []
        for body in (program, run_passes(program)):
            outputs.append(jax.jit(functools.partial(jax.core.eval_jaxpr, body.jaxpr))([], *args))
        assert len(outputs[0]) == 6
        for theirs, ours in zip(*outputs, strict=True):
            # Relative to the array: a sum of terms that cancel has no digits of its own.
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)
            assert ours.dtype == jnp.float64


@settings(max_examples=3, deadline=None, derandomize=True)
@given(cases())
def test_any_convolution(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(cases())
def test_many_convolutions(case):
    check(case)


def two(value):
    return (value, value)


PLAIN = Case(
    batch=2,
    size=(7, 9),
    groups=4,
    inputs=1,
    outputs=1,
    window=(3, 3),
    strides=two(1),
    padding=two((1, 1)),
    x_dilation=two(1),
    dilation=two(1),
)
CASES = {
    "strided": {"strides": two(2)},
    "a stride that doesn't divide": {"strides": (3, 2), "padding": ((0, 1), (2, 0))},
    "strided and dilated": {"strides": (2, 3), "dilation": (2, 1)},
    "strides beyond the kernel": {"window": (1, 2), "strides": (3, 3)},
    "cropped": {"padding": ((-1, 2), (3, -2))},
    "wide": {"window": (5, 5), "padding": two((2, 2)), "channels_first": True},
    "transposed": {"x_dilation": (2, 3), "padding": two((2, 1))},
    "1x1 strided": {"groups": 1, "inputs": 17, "outputs": 20, "window": (1, 1), "strides": (2, 3)},
    "one pixel": {"size": (3, 3), "padding": two((0, 0))},
    "of batches": {"groups": 1, "batch": 4, "inputs": 3, "outputs": 4, "batch_groups": 4},
    "of half the batch": {"groups": 1, "batch": 4, "inputs": 3, "outputs": 6, "batch_groups": 2},
    "dense": {"groups": 1, "inputs": 3, "outputs": 4, "strides": (2, 1)},
}


LEFT = {"of half the batch", "dense"}


@pytest.mark.parametrize("name", CASES)
def test_whether_a_case_is_rewritten(name):
    case = dataclasses.replace(PLAIN, **CASES[name])
    x, kernel = (a.astype(np.float32) for a in case.arrays())
    program = jax.make_jaxpr(case)(x, kernel)
    assert (run_passes(program) is program) == (name in LEFT)


@pytest.mark.parametrize("name", ["strided and dilated", "1x1 strided"])
def test_a_case(name):
    check(dataclasses.replace(PLAIN, **CASES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_named_case(name):
    check(dataclasses.replace(PLAIN, **CASES[name]))


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_the_gradient_by_a_dense_kernel_on_a_large_map(strides):
    """The only size at which it is written as products."""
    size = (52 * strides[0], 50)
    case = dataclasses.replace(
        PLAIN, batch=1, size=size, groups=1, inputs=48, outputs=72, strides=strides
    )
    with jax.enable_x64(True):
        x, kernel = case.arrays()
        g = np.random.default_rng(2).normal(size=jax.eval_shape(case, x, kernel).shape)

        def gradient(x, g):
            return jax.linear_transpose(lambda kernel: case(x, kernel), kernel)(g)[0]

        program = jax.make_jaxpr(gradient)(x, g)
        after = run_passes(program)
        assert "dot_general" in str(after)
        assert "dot_general" not in str(program)
        (ours,) = jax.jit(functools.partial(jax.core.eval_jaxpr, after.jaxpr))([], x, g)
        np.testing.assert_allclose(ours, gradient(x, g), rtol=1e-10, atol=1e-10)
