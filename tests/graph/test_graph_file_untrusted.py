"""Graph files of strangers: whatever is in them ends in a program or in GraphFormatError."""

import bz2
import contextlib
import io
import itertools
import json
import os
import resource
import struct
import time
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jgraph._errors import GraphFormatError, InputError
from jgraph.graph import Graph
from jgraph.graph._file._dims import symbols_of
from tests.graph import fuzz_graph_files as fuzz

ELEMENTWISE, LOOPS, INDEXED, DERIVED, RANDOM = range(5)
BAD = (None, True, -1, 1 << 70, 0.5, "", "none such", [], [[]], {}, {"a": 1}, [0, 1, 2, 3, 4, 5])


@pytest.fixture
def write(tmp_path):
    """Write a graph file of some bytes, or of a document (and tensors)."""

    def make(content, tensors=None):
        path = tmp_path / "x.graph"
        if not isinstance(content, (bytes, bytearray)):
            content = fuzz.pack(json.dumps(content), tensors)
        path.write_bytes(content)
        return path

    return make


@pytest.fixture
def document():
    """A fresh copy of a sound file's document."""
    return lambda number=LOOPS: json.loads(json.dumps(fuzz.samples()[number].document))


def program(steps, outputs, *, shapes=((4, 3),), before=(), customs=(), constraints=()):
    """Return a document of a function of floats, and of those before it."""
    return {
        **fuzz.samples()[LOOPS].document,
        "inputs": [[list(shape), "float32"] for shape in shapes],
        "constraints": list(constraints),
        "customs": list(customs),
        "places": [],
        "functions": [*before, ["main", len(shapes), steps, outputs]],
        "interface": {
            "state": [],
            "arguments": [[f"x{i}", False, 0] for i in range(len(shapes))],
            "result": {"list": [0] * len(outputs)},
            "values": {"list": []},
            "changed": [],
            "changes": None,
        },
    }


def step(op, inputs, outputs=1, /, **params):
    return [op, inputs, outputs, params, -1]


@contextlib.contextmanager
def bounded(seconds=3.0, megabytes=200):
    """Fail where the memory of what is inside is above the promise, or the processor time far so.

    The promise is a second; on a loaded machine any program takes two or three times as long.
    """
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    yield
    taken = time.process_time() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert taken < seconds
    assert (after.ru_maxrss - before.ru_maxrss) >> 10 < megabytes


def refused(path, match):
    """Load and trace a file, which must be refused for this reason and within its bounds."""
    with bounded(), pytest.raises(GraphFormatError, match=match):
        _ = Graph.load(path).jaxpr


def test_the_sound_files_load_and_trace(write):
    for document, tensors in fuzz.samples():
        fuzz.load_and_trace(write(document, tensors))
    fuzz.load_and_trace(write(program([step("neg", [0])], [1])))


SOLVE = {"matvec": 0, "solve": 0, "transpose_solve": None, "consts": [0] * 4, "symmetric": False}
PRODUCT = {"precision": None, "preferred_element_type": None}

# The document.


@pytest.mark.parametrize(
    ("number", "every"),
    [(ELEMENTWISE, 4), *(pytest.param(n, 2, marks=pytest.mark.slow) for n in range(5))],
)
def test_every_value_of_another_kind(write, number, every):
    """Replace each value by bad ones, most of which are of a type it can't have."""
    document, tensors = fuzz.samples()[number]
    places = [path for path, _ in fuzz.values(document) if path[:1] != ("made_with",)]
    outcomes = []
    for i, path in enumerate(places):
        for bad in BAD[i % every :: every]:
            try:
                graph = Graph.load(write(fuzz.replaced(document, path, bad), tensors))
                outcomes.append("loaded")  # a name may be another name
                _ = graph.jaxpr
            except GraphFormatError as error:
                outcomes.append("refused" if "x.graph" in str(error) else "refused when traced")
    assert outcomes.count("loaded") < len(outcomes) / 4
    assert outcomes.count("refused") > len(outcomes) / 2


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (("format",), "another", "must be a jgraph-graph"),
        (("opset",), 99, "opset 99.*install a newer"),
        (("has_state",), 1, "has_state must be true or false"),
        (("functions",), [], "at least one"),
        (("functions", -1, 2, 0, 0), "eval", r"functions\[\d+\]\.steps\[0\] has the operation"),
        (("functions", -1, 2, 0, 1), [True], r"steps\[0\]\.inputs\[0\].*got True"),
        (("functions", -1, 2, 0, 1), [-1], r"steps\[0\]\.inputs\[0\].*got -1"),
        (("functions", -1, 2, 0, 1), [1], r"steps\[0\]\.inputs\[0\].*first 1, got 1"),
        (("functions", -1, 2, 0, 2), 1 << 31, r"steps\[0\]\.outputs"),
        (("functions", -1, 2, 0, 4), 10_000, r"steps\[0\]\.place"),
        (("functions", -1, 3), [10_000], r"outputs\[0\] must be a value made before"),
        (("functions", -1, 0), "a" * 5000, "at most 4096 characters"),
        (("functions", -1, 0), "\ud800", "half of a character"),
        (("name",), "\udfff", "half of a character"),
        (("inputs", 0, 0), [-1, 3], "sizes from 0 up"),
        (("inputs", 0, 0), [1 << 60], "must be a size"),
        (("inputs", 0, 0), [1] * 40, "at most 32 axes"),
        (("inputs", 0, 1), "float0", "must be a dtype"),
        (("inputs", 0, 1), "object", "must be a dtype"),
        (("interface", "result"), {"mark": 0}, "the program, |objects in interface.result"),
        (("interface", "values"), None, "interface.values must be a list"),
        (("interface", "changed"), [0], "numbers below 0"),
        (("interface", "changes"), {"sources": [None], "state": [], "returned": []}, "a null for"),
    ],
)
def test_a_wrong_value_says_where(write, document, path, value, match):
    refused(write(fuzz.replaced(list_at_end(document()), path, value)), match)


