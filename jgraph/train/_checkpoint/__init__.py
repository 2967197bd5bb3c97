"""Checkpoints: the whole state of a run on disk, verified before it is used."""

from jgraph.train._checkpoint._checkpoint import Checkpoint as Checkpoint
from jgraph.train._checkpoint._checkpoint import Restored as Restored
