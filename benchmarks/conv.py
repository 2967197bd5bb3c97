"""Convolutions as `jg.function` compiles them for a CPU beside XLA's own, by shape.

The shapes are those of four networks, each forward and with both gradients: inference of one
picture, training at 96 px in batches of 16, and at 224 px (Inception V3: 299) in batches of 4.
Those that are left as they are aren't timed. CPU time; `--cores 1` for one thread.

What must hold: 1/15 for the depthwise layer of the first line, 0.5 for 1x1 ones, 1.15 for any.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun, jaxprs_in_params

from benchmarks._paired import Ratio, paired
from jgraph import models
from jgraph.graph import shape_of
from jgraph.graph._passes import fast_convolutions

NETWORKS = ("efficientnet_lite0", "mobilenet_v2", "resnet50", "inception_v3")
_SAMPLE = 4e-3  # seconds: calls are repeated until one sample takes as long
_SLOW = 1.05  # from here on a shape has a line of its own


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution by itself, with as many zeros on each side as keep the size at stride 1."""

    batch: int
    size: int
    inputs: int
    outputs: int
    window: int
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        kind = "depthwise " if self.groups > 1 else ""
        shape = f"{self.batch}x{self.size}x{self.size}x{self.inputs}"
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{kind}{self.window}x{self.window} {shape} to {self.outputs}{stride}"

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Return the convolution."""
        return lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            [(self.window // 2, self.window // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )

    def program(self) -> ClosedJaxpr:
        """Return the program of the result and both gradients."""
        x = jnp.ones((self.batch, self.size, self.size, self.inputs))
        kernel = jnp.ones((self.window, self.window, self.inputs // self.groups, self.outputs))

        def everything(x: jax.Array, kernel: jax.Array) -> Any:
            y, gradients = jax.vjp(self, x, kernel)
            return y, gradients(y)

        return jax.make_jaxpr(everything)(x, kernel)


LAYERS = (
    Layer(16, 24, 144, 144, 3, groups=144),
    Layer(16, 24, 24, 144, 1),
    Layer(16, 24, 144, 24, 1),
    Layer(16, 6, 192, 1152, 1),
    Layer(4, 56, 64, 256, 1),
    Layer(4, 14, 1024, 256, 1),
    Layer(4, 56, 256, 512, 1, stride=2),
)


def run(rounds: int, *, quick: bool = False) -> Iterator[str]:
    """Yield the report's lines; `quick` leaves out all but one network, and its larger pictures."""
    for layer in LAYERS:
        yield f"{layer}, forward and backward: {timed(layer.program(), rounds)}"
    for name in NETWORKS[:1] if quick else NETWORKS:
        large = 299 if name == "inception_v3" else 224
        tasks = {f"inference, {large} px, batch 1": (1, large, False)}
        tasks["training, 96 px, batch 16"] = (16, 96, True)
        if not quick:
            tasks[f"training, {large} px, batch 4"] = (4, large, True)
        for task, options in tasks.items():
            yield from network(f"{name}, {task}", shapes(name, *options), rounds)


def network(title: str, found: Counter[Convolution], rounds: int) -> Iterator[str]:
    """Yield the line of a network's shapes, and one for each that isn't faster."""
    ratios = {conv: timed(conv.program(), rounds) for conv in found if conv.is_rewritten}
    if not ratios:
        yield f"{title}: none of {len(found)} shapes is written otherwise"
        return
    ours, theirs = (
        sum(ratio.seconds[i] * found[conv] for conv, ratio in ratios.items()) for i in (0, 1)
    )
    medians = [ratio.median for ratio in ratios.values()]
    yield (
        f"{title}: {len(ratios)} of {len(found)} shapes are written otherwise: {ours / theirs:.2f} "
        f"of the time in all, {statistics.median(medians):.2f} in the median, {max(medians):.2f} "
        "at most"
    )
    for conv, ratio in ratios.items():
        if ratio.median > _SLOW:
            yield f"  {conv}: {ratio}"


class Convolution:
    """An equation of a traced program; equal to others of the same shapes and options."""

    def __init__(self, eqn: JaxprEqn) -> None:
        self.eqn = eqn
        types = tuple(str(v.aval) for v in eqn.invars)
        self._key = (types, str(sorted(eqn.params.items(), key=str)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Convolution) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __str__(self) -> str:
        p, (x, kernel) = self.eqn.params, map(shape_of, self.eqn.invars)
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")
        options = " ".join(str(tuple(p[name])) for name in names)
        groups = (p["feature_group_count"], p["batch_group_count"])
        return f"{x} {kernel} {options} groups {groups}"

    def program(self) -> ClosedJaxpr:
        """Return the program that only has this equation."""

        def body(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return self.eqn.primitive.bind(x, kernel, **self.eqn.params)

        return jax.make_jaxpr(body)(*[jnp.zeros(shape_of(v)) for v in self.eqn.invars])

    @property
    def is_rewritten(self) -> bool:
        """Whether `jg.function` compiles something else."""
        program = self.program()
        return fast_convolutions(program) is not program


def shapes(name: str, batch: int, size: int, is_training: bool) -> Counter[Convolution]:
    """Return a network's convolutions, with the gradients where it is training, and how often."""
    model = models.create(name, rngs=nnx.Rngs(0))
    if is_training:
        model.train()
    definition, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return (nnx.merge(definition, params, rest, copy=True)(x) ** 2).mean()

    x = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    return Counter(convolutions(jax.make_jaxpr(jax.grad(loss) if is_training else loss)(params, x)))


def convolutions(program: ClosedJaxpr | Jaxpr) -> Iterator[Convolution]:
    """Yield the convolutions of a program, also those in its bodies."""
    for eqn in program.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            yield Convolution(eqn)
        for body in jaxprs_in_params(eqn.params):
            yield from convolutions(body)


def timed(program: ClosedJaxpr, rounds: int) -> Ratio:
    """Return the ratio of what `jg.function` compiles to what XLA does by itself."""
    rng = np.random.default_rng(0)
    args = [rng.standard_normal(x.shape, np.float32) for x in program.in_avals]
    args = [jnp.asarray(x) for x in args]
    ours, theirs = (_compiled(p, args) for p in (fast_convolutions(program), program))
    jax.block_until_ready(theirs())
    start = time.perf_counter()
    jax.block_until_ready(theirs())
    times = max(1, round(_SAMPLE / (time.perf_counter() - start)))
    return paired(_repeated(ours, times), _repeated(theirs, times), rounds)


def _compiled(program: ClosedJaxpr, args: list[jax.Array]) -> Callable[[], Any]:
    compiled = jax.jit(jaxpr_as_fun(program)).lower(*args).compile()
    return lambda: compiled(*args)


def _repeated(call: Callable[[], Any], times: int) -> Callable[[], Any]:
    def repeat() -> Any:
        for _ in range(times - 1):
            jax.block_until_ready(call())
        return call()

    return repeat