def list_at_end(document):
    """Make the program of a single operation, to be changed."""
    return program([step("neg", [0])], [1]) | {"name": document["name"]}


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({}, "lacks parameter 'y'"),
        ({"y": 2, "z": 1}, "unknown parameter 'z'"),
        ({"y": True}, "must be a whole number, got True"),
        ({"y": 2.0}, "must be a whole number"),
        ({"y": 1 << 50}, "must be a whole number"),
    ],
)
def test_parameters(write, params, match):
    place = r"functions\[0\]\.steps\[0\]"
    refused(write(program([step("integer_pow", [0], **params)], [1])), f"{place}.*{match}")


@pytest.mark.parametrize("count", [0, 2, 3])
def test_a_wrong_number_of_inputs_or_outputs(write, count):
    refused(write(program([step("neg", [0] * count)], [1])), "neg takes 1 inputs, got")
    refused(write(program([step("neg", [0], count)], [1])), "neg makes 1 outputs, got")
    sort = step("sort", [0], count, dimension=0, is_stable=True, num_keys=1)
    refused(write(program([sort], [0])), "sort, makes 1 outputs, and the file says")


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (*(-1, "uint8"),),
        (*(256, "uint8"),),
        (*(128, "int8"),),
        (*(1.5, "int32"),),
        (*(True, "float32"),),
        (*(0, "bool"),),
        (*([1.0, 0.0], "float32"),),
        (*([[1.0, 0.0], 0.0], "complex64"),),
        (*("infinity", "float32"),),
        (*([], "float32"),),
        (*({}, "float32"),),
        (*(10**60, "float32"),),
        (*(0, "key<fry>"),),
        (*(0, "float0"),),
        (*(0, ["float32"]),),
    ],
)
def test_constants_that_are_not_of_their_type(write, value, dtype):
    ref = {"c": value, "t": dtype}
    refused(write(program([step("add", [0, ref])], [1])), r"steps\[0\]\.inputs\[1\]\.")


