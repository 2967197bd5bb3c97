"""A loaded module: signatures that are called, differentiated, or put into a model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jgraph._arrays import from_numpy
from jgraph._errors import (
    GraphFormatError,
    InputError,
    ModuleFormatError,
    PictureError,
    SignatureError,
)
from jgraph._preprocessing import Preprocessing
from jgraph._suggest import did_you_mean
from jgraph.graph import Graph, function
from jgraph.hub._layer import Layer, LayerT, make_layer, make_stream
from jgraph.hub._manifest import check_manifest
from jgraph.hub._weights import KINDS, state_paths

PROGRAMS = "programs"


class Info(NamedTuple):
    """What a signature takes and gives."""

    inputs: dict[str, dict[str, Any]]
    """Shape and dtype by name; a size that is a text may be any."""
    outputs: dict[str, dict[str, Any]]
    weights: int
    """How many numbers it uses."""
    has_train: bool
    """Whether it does something else in training mode."""


class Runner(NamedTuple):
    """A signature's program in one mode: a graph, and the path of each weight in its state."""

    graph: Graph
    paths: Mapping[str, str]

    def __call__(self, weights: Mapping[str, Any], *inputs: Any) -> tuple[Any, dict[str, Any]]:
        """Return the outputs, and the new values of the weights it uses."""
        state = {path: weights[key] for key, path in self.paths.items()}
        outputs, after = self.graph.apply(state, *inputs)
        return outputs, {key: after[path] for key, path in self.paths.items()}


