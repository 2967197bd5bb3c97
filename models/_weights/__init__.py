"""Weight files: found, read without running code in them, and fitted strictly to a network."""

from jgraph.models._weights._assign import LoadedWeights as LoadedWeights
from jgraph.models._weights._assign import assign_weights as assign_weights
from jgraph.models._weights._assign import set_weights as set_weights
from jgraph.models._weights._assign import weights_of as weights_of
from jgraph.models._weights._file import find_weights as find_weights
from jgraph.models._weights._file import read_weights as read_weights
from jgraph.models._weights._keras_file import read_keras_file as read_keras_file
from jgraph.models._weights._tables import Layout as Layout
from jgraph.models._weights._tables import TensorName as TensorName
from jgraph.models._weights._tables import WeightNames as WeightNames
from jgraph.models._weights._torch_file import read_torch_file as read_torch_file