@pytest.mark.parametrize(
    ("op", "inputs", "params"),
    [
        (
            "broadcast_in_dim",
            [0],
            {"shape": [1 << 30, 1 << 30, 4, 3], "broadcast_dimensions": [2, 3]},
        ),
        ("iota", [], {"dtype": "int32", "shape": [1 << 30, 1 << 30], "dimension": 0}),
        ("iota", [], {"dtype": "int32", "shape": [1] * 4000, "dimension": 0}),
        ("iota", [], {"dtype": "int32", "shape": [-5], "dimension": 0}),
        ("iota", [], {"dtype": "key<fry>", "shape": [5], "dimension": 0}),
        ("iota", [], {"dtype": "int32", "shape": ["n"], "dimension": 0}),
        ("empty", [], {"dtype": "float32", "shape": [1 << 40, 1 << 40]}),
        ("pad", [0, {"c": 0.0, "t": "float32"}], {"padding_config": [[1 << 39, 0, 0], [0, 0, 1]]}),
        ("pad", [0, {"c": 0.0, "t": "float32"}], {"padding_config": [[0, 0, 1 << 38], [0, 0, 0]]}),
        ("pad", [0, {"c": 0.0, "t": "float32"}], {"padding_config": [[-9, 0, 0], [0, 0, 0]]}),
        ("reshape", [0], {"new_sizes": [1 << 30, 1 << 30], "dimensions": None}),
        ("reshape", [0], {"new_sizes": [-3, -4], "dimensions": None}),
        ("transpose", [0], {"permutation": [0, 0]}),
        ("squeeze", [0], {"dimensions": [7]}),
        ("slice", [0], {"start_indices": [3, 0], "limit_indices": [1, 3], "strides": None}),
        ("slice", [0], {"start_indices": [0, 0], "limit_indices": [4, 3], "strides": [0, 1]}),
        ("dynamic_slice", [0], {"slice_sizes": [5, 5]}),
        ("dynamic_slice", [], {"slice_sizes": [5, 5]}),
        ("split", [0], {"sizes": [9, -5], "axis": 0}),
        ("unstack", [0], {"axis": 9}),
        ("top_k", [0], {"k": 1 << 40, "axis": 1}),
        ("argmax", [0], {"axes": [], "index_dtype": "int32"}),
        ("argmax", [0], {"axes": [0], "index_dtype": "float32"}),
        ("reduce_sum", [0], {"axes": [0, 0]}),
        ("select_n", [], {}),
        ("select_n", [0, 0, 0], {}),
        ("concatenate", [], {"dimension": 0}),
        ("and", [0, 0], {}),
        ("convert_element_type", [0], {"new_dtype": "key<fry>"}),
        ("bitcast_convert_type", [0], {"new_dtype": "key<fry>"}),
        ("random_bits", [0], {"shape": [2], "bit_width": 32}),
        ("random_bits", [0], {"shape": [2], "bit_width": -7}),
        ("random_wrap", [0], {"dtype": "float32"}),
        ("random_seed", [0], {"dtype": "float32"}),
        ("cond", [0], {"branches": []}),
        ("qr", [], {"full_matrices": True, "pivoting": True}),
        ("fft", [0], {"fft_type": "IRFFT", "fft_lengths": [1 << 39]}),
        ("fft", [0], {"fft_type": "fft", "fft_lengths": [4]}),
        ("polynomial", [], {}),
        ("platform_index", [], {"platforms": [["default"], None]}),
        ("platform_index", [], {"platforms": [["gpu"], None]}),
        ("platform_index", [], {"platforms": [["a b"], None]}),
        ("platform_index", [], {"platforms": []}),
        ("custom_linear_solve", [0], {**SOLVE, "matvec": 7}),
        ("custom_linear_solve", [0], {**SOLVE, "consts": [1, 1]}),
        ("custom_linear_solve", [0], {**SOLVE, "consts": [1, 0, 0, 0]}),
        ("custom_linear_solve", [0], {**SOLVE, "consts": [-1, 0, 0, 0]}),
        ("dot_general", [0, 0], {"contract": [[0], [1]], "batch": [[], []], **PRODUCT}),
        ("dot_general", [0, 0], {"contract": [[0]], "batch": [], **PRODUCT}),
    ],
)
def test_operations_on_what_they_do_not_take(write, op, inputs, params):
    outputs = {"unstack": 4, "split": 2, "top_k": 2}.get(op, 1)
    before = [["f", 1, [step("neg", [0])], [1]]]
    document = program([step(op, inputs, outputs, **params)], [1], before=before)
    refused(write(document), r"functions\[1\]\.steps\[0\]")
    with pytest.raises(GraphFormatError, match=r"functions\[1\]\.steps\[0\]"):  # traced by a call
        Graph.load(write(document)).apply({}, jnp.ones((4, 3)))


@pytest.mark.parametrize("name", ["window_dimensions", "window_strides", "base_dilation"])
@pytest.mark.parametrize("size", [0, -1, 1 << 39])
def test_windows(write, name, size):
    ones = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    params = {**{key: [1, 1] for key in ones}, "padding": [[0, 0], [0, 0]], name: [size, size]}
    document = program([step("reduce_window_max", [0], 1, **params)], [1])
    if size > 0 and name != "base_dilation":
        _ = Graph.load(write(document)).jaxpr  # nothing or one window fits
    else:
        refused(write(document), "can't be applied")


def test_pooling_gradients_of_nothing(write):
    window = {"window_dimensions": [0, 1], "window_strides": [1, 1], "padding": [[0, 0], [0, 0]]}
    steps = [step("select_and_scatter_add", [0, 0], select="ge", **window)]
    refused(write(program(steps, [1])), "can't be applied")
    steps[0][3]["select"] = ["ge"]
    refused(write(program(steps, [1])), "must be 'ge' or 'le'")


def scan(**params):
    whole = {"function": 0, "consts": 0, "carry": 1, "length": 4, "reverse": False, "unroll": 1}
    return step("scan", [0], **(whole | params))


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"unroll": 10**9, "length": 10**9}, "at most .* operations"),
        ({"unroll": -1}, "from 0 to"),
        ({"consts": -1}, "from 0 to"),
        ({"carry": 0, "length": 5}, "can't be applied"),  # 4 rows
        ({"carry": 0}, "makes 2 outputs"),
        ({"length": -1}, "from 0 to"),
        ({"length": 10**12}, "from 0 to"),
        ({"length": 1 << 31}, "from 0 to"),
        ({"consts": 1}, "at least 2 inputs"),
        ({"function": 1}, "calls function"),
        ({"function": -1}, "calls function"),
        ({"function": 0.0}, "number of a function"),
    ],
)
def test_loops(write, params, match):
    body = ["f", 1, [step("neg", [0])], [1]]
    if params.get("carry") == 0:
        body = ["f", 1, [step("neg", [0])], [0, 1]]
    refused(write(program([scan(**params)], [1], before=[body])), match)