class Module:
    """Signatures with weights, in a folder: a black box, or a part of a model of one's own.

    Made by `jgraph.hub.load`. It is called with arrays, or with pictures in any form, which go
    through its own preprocessing.

    Attributes:
        folder: where it lies.
        manifest: module.json.
        weights: every weight by key, NumPy arrays.
        labels: the names of its classes, if any.
    """

    def __init__(
        self, folder: Path, manifest: Mapping[str, Any], weights: Mapping[str, np.ndarray]
    ) -> None:
        check_manifest(folder, manifest, weights)
        self.folder, self.manifest, self.weights = folder, manifest, dict(weights)
        self.labels: tuple[str, ...] = tuple(manifest["labels"])
        self._runners: dict[tuple[str, bool], Runner] = {}
        self._compiled: dict[str, Callable[..., Any]] = {}

    def __repr__(self) -> str:
        return f"Module({str(self.folder)!r}, signatures={', '.join(self.signatures)})"

    @property
    def signatures(self) -> tuple[str, ...]:
        """The names of its signatures."""
        return tuple(self.manifest["signatures"])

    @functools.cached_property
    def preprocessing(self) -> Preprocessing | None:
        """How pictures become its input, None for a module that takes none."""
        found = self.manifest["preprocess"]
        return Preprocessing.from_json(found) if found else None

    @functools.cached_property
    def params(self) -> dict[str, jax.Array]:
        """The weights that training changes, by key."""
        kinds = self._kinds
        return {k: from_numpy(v) for k, v in self.weights.items() if kinds[k] is nnx.Param}

    @functools.cached_property
    def state(self) -> dict[str, jax.Array]:
        """What else a signature reads, by key: statistics of batch normalisation, random streams.

        The streams, such as dropout's, are new ones of seed 0.
        """
        kinds, rngs = self._kinds, nnx.Rngs(0)
        stored = {k: from_numpy(v) for k, v in self.weights.items() if kinds[k] is not nnx.Param}
        entries = self.manifest.get("variables", {})
        streams = {
            key: make_stream(entries[key], key, rngs).get_value()
            for key, kind in kinds.items()
            if issubclass(kind, nnx.RngState)
        }
        return {**stored, **streams}

    def info(self, signature: str = "default") -> Info:
        """Return what a signature takes and gives.

        Raises:
            SignatureError: there is no such signature.
        """
        entry = self._entry(signature)
        used = entry["program"]["weights"]
        size = sum(self.weights[key].size for key in used if key in self.weights)
        return Info(entry["inputs"], entry["outputs"], size, "train" in entry)

    def __call__(self, *inputs: Any, signature: str = "default", batch_size: int = 32) -> Any:
        """Run a signature in evaluation mode, compiled.

        Args:
            *inputs: arrays, as `info` says. Where the module takes pictures: files, Pillow images
                or arrays of any size, one or a list of them.
            signature: which one.
            batch_size: how many pictures at once.

        Returns:
            The outputs.

        Raises:
            SignatureError: there is no such signature, or it takes something else.
            PictureError: a file is no picture.
        """
        entry = self._entry(signature)
        if len(inputs) != len(entry["inputs"]):
            raise SignatureError(
                f"{signature!r} takes {', '.join(entry['inputs'])}, got {len(inputs)} inputs"
            )
        if self.preprocessing is not None and len(inputs) == 1 and not _is_batch(inputs[0]):
            return self._of_pictures(inputs[0], signature, batch_size)
        return self._run(signature, *inputs)

    def apply(
        self, signature: str = "default", *, train: bool = False, dtype: DTypeLike | None = None
    ) -> Callable[..., Any]:
        """Return a signature as a pure function, to jit, differentiate, map or shard.

        Args:
            signature: which one.
            train: in training mode; it then returns `(outputs, state)`, the state after it.
            dtype: compute in another float type, such as `jax.numpy.bfloat16`; the weights given
                may be of either.

        Returns:
            `f(params, state, *inputs)`, of dicts of arrays by key such as `module.params` and
            `module.state`; a weight that it doesn't use may be there or not.

        Raises:
            SignatureError: there is no such signature.
        """
        runner = self.runner(signature, train=train)
        if dtype is not None:
            graph = runner.graph.cast(dtype)
            runner = Runner(graph, runner.paths)

        def pure(params: Mapping[str, Any], state: Mapping[str, Any], *inputs: Any) -> Any:
            weights = {**params, **state}
            missing = [key for key in runner.paths if key not in weights]
            if missing:
                raise SignatureError(
                    f"{signature!r} uses {len(runner.paths)} weights, params and state lack "
                    f"{missing[0]!r}{did_you_mean(missing[0], weights)}"
                )
            if dtype is not None:
                weights = {k: _cast(x, dtype) for k, x in weights.items() if k in runner.paths}
            outputs, after = runner(weights, *inputs)
            if not train:
                return outputs
            return outputs, {**state, **{key: after[key] for key in after if key in state}}

        return pure

    def as_nnx(
        self,
        signature: str = "default",
        *,
        trainable: bool | str | Sequence[str] = False,
        rngs: nnx.Rngs | None = None,
        below: str = "",
        kind: type[LayerT] = Layer,
    ) -> LayerT:
        """Return a signature as an NNX module, to be used inside any model.

        Its `train()` and `eval()` choose the program, so that dropout and batch normalisation do
        what they did in the model that was published.

        Args:
            signature: which one.
            trainable: True makes every parameter that the signature uses an `nnx.Param`, False
                none; globs of keys make those, as `"blocks/1[0-5]/*"`.
            rngs: source of the random streams, such as dropout's; None for `nnx.Rngs(0)`.
            below: what the names of the layer's weights leave out at their beginning, as
                "backbone/".
            kind: a class of one's own for the layer, derived from `Layer`.

        Returns:
            The layer. `layer.module()` is this module with the layer's weights.

        Raises:
            SignatureError: there is no such signature.
            InputError: a glob matches no parameter.
        """
        rngs = nnx.Rngs(0) if rngs is None else rngs
        return make_layer(self, signature, trainable, rngs, below, kind)

    def with_weights(self, weights: Mapping[str, Any]) -> Module:
        """Return the module with some weights replaced.

        Raises:
            InputError: a key isn't one of its weights, or the shape is another.
        """
        for key, value in weights.items():
            if key not in self.weights:
                raise InputError(
                    f"{key!r} is no weight of {self!r}{did_you_mean(key, self.weights)}"
                )
            if np.shape(value) != self.weights[key].shape:
                raise InputError(
                    f"{key!r} must have the shape {self.weights[key].shape}, got {np.shape(value)}"
                )
        replaced = {k: np.asarray(v, self.weights[k].dtype) for k, v in weights.items()}
        return Module(self.folder, self.manifest, {**self.weights, **replaced})

    # Programs.

    def runner(self, signature: str, *, train: bool) -> Runner:
        """Return a signature's program; that of evaluation where training is no different."""
        entry = self._entry(signature)
        is_train = train and "train" in entry
        if (signature, is_train) not in self._runners:
            described = entry["train" if is_train else "program"]
            self._runners[signature, is_train] = self._read(signature, described)
        return self._runners[signature, is_train]

    def _read(self, signature: str, described: Mapping[str, Any]) -> Runner:
        file, keys = described["file"], described["weights"]
        if file not in self.manifest["files"]:
            raise ModuleFormatError(
                f"the signature {signature!r} of {self.folder} must name a program among its "
                f"files, got {file!r:.60}"
            )
        unknown = [key for key in keys if key not in self._kinds]
        if unknown:
            raise ModuleFormatError(
                f"the signature {signature!r} of {self.folder} uses {unknown[0]!r:.60}, which is "
                "no weight of it"
            )
        try:
            graph = Graph.load(self.folder / file)
        except GraphFormatError as error:
            raise ModuleFormatError(f"{self.folder}: {error}") from error
        paths = state_paths(keys)
        count = len(graph.input_paths) - len(graph.inputs)
        if sorted(graph.input_paths[:count]) != sorted(paths.values()):
            raise ModuleFormatError(
                f"{file} of {self.folder} must use the weights that module.json names"
            )
        self._check_shapes(file, graph, paths)
        return Runner(graph, paths)

    def _check_shapes(self, file: str, graph: Graph, paths: Mapping[str, str]) -> None:
        avals = dict(zip(graph.input_paths, graph.jaxpr.in_avals, strict=True))
        for key, path in paths.items():
            weight, aval = self.weights.get(key), avals[path]
            if weight is not None and (weight.shape, weight.dtype) != (aval.shape, aval.dtype):
                raise ModuleFormatError(
                    f"{file} of {self.folder} takes {key!r} as {aval.str_short()}, and the "
                    f"weights hold {weight.dtype}{list(weight.shape)}"
                )

    def _entry(self, signature: str) -> Mapping[str, Any]:
        entries = self.manifest["signatures"]
        if signature not in entries:
            raise SignatureError(
                f"the signature must be one of {', '.join(entries)}, got {signature!r}"
                f"{did_you_mean(str(signature), entries)}"
            )
        entry = entries[signature]
        if "program" not in entry:
            raise SignatureError(
                f"{self.folder} is a run without programs; make a module of it: jgraph hub "
                f"publish {self.folder} DEST"
            )
        return entry

    @functools.cached_property
    def _kinds(self) -> dict[str, type[nnx.Variable[Any]]]:
        entries = self.manifest.get("variables", {})
        return {key: KINDS.get(entry["kind"], nnx.Variable) for key, entry in entries.items()}

    # Black box.

    def _run(self, signature: str, *inputs: Any) -> Any:
        if signature not in self._compiled:
            self._compiled[signature] = function(self.apply(signature))
        return self._compiled[signature](self.params, self.state, *inputs)

    def _of_pictures(self, pictures: Any, signature: str, batch_size: int) -> Any:
        from jgraph.data import Pictures

        assert self.preprocessing is not None
        sources = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
        batches = Pictures(
            sources, None, self.preprocessing, min(batch_size, len(sources)), on_bad_picture="skip"
        )
        parts = []
        for batch in batches:
            if batches.bad:
                raise PictureError("; ".join(batches.bad.values()))
            real = int((batch["weight"] > 0).sum())
            outputs = self._run(signature, batch["picture"])
            parts.append(jax.tree.map(lambda x, real=real: x[:real], outputs))
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)


def _is_batch(x: Any) -> bool:
    return hasattr(x, "dtype") and x.ndim == 4


def _cast(x: Any, dtype: DTypeLike) -> Any:
    return x.astype(dtype) if x.dtype == jnp.float32 else x
