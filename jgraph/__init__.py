"""jgraph: compiled graphs, reusable modules and transfer learning on JAX.

Everything public is listed here and loaded on first use, so that `import jgraph` costs nothing.
"""

import importlib
import pathlib
from typing import TYPE_CHECKING, Any

from jgraph._version import __version__ as __version__

if TYPE_CHECKING:
    from jgraph import data as data
    from jgraph import debug as debug
    from jgraph import distribute as distribute
    from jgraph import graph as graph
    from jgraph import hub as hub
    from jgraph import losses as losses
    from jgraph import models as models
    from jgraph import train as train
    from jgraph._cache import enable_compilation_cache as enable_compilation_cache
    from jgraph._errors import CheckpointError as CheckpointError
    from jgraph._errors import GraphFormatError as GraphFormatError
    from jgraph._errors import InputError as InputError
    from jgraph._errors import PictureError as PictureError
    from jgraph._errors import RetraceError as RetraceError
    from jgraph._finetune import Run as Run
    from jgraph._finetune import finetune as finetune
    from jgraph._finetune import load_run as load_run
    from jgraph.debug import debug_mode as debug_mode
    from jgraph.debug import executing_eagerly as executing_eagerly
    from jgraph.debug import numpy as numpy
    from jgraph.debug import remat as remat
    from jgraph.debug import value as value
    from jgraph.graph import Graph as Graph
    from jgraph.graph import function as function
    from jgraph.train import Checkpoint as Checkpoint
    from jgraph.train import EvalSpec as EvalSpec
    from jgraph.train import TrainSpec as TrainSpec
    from jgraph.train import evaluate as evaluate
    from jgraph.train import predict as predict
    from jgraph.train import train_and_evaluate as train_and_evaluate

_MODULES = ("data", "debug", "distribute", "graph", "hub", "losses", "models", "train")

_ATTRIBUTES = {
    "Checkpoint": "jgraph.train",
    "CheckpointError": "jgraph._errors",
    "EvalSpec": "jgraph.train",
    "Graph": "jgraph.graph",
    "GraphFormatError": "jgraph._errors",
    "InputError": "jgraph._errors",
    "PictureError": "jgraph._errors",
    "RetraceError": "jgraph._errors",
    "Run": "jgraph._finetune",
    "TrainSpec": "jgraph.train",
    "debug_mode": "jgraph.debug",
    "enable_compilation_cache": "jgraph._cache",
    "evaluate": "jgraph.train",
    "executing_eagerly": "jgraph.debug",
    "finetune": "jgraph._finetune",
    "function": "jgraph.graph",
    "load_run": "jgraph._finetune",
    "numpy": "jgraph.debug",
    "predict": "jgraph.train",
    "remat": "jgraph.debug",
    "train_and_evaluate": "jgraph.train",
    "value": "jgraph.debug",
}

__all__ = ["__version__"]
__all__ += [*_MODULES, *_ATTRIBUTES]

for _link in ("models", "losses"):
    if not (pathlib.Path(__file__).parent / _link).is_dir():
        raise ImportError(
            f"jgraph/{_link} must be a link to ../{_link}, but this checkout came without links; "
            "run 'git config core.symlinks true' and check it out again, or install the wheel"
        )


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jgraph.{name}")
    if name in _ATTRIBUTES:
        value = getattr(importlib.import_module(_ATTRIBUTES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'jgraph' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