def test_a_scan_that_would_stack_too_much(write):
    wide = step("broadcast_in_dim", [0], shape=[100, 4, 3], broadcast_dimensions=[1, 2])
    body = ["f", 1, [wide], [0, 1]]
    steps = [step("scan", [0], 2, **(scan(length=10**9)[3]))]
    refused(write(program(steps, [1], before=[body])), "can't be applied")


def test_a_long_scan_is_traced_at_once(write):
    body = ["f", 1, [step("neg", [0])], [1]]
    with bounded():
        graph = Graph.load(write(program([scan(length=10**6)], [1], before=[body])))
        assert graph.jaxpr.eqns[0].params["length"] == 10**6


# Functions.


@pytest.mark.parametrize("number", [1, 2, 1 << 40, -1, True, None])
def test_functions_that_call_themselves_or_later_ones(write, number):
    before = [
        ["f", 1, [step("neg", [0])], [1]],
        ["g", 1, [step("call", [0], function=number)], [1]],
    ]
    refused(
        write(program([step("call", [0], function=1)], [1], before=before)),
        r"functions\[1\]\.steps\[0\]",
    )


def tree(op, depth, **params):
    """Return functions each of which calls the one before twice, and calls of the last."""

    def calls(number):
        called = {"custom": {"custom": number}, "while": {"test": 1, "function": number}}
        called = called.get(op, {"function": number})
        return [step(op, [i], **called, **params) for i in (0, 1)]

    test = [step("reduce_max", [0], axes=[0, 1]), step("gt", [1, {"c": 0.0, "t": "float32"}])]
    functions = [["f", 1, [step("neg", [0])], [1]], ["test", 1, test, [2]]]
    functions += [["f", 1, calls(number or 0), [2]] for number in (0, *range(2, depth + 1))]
    return functions, calls(depth + 1)


SCAN = {"consts": 0, "carry": 1, "length": 2, "reverse": False, "unroll": 1}


@pytest.mark.parametrize(
    ("op", "params"),
    [
        ("call", {}),
        ("remat", {"prevent_cse": True}),
        ("scan", SCAN),
        ("while", {"test_consts": 0, "consts": 0}),
        ("custom", {}),
    ],
)
def test_calls_that_double(write, op, params):
    before, steps = tree(op, 60, **params)
    customs = [["jvp", i, [0], 0] for i in range(len(before))]
    document = program(steps, [2], before=before, customs=customs)
    refused(write(document), "at most .* operations, 32 deep")
    # As deep as is allowed; each function is traced once.
    depth = 7 if op in ("scan", "while") else 12
    before, steps = tree(op, depth, **params)
    customs = [["jvp", i, [0], 0] for i in range(len(before))]
    path = write(program(steps, [2], before=before, customs=customs))
    with bounded():
        assert len(Graph.load(path).jaxpr.eqns) == 2


def test_a_function_of_many_types(write):
    """Each calls the one before with x and with more rows, so that no two calls are equal."""
    before = [["f", 1, [step("neg", [0])], [1]]]
    for number in range(7):
        padding = {"padding_config": [[1 << number, 0, 0], [0, 0, 0]]}
        pad = step("pad", [0, {"c": 0.0, "t": "float32"}], **padding)
        loops = [step("scan", [i], function=number, **SCAN) for i in (0, 1)]
        before.append(["f", 1, [pad, *loops], [2]])
    document = program([step("call", [0], function=7)], [1], before=before)
    with bounded():
        refused(write(document), r"functions\[\d\] must have inputs of one type")


def test_a_python_number_is_no_other_type(write):
    """As a carry it would have JAX trace each loop twice, and loops in loops ever more often."""
    before, steps = tree("scan", 7, **SCAN)
    document = program(steps, [2], shapes=[()], before=before)
    graph = Graph.load(write(document))
    with bounded():
        traced = jax.make_jaxpr(lambda: graph.apply({}, 1.0)[0])()
    assert not any(x.weak_type for x in traced.out_avals)


def test_branches_that_are_the_same(write):
    """JAX traces each once; 4^7 copies of it are looked at as one, too."""
    before = [["f", 1, [step("neg", [0])], [1]]]
    index = {"c": 1, "t": "int32"}
    for number in range(7):
        calls = [step("cond", [index, i], branches=[number, number]) for i in (0, 1)]
        before.append(["f", 1, calls, [2]])
    steps = [step("call", [0], function=7)]
    with bounded():
        _ = Graph.load(write(program(steps, [1], before=before))).jaxpr


