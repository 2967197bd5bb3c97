"""Graph files: a program that outlives its source and its JAX."""

from jgraph.graph._file import _control as _control
from jgraph.graph._file import _elementwise as _elementwise
from jgraph.graph._file import _indexing as _indexing
from jgraph.graph._file import _linear as _linear
from jgraph.graph._file import _random as _random
from jgraph.graph._file import _shapes as _shapes
from jgraph.graph._file._save import Loaded as Loaded
from jgraph.graph._file._save import read_graph as read_graph
from jgraph.graph._file._save import stored as stored
from jgraph.graph._file._save import write_graph as write_graph
from jgraph.graph._file._stored import Stored as Stored
