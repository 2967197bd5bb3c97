"""Tensors fit a network strictly, and every misfit is named."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jgraph._errors import ModuleWeightsError
from jgraph.models._weights import TensorName, WeightNames, assign_weights


class TwoLayers(nnx.Module):
    def __init__(self) -> None:
        self.body = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.top = nnx.Linear(3, 1, rngs=nnx.Rngs(1))


NAMES = WeightNames(
    backbone={
        "body/kernel": TensorName("body.weight", (1, 0)),
        "body/bias": TensorName("body.bias", None),
    },
    classifier={
        "top/kernel": TensorName("top.weight", (1, 0)),
        "top/bias": TensorName("top.bias", None),
    },
    ignored_suffixes=(".steps",),
)


def value(model: nnx.Module, path: str) -> np.ndarray:
    state = {"/".join(map(str, keys)): v for keys, v in nnx.to_flat_state(nnx.state(model))}
    return np.asarray(state[path].get_value())


def tensors(**changes: np.ndarray) -> dict[str, np.ndarray]:
    whole = {
        "body.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
        "body.bias": np.ones(3, np.float32),
        "body.steps": np.array(7),
        "top.weight": np.full((1, 3), 2.0, np.float32),
        "top.bias": np.full(1, 3.0, np.float32),
    }
    return whole | {name.replace("_", "."): value for name, value in changes.items()}


def assign(model: nnx.Module, given: dict[str, np.ndarray], with_classifier: bool = True) -> None:
    assign_weights(model, given, NAMES, with_classifier=with_classifier, source="net.pth")


def test_every_tensor_goes_where_the_table_says():
    model = TwoLayers()
    assign(model, tensors())
    np.testing.assert_array_equal(value(model, "body/kernel"), [[0, 2, 4], [1, 3, 5]])
    np.testing.assert_array_equal(value(model, "body/bias"), [1, 1, 1])
    np.testing.assert_array_equal(value(model, "top/kernel"), [[2], [2], [2]])
    np.testing.assert_array_equal(value(model, "top/bias"), [3])


def test_the_classification_head_can_be_left_alone():
    model = TwoLayers()
    before = value(model, "top/kernel")
    given = tensors()
    del given["top.bias"]
    assign(model, given, with_classifier=False)
    np.testing.assert_array_equal(value(model, "top/kernel"), before)
    np.testing.assert_array_equal(value(model, "body/bias"), [1, 1, 1])


def test_an_abstract_network_is_filled():
    model = nnx.eval_shape(TwoLayers)
    assign(model, tensors())
    np.testing.assert_array_equal(value(model, "top/bias"), [3])


def test_other_floats_take_the_type_of_the_variable():
    model = TwoLayers()
    assign(model, tensors(body_bias=np.array([0.5, 1, 2], np.float16)))
    assert value(model, "body/bias").dtype == jnp.float32
    np.testing.assert_array_equal(value(model, "body/bias"), [0.5, 1, 2])


def test_every_misfit_is_named_and_nothing_is_changed():
    model = TwoLayers()
    before = value(model, "body/kernel")
    given = tensors(
        body_weight=np.zeros((4, 2), np.float32), top_bias=np.zeros(1, np.int32), other=np.zeros(1)
    )
    given["body.biass"] = given.pop("body.bias")
    given["top.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ModuleWeightsError) as raised:
        assign(model, given)
    assert str(raised.value).splitlines() == [
        "the weights must be those of this TwoLayers, but net.pth does not fit:",
        "  missing: body.bias (nearest in the file: body.biass)",
        "  left over: body.biass",
        "  left over: other",
        "  of another shape: body.weight, in our layout (2, 4) instead of (2, 3)",
        "  of another shape: top.weight, in our layout (3,) instead of (3, 1)",
        "  of another type: top.bias, int32 instead of float32",
    ]
    np.testing.assert_array_equal(value(model, "body/kernel"), before)