def test_calls_too_deep(write):
    before = [["f", 1, [step("neg", [0])], [1]]]
    before += [["f", 1, [step("call", [0], function=i)], [1]] for i in range(80)]
    refused(write(program([step("call", [0], function=80)], [1], before=before)), "32 deep")


@pytest.mark.parametrize("kind", ["jvp", "vjp"])
def test_a_function_that_is_its_own_derived_function(write, kind):
    before = [["f", 1, [step("custom", [0], custom=0)], [1]]]
    customs = [[kind, 0, [0] * (1 if kind == "jvp" else 2), 0]]
    steps = [step("custom", [0], custom=0)]
    refused(write(program(steps, [1], before=before, customs=customs)), "calls function")


@pytest.mark.parametrize(
    "custom",
    [
        ["jvp", 5, [0], 0],
        ["jvp", 0, [5], 0],
        ["jvp", 0, [], 0],
        ["vjp", 0, [0], 0],
        ["vjp", 0, [0, 0], -1],
        ["other", 0, [0], 0],
        [["jvp"], 0, [0], 0],
    ],
)
def test_rules_that_are_not_there(write, custom):
    before = [["f", 1, [step("neg", [0])], [1]]]
    document = program([step("custom", [0], custom=0)], [1], before=before, customs=[custom])
    refused(write(document), r"customs\[0\]")


def rules(kind, rule, residuals=0, backward=None):
    before = [["f", 1, [step("neg", [0])], [1]], rule]
    before += [backward] if backward else []
    customs = [[kind, 0, [1, 2] if backward else [1], residuals]]
    return program([step("custom", [0], custom=0)], [1], before=before, customs=customs)


@pytest.mark.parametrize(
    "document",
    [
        rules("jvp", ["r", 1, [], [0]]),  # takes no tangent
        rules("jvp", ["r", 2, [], [0]]),  # makes none
        rules("jvp", ["r", 2, [], [0, 1, 1]]),
        rules("jvp", ["r", 2, [step("reduce_sum", [1], axes=[0])], [0, 2]]),
        rules("jvp", ["r", 2, [step("convert_element_type", [1], new_dtype="int8")], [0, 2]]),
        rules("jvp", ["r", 2, [step("convert_element_type", [0], new_dtype="int8")], [2, 1]]),
        rules("vjp", ["r", 1, [], [0]], 1, ["b", 2, [], [0]]),
        rules("vjp", ["r", 1, [], [0]], 0, ["b", 1, [], []]),
        rules("vjp", ["r", 1, [], [0]], 0, ["b", 1, [], [0, 0]]),
        rules("vjp", ["r", 1, [], [0]], 3, ["b", 1, [], [0]]),
        rules("vjp", ["r", 1, [], [0, 0]], 1, ["b", 1, [], [0]]),
        rules("vjp", ["r", 1, [], [0]], 0, ["b", 1, [step("reduce_sum", [0], axes=[0])], [1]]),
    ],
)
def test_wrong_rules_are_refused_when_differentiated(write, document):
    graph = Graph.load(write(document))
    x = jnp.ones((4, 3))
    np.testing.assert_array_equal(graph.apply({}, x)[0][0], -x)
    with bounded(), pytest.raises(GraphFormatError, match="function"):
        jax.grad(lambda x: graph.apply({}, x)[0][0].sum())(x)


def test_a_rule_that_uses_its_own_function_ends(write):
    """The derivative of -x is itself at -1: each order of differentiation uses the rule once."""
    rule = ["r", 2, [step("custom", [0], custom=0), step("custom", [1], custom=0)], [2, 3]]
    graph = Graph.load(write(rules("jvp", rule)))

    def value(x):
        return graph.apply({}, jnp.broadcast_to(x, (4, 3)))[0][0][0, 0]

    assert jax.grad(value)(1.0) == -1
    assert jax.grad(jax.grad(value))(1.0) == 0


# JSON and sizes.

_DIGITS = str.maketrans("abcdef", "123456")  # so that what is written compresses badly


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("null", "the graph must be an object"),
        ("[1, 2]", "the graph must be an object"),
        ("[" * 100_000, "packed to|damaged"),
        ('{"a":' * 100_000, "packed to|damaged"),
        ("[" * 100_000 + "]" * 100_000, "packed to|damaged"),
        ("[" * 300 + "]" * 300, "nested at most 120 deep"),
        ('{"a": ' + "9" * 100_000 + "}", "packed to"),
        ('{"a": ' + f"{7**9999:x}".translate(_DIGITS) + "}", "damaged"),
        ('{"a": NaN}', "no NaN"),
        ('{"a": [-Infinity]}', "no -Infinity"),
        ('{"a": 1, "a": 1}', "a key twice"),
        ('{"format": "' + "x" * 1_000_000, "must be at most|damaged"),
        (b"\xff\xfe\x00", "damaged"),
        ('{"a": "\\ud8', "damaged"),
        ("[" + ",".join(["[]"] * 500_000) + "]", "must be at most|lists and objects"),
    ],
)
def test_what_is_no_json(write, text, match):
    refused(write(fuzz.pack(text, None)), match)


