"""Publishing: a model and its signatures as a folder that needs neither its source nor jgraph's."""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jgraph._collection import no_collection
from jgraph._errors import InputError
from jgraph._preprocessing import Preprocessing
from jgraph._suggest import did_you_mean
from jgraph.hub._card import card as written_card
from jgraph.hub._format import write_module
from jgraph.hub._module import PROGRAMS, Module
from jgraph.hub._programs import Program, Signature, trace
from jgraph.hub._weights import key_of, kind_of, variables_of

CARD = "README.md"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def publish(
    folder: str | os.PathLike[str],
    model: nnx.Module | Module,
    *,
    signatures: Mapping[str, Signature | str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
    licence: str | Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    card: str | None = None,
    train: bool = True,
) -> Path:
    """Write a model as a module: signatures with weights, that run without the model's source.

    The folder is written whole or not at all, and the same model gives the same bytes. It holds
    `module.json`, `weights.safetensors`, graph files under `programs/`, and a card, `README.md`.

    Args:
        folder: the destination, which must not exist.
        model: an NNX module, which isn't changed; or a module of the hub, such as
            `layer.module()`, to write it anew: it keeps its signatures.
        signatures: by name, `signature(model, *inputs)` or a method's name; a module should have
            a "default". None takes `model(…)` as "default" and, where the model has a method
            `features`, that as "features".
        inputs: by name, in the order of the arguments, what every signature takes: an example
            array, whose first axis then is a batch of any size; or a `jax.ShapeDtypeStruct`,
            whose sizes may be those of `jax.export.symbolic_shape`. Where signatures take
            different inputs, by signature: `{"default": {"x": …}, "embed": {"tokens": …}}`. None
            takes pictures as `preprocessing` makes them, uint8 [b, S, S, 3].
        preprocessing: how pictures become the input; None takes `model.preprocessing` if any.
        labels: the names of the classes, as many as a signature's outputs have; None takes
            `model.class_names` if any.
        licence: what a user may do with it, a text, or texts by part.
        provenance: where it comes from, as JSON.
        card: the text of README.md; None writes one.
        train: write a second program for each signature that does something else in training
            mode, as dropout and batch normalisation do.

    Returns:
        The folder.

    Raises:
        ModuleFormatError: (an InputError) the folder exists.
        ModuleWeightsError: a weight isn't finite.
        GraphFormatError: a signature has an operation that no file can hold; it names the line.
        InputError: a signature or an input can't be used.

    Source:
        `tf.hub.create_module_spec`, TensorFlow Hub.

    Example:
        >>> import tempfile
        >>> from jgraph import hub
        >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = hub.publish(f"{folder}/line", model, inputs={"x": jnp.zeros((1, 2))})
        ...     module = hub.load(path)
        ...     y = module(jnp.ones((3, 2)))
        >>> module.signatures, y.shape
        (('default',), (3, 1))
    """
    if Path(folder).suffix in (".zip", ".tar", ".tgz", ".gz"):
        raise InputError(
            f"publish writes a folder, got {os.fspath(folder)!r}; jg.hub.push(folder, "
            f"{Path(folder).name!r}) makes an archive of it"
        )
    if isinstance(model, Module):
        return _publish_again(folder, model, licence, provenance, card)
    if not isinstance(model, nnx.Module):
        raise InputError(
            f"model must be an nnx.Module or a module of the hub, got {type(model).__name__}"
        )
    with no_collection():
        described = describe(
            model, signatures=signatures, inputs=inputs, preprocessing=preprocessing, train=train
        )
    names = getattr(model, "class_names", None) or () if labels is None else labels
    _check_labels(names, described.manifest["signatures"])
    preprocessing = preprocessing or getattr(model, "preprocessing", None)
    manifest = {
        **described.manifest,
        "labels": list(map(str, names)),
        "preprocess": preprocessing.to_json() if preprocessing else {},
        "licence": {"weights": licence} if isinstance(licence, str) else dict(licence or {}),
        "provenance": dict(provenance or {}),
    }
    weights = {
        key: np.asarray(variable.get_raw_value())
        for key, variable in variables_of(model).items()
        if not isinstance(variable, nnx.RngState)
    }

    def write_files(unfinished: Path) -> None:
        with no_collection():
            described.write_programs(unfinished)
        text = written_card(Path(folder).name, manifest, weights) if card is None else card
        (unfinished / CARD).write_text(text, "utf-8")

    return write_module(folder, manifest, weights, write_files=write_files)


class Described(NamedTuple):
    """What a manifest says of signatures and weights, and the programs."""

    manifest: dict[str, Any]
    programs: dict[str, Program]

    def write_programs(self, folder: Path) -> None:
        """Write the graph files into an unfinished module folder."""
        (folder / PROGRAMS).mkdir()
        for name, program in self.programs.items():
            program.graph.save(folder / PROGRAMS / f"{name}.graph", state=False)


def describe(
    model: nnx.Module,
    *,
    signatures: Mapping[str, Signature | str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    train: bool = True,
) -> Described:
    """Trace a model's signatures; arguments as for `publish`."""
    preprocessing = preprocessing or getattr(model, "preprocessing", None)
    chosen = _signatures(model, signatures)
    specs = {name: _inputs(name, chosen, inputs, preprocessing) for name in chosen}
    entries: dict[str, Any] = {}
    programs: dict[str, Program] = {}
    for name, signature in chosen.items():
        evaluated = _trace(model, signature, specs[name], train=False)
        trained = _trace(model, signature, specs[name], train=True) if train else evaluated
        programs[name] = evaluated
        if not _are_alike(trained, evaluated):
            programs[f"{name}.train"] = trained
        entries[name] = _entry(name, programs, specs[name])
    manifest = {
        "signatures": entries,
        "variables": {key: _variable(x) for key, x in variables_of(model).items()},
        "stages": _stages(model),
    }
    return Described(manifest, programs)


def _publish_again(
    folder: str | os.PathLike[str],
    module: Module,
    licence: str | Mapping[str, str] | None,
    provenance: Mapping[str, Any] | None,
    card: str | None,
) -> Path:
    """Write a module of the hub with the weights it has now."""
    added = {"format", "version", "weights", "files", "made_with", "sha256"}
    manifest = {key: value for key, value in module.manifest.items() if key not in added}
    if licence is not None:
        manifest["licence"] = {"weights": licence} if isinstance(licence, str) else dict(licence)
    manifest["provenance"] = {
        **({"module": module.manifest["sha256"]} if provenance is None else provenance)
    }

    def write_files(unfinished: Path) -> None:
        shutil.copytree(module.folder / PROGRAMS, unfinished / PROGRAMS)
        text = written_card(Path(folder).name, manifest, module.weights) if card is None else card
        (unfinished / CARD).write_text(text, "utf-8")

    return write_module(folder, manifest, module.weights, write_files=write_files)


# What is published.


def _signatures(
    model: nnx.Module, signatures: Mapping[str, Signature | str] | None
) -> dict[str, Signature]:
    if signatures is None:
        signatures = {"default": "__call__"}
        if callable(getattr(model, "features", None)):
            signatures["features"] = "features"
    if not signatures:
        raise InputError("signatures must have at least one, such as {'default': '__call__'}")
    found = {}
    for name, signature in signatures.items():
        if not _NAME.fullmatch(name):
            raise InputError(f"a signature's name must be letters, digits and _, got {name!r}")
        if isinstance(signature, str):
            method = getattr(type(model), signature, None)
            if not callable(method):
                raise InputError(
                    f"the signature {name!r} must be a function or a method of "
                    f"{type(model).__name__}, which has no method {signature!r}"
                    f"{did_you_mean(signature, dir(type(model)))}"
                )
            signature = method
        found[name] = signature
    return found


def _check_labels(labels: Sequence[str], signatures: Mapping[str, Any]) -> None:
    """Refuse names of classes that no output has as many of; one logit decides between two."""
    shapes = {
        f"{name} {path}": tuple(output["shape"])
        for name, entry in signatures.items()
        for path, output in entry["outputs"].items()
    }
    sizes = {shape[-1] for shape in shapes.values() if shape}
    if labels and len(labels) not in sizes and not (len(labels) == 2 and 1 in sizes):
        listed = ", ".join(f"{name} [{', '.join(map(str, s))}]" for name, s in shapes.items())
        raise InputError(
            f"labels must be one for each class that a signature returns, got {len(labels)} "
            f"labels for the outputs {listed}"
        )


def _inputs(
    name: str,
    signatures: Mapping[str, Signature],
    inputs: Mapping[str, Any] | None,
    preprocessing: Preprocessing | None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return what one signature takes."""
    batch = _batch()
    if inputs is None:
        if preprocessing is None:
            raise InputError(
                "inputs must say what the signatures take, such as inputs={'x': example}, since "
                "the model has no preprocessing for pictures"
            )
        side = preprocessing.image_size
        return {"pictures": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)}
    if all(isinstance(value, Mapping) for value in inputs.values()):
        if set(inputs) != set(signatures):
            raise InputError(
                f"inputs by signature must be for {sorted(signatures)}, got {sorted(inputs)}"
            )
        return {key: _spec(key, value, batch) for key, value in inputs[name].items()}
    return {key: _spec(key, value, batch) for key, value in inputs.items()}


@functools.cache
def _batch() -> Any:
    """Return the size of any batch: the same one for all, so that JAX traces parts once."""
    return jax.export.symbolic_shape("b")[0]


def _spec(name: str, value: Any, batch: Any) -> jax.ShapeDtypeStruct:
    if isinstance(value, jax.ShapeDtypeStruct):
        return value
    if not hasattr(value, "dtype"):
        raise InputError(
            f"the input {name!r} must be an example array or a jax.ShapeDtypeStruct, got "
            f"{type(value).__name__}"
        )
    shape = (batch, *value.shape[1:]) if value.shape else ()
    return jax.ShapeDtypeStruct(shape, value.dtype)


def _trace(
    model: nnx.Module, signature: Signature, inputs: Mapping[str, Any], *, train: bool
) -> Program:
    twin = nnx.merge(*nnx.split(model))
    if train:
        twin.train()
    else:
        twin.eval()
    return trace(twin, signature, inputs)


def _are_alike(a: Program, b: Program) -> bool:
    if (a.keys, a.changed) != (b.keys, b.changed):
        return False
    return str(a.graph.jaxpr) == str(b.graph.jaxpr)


def _entry(name: str, programs: Mapping[str, Program], inputs: Mapping[str, Any]) -> dict[str, Any]:
    entry = {
        "inputs": {key: _shown(spec) for key, spec in inputs.items()},
        "outputs": {path: _shown(x) for path, x in programs[name].graph.outputs.items()},
        "program": {"file": f"{PROGRAMS}/{name}.graph", "weights": list(programs[name].keys)},
    }
    trained = programs.get(f"{name}.train")
    if trained is not None:
        entry["train"] = {"file": f"{PROGRAMS}/{name}.train.graph", "weights": list(trained.keys)}
    return entry


def _shown(spec: Any) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else str(size) for size in spec.shape]
    return {"shape": shape, "dtype": spec.dtype.name}


def _variable(variable: nnx.Variable[Any]) -> dict[str, Any]:
    value = variable.get_raw_value()
    entry: dict[str, Any] = {"kind": kind_of(variable)}
    if isinstance(variable, nnx.RngState):
        entry["shape"] = list(value.shape)
        if isinstance(variable, nnx.RngKey):
            entry["impl"] = str(jax.random.key_impl(value))
    return entry


def _stages(model: nnx.Module) -> list[list[str]]:
    """Return the parts that are unfrozen together, where the model says so, in forward order."""
    stages = getattr(model, "stages", None) or getattr(
        getattr(model, "backbone", None), "stages", ()
    )
    paths = {id(node): key_of(path) for path, node in nnx.iter_graph(model, graph=True)}
    return [[paths[id(part)] for part in stage if id(part) in paths] for stage in stages]