def test_json_that_takes_much_memory(write):
    """It compresses badly, so that its ratio isn't what refuses it."""
    rng = np.random.default_rng(0)
    rows = ",".join(f'{{"{x}":[{x}]}}' for x in rng.integers(0, 10**6, 40_000))
    refused(write(fuzz.pack(f"[{rows}]", None)), "must be an object")
    rows = ",".join(f"[{x}]" for x in rng.integers(0, 10, 500_000))
    refused(write(fuzz.pack(f"[{rows}]", None)), "lists and objects")


@pytest.mark.parametrize(
    "size",
    [
        *("", " ", "9^8^8", "n^9", "((n+1)^8)^8", "+".join(["n"] * 99), "*".join(["9"] * 99)),
        *("(a + b + c + d)^8", "(" * 150 + "n" + ")" * 149, "-" * 290 + "n", "n" * 290),
        *("max(" * 70, "n n", "n +", "n()", "open(n, n)", "__import__('os')", "n; n", "é", "²"),
        *("n.real", "n[0]", "1e9", "0x10", "n / 2", "n // 2", "n" + " " * 400),
        *("99999999999999", "\x00", "max(n)", "*".join(["(a + b)"] * 7)),
    ],
)  # fmt: skip
def test_sizes_that_are_none(write, size):
    document = program([step("neg", [0])], [1], shapes=[("n", size)])
    refused(write(document), r"inputs\[0\]\.shape must be a size")


@pytest.mark.parametrize(
    ("size", "match"),
    [
        ("floordiv(n, 0)", "must be a size|can't be kept"),
        ("mod(n, n - n)", "must be a size|can't be kept"),
        ("mod", "can't be kept"),
        ("max", "can't be kept"),
        ("lambda", ""),
    ],
)
def test_sizes_that_jax_cannot_keep(write, size, match):
    path = write(program([step("neg", [0])], [1], shapes=[("n", size)]))
    with (
        contextlib.suppress(GraphFormatError)
        if not match
        else pytest.raises(GraphFormatError, match=match)
    ):
        _ = Graph.load(path).inputs


@pytest.mark.parametrize(
    ("constraints", "match"),
    [
        (["n >= 3", "n <= 2"], None),
        (["n == 2", "n == 3"], "can't be kept"),
        (["n + 1"], "must compare two sizes"),
        (["n = 1"], "must compare two sizes"),
        (["n >= m"], "has the symbol 'm', which no input has"),
        (["n >= 9^8^8"], r"constraints\[0\] must be a size"),
        (["n >= " + "9" * 3000], r"constraints\[0\] must be a size"),
        (["n >= 1"] * 40, "at most 32 constraints"),
        (["n >= 1", 7], r"constraints\[1\] must be a text"),
        (["1 == 2"], "can't be kept"),
        (["floordiv(n, 0) >= 1"], None),
    ],
)
def test_constraints(write, constraints, match):
    document = program([step("neg", [0])], [1], shapes=[("n",)], constraints=constraints)
    if match is not None:
        refused(write(document), match)
        return
    with bounded(), contextlib.suppress(GraphFormatError):
        graph = Graph.load(write(document))
        _ = graph.jaxpr
    with pytest.raises(InputError, match=r"must satisfy|must be a size"):
        Graph.load(write(document)).apply({}, jnp.ones(2))


def test_many_symbols_and_constraints_are_bounded_in_time(write):
    names = [f"s{i}" for i in range(16)]
    bounds = [f"{a} >= 2*{b}" for a, b in itertools.pairwise(names)]
    bounds += [f"{a} + {b} <= 3*{c}" for a, b, c in zip(names, names[2:], names[4:], strict=False)]
    steps = [step("concatenate", [0, 0], dimension=0), step("neg", [1])]
    path = write(program(steps, [2], shapes=[tuple(names)], constraints=bounds))
    with bounded(), contextlib.suppress(GraphFormatError):
        _ = Graph.load(path).jaxpr


def test_the_longest_size_is_read_quickly(write):
    with bounded():
        assert symbols_of("(a + b)^5*(a + 1)", "x") == {"a", "b"}
    path = write(program([step("neg", [0])], [1], shapes=[("a", "b", "(a + b)^5*(a + 1)")]))
    with bounded():
        _ = Graph.load(path).jaxpr


def test_a_multiple_of_nothing(write):
    graph = Graph.load(write(program([step("neg", [0])], [1], shapes=[("0*n", "n")])))
    with pytest.raises(InputError, match="must have the shape"):
        graph.apply({}, jnp.ones((4, 4)))


def test_a_scope_that_looks_like_a_mark(write):
    before = [["jgraph-place-²", 1, [step("neg", [0])], [1]]]
    path = write(program([step("call", [0], function=0)], [1], before=before))
    assert len(Graph.load(path).ops) == 1


# The archive.


def archive(*entries):
    """Return a zip of (name, content, compression)."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as file:
        warnings.simplefilter("ignore")  # a name twice
        for name, content, compression in entries:
            file.writestr(name, content, compression)
    return bytearray(buffer.getvalue())


SOUND = b"{}"


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([], "got nothing"),
        ([("state.safetensors", SOUND, 0)], "must hold graph.json"),
        ([("graph.json", SOUND, 8), ("graph.json", SOUND, 8)], "must hold graph.json"),
        ([("graph.json", SOUND, 8), ("other", SOUND, 0)], "must hold graph.json"),
        ([("/graph.json", SOUND, 8)], "got /graph.json"),
        ([("../graph.json", SOUND, 8)], r"got \.\./graph.json"),
        ([("graph.json", SOUND, 8), ("../../etc/passwd", SOUND, 0)], "must hold graph.json"),
        ([("graph.json", b"0" * (4 << 20), 8)], "at most"),
        ([("graph.json", b" " * (9 << 20), 0)], "at most"),
        ([("graph.json", SOUND, zipfile.ZIP_BZIP2)], "deflated or stored"),
        ([("graph.json", SOUND, zipfile.ZIP_LZMA)], "deflated or stored"),
        ([("graph.json", SOUND, 8), ("state.safetensors", SOUND, 8)], "stored as it is"),
        ([("graph.json", SOUND, 8), ("state.safetensors", SOUND, 0)], "state.safetensors is"),
        ([(f"{i}", SOUND, 0) for i in range(300)], "must hold graph.json"),
        ([(f"{i}", SOUND, 0) for i in range(5000)], "its directory is of"),
    ],
)
def test_other_archives(write, entries, match):
    refused(write(archive(*entries)), match)


def test_a_bomb_of_a_gigabyte(write):
    packer, zeros = bz2.BZ2Compressor(), b"0" * (1 << 20)
    bomb = b"".join([packer.compress(zeros) for _ in range(100)]) + packer.flush()
    data = archive(("graph.json", bomb, 0))
    lie(data, method=12, size=100 << 20)
    refused(write(data), "at most|deflated or stored")
    data = archive(("graph.json", b"0" * (64 << 20), 8))
    refused(write(data), "at most")
    lie(data, size=2 << 20)  # says less than it unpacks to
    refused(write(data), "at most|damaged")
    lie(data, size=1 << 16)
    refused(write(data), "damaged")


def lie(data, **values):
    """Change what a zip's directory says of its first entry."""
    at = data.index(b"PK\1\2")
    places = {"flags": (8, "<H"), "method": (10, "<H"), "packed": (20, "<I"), "size": (24, "<I")}
    places["offset"] = (42, "<I")
    for name, value in values.items():
        offset, form = places[name]
        struct.pack_into(form, data, at + offset, value)


@pytest.mark.parametrize(
    "lies",
    [
        {"flags": 1},
        {"method": 99},
        {"packed": 0xFFFFFFF0},
        {"packed": 1},
        {"size": 1},
        {"size": 0},
        {"size": 0xFFFFFFFF},
        {"offset": 0xFFFFFFF0},
        {"offset": 7},
    ],
)
def test_a_directory_that_lies(write, lies):
    text = json.dumps(program([step("neg", [0])], [1]))
    for compression in (0, 8):
        data = archive(("graph.json", text, compression))
        lie(data, **lies)
        refused(write(data), "x.graph")


def test_a_length_that_lies_of_the_state(write):
    document, tensors = fuzz.samples()[ELEMENTWISE]
    data = bytearray(fuzz.pack(json.dumps(document), tensors))
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    struct.pack_into("<II", data, second + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    refused(write(data), "longer than the file")


def test_truncated_and_flipped(write):
    document, tensors = fuzz.samples()[ELEMENTWISE]
    data = fuzz.pack(json.dumps(document), tensors)
    for end in range(0, len(data) - 1, 37):
        refused(write(data[:end]), "x.graph")
    outcomes = set()
    for at in range(0, len(data), 11):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        try:
            fuzz.load_and_trace(write(flipped))
            outcomes.add("kept")  # a date, say
        except GraphFormatError:
            outcomes.add("refused")
    assert outcomes == {"kept", "refused"}


def test_every_bit_of_the_content_is_checked(write):
    document, tensors = fuzz.samples()[ELEMENTWISE]
    data = fuzz.pack(json.dumps(document), tensors)
    start, end = data.index(b"graph.json") + 10, data.index(b"PK\1\2")
    gap = data.index(b"PK\3\4", start)
    for at in range(start, end, 7):
        if not gap <= at < gap + 50:  # the second entry's header
            flipped = bytearray(data)
            flipped[at] ^= 16
            refused(write(flipped), "damaged")


def test_what_is_no_file(tmp_path):
    refused(tmp_path, "isn't a file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "isn't a file")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    refused(tmp_path / "zeros", "isn't a file")
    with pytest.raises(FileNotFoundError):
        Graph.load(tmp_path / "none")


# The tensors.


@pytest.fixture(scope="module")
def linear():
    """A layer's file: its document and its tensors, `state/0` and `state/1`."""
    document, tensors = fuzz.samples()[ELEMENTWISE]
    return document, safetensors.numpy.load(tensors or b"")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"state/0": None}, "must be 2 tensors, got 1"),
        ({"state/2": np.zeros(1, "f4")}, "must be 2 tensors, got 3"),
        ({"state/x": np.zeros(1, "f4")}, "must be 2 tensors"),
        ({"constant/0": np.zeros(1, "f4")}, "unknown tensor 'constant/0'"),
        ({"../x": np.zeros(1, "f4")}, "unknown tensor '../x'"),
        ({"state/0": np.zeros(2, "f8")}, "state/0 must be float32"),
        ({"state/0": np.zeros(2, "i4")}, "state/0 must be float32"),
        ({"state/0": np.zeros((2, 1), "f4")}, "state/0 must be float32"),
        ({"state/0": np.zeros((0,), "f4")}, "state/0 must be float32"),
    ],
)
def test_tensors_that_do_not_fit(write, linear, change, match):
    document, tensors = linear
    changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
    refused(write(document, safetensors.numpy.save(changed)), match)


def test_state_that_is_not_there(write, linear):
    document, tensors = linear
    refused(write(document), "must be 2 tensors, got 0")
    whole = safetensors.numpy.save(tensors)
    refused(write({**document, "has_state": False}, whole), "has_state")
    assert Graph.load(write({**document, "has_state": False})).jaxpr


def test_constants_that_are_not_there(write):
    graph = program([step("constant", [], tensor="constant/0")], [1])
    refused(write(graph), "lacks the tensor 'constant/0'")


def test_keys_of_another_shape(write):
    document, tensors = fuzz.samples()[RANDOM]
    found = safetensors.numpy.load(tensors or b"")
    for name, x in found.items():
        if x.shape == (2,):
            refused(
                write(document, safetensors.numpy.save({**found, name: np.zeros(3, x.dtype)})),
                f"{name} must be keys",
            )
            refused(
                write(document, safetensors.numpy.save({**found, name: np.zeros(2, "f4")})),
                f"{name} must be keys",
            )
            break
    else:
        pytest.fail("no key among the state")


def header(text, rest=b"", size=None):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + rest


def tensor(start, end, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        header(b"", size=10**9),
        header(b"{}", size=2**63),
        header(b"[" * 100_000),
        header({"state/0": tensor(0, 8), "state/1": tensor(4, 12)}, b"\0" * 12),
        header({"state/0": tensor(0, 8)}, b"\0" * 4),
        header({"state/0": tensor(0, 8)}, b"\0" * 80),
        header({"state/0": tensor(8, 0)}, b"\0" * 8),
        header({"state/0": tensor(0, 8, "F99")}, b"\0" * 8),
        header({"state/0": tensor(0, 2, "F8_E5M2")}, b"\0" * 2),
        header({"state/0": tensor(0, 8, shape=(-2,))}, b"\0" * 8),
        header({"state/0": tensor(0, 8, shape=(2**62, 2**62))}, b"\0" * 8),
        header({"state/0": tensor(0, 0, shape=(0, 2**62, 2**62))}),
        header({"state/0": tensor(0, 8, shape=[1] * 70 + [2])}, b"\0" * 8),
        header(b'{"state/0": {"dtype": "F32"}}'),
        header(b'{"state/0": 1, "state/0": 1}'),
    ],
)
def test_headers_of_tensors(write, linear, content):
    refused(write(linear[0], content), "x.graph")


# Random damage; fuzz_graph_files.py does much more of it.


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.randoms(use_true_random=False), st.integers(0, 4))
def test_random_damage(tmp_path_factory, pick, number):
    path = tmp_path_factory.getbasetemp() / "damaged.graph"
    path.write_bytes(fuzz.damaged_file(pick, fuzz.samples()[number]))
    with contextlib.suppress(GraphFormatError):
        fuzz.load_and_trace(path)
