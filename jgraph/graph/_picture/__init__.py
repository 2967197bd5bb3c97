"""A traced program as a picture: nested modules, their dataflow, shapes and cost."""

from jgraph.graph._picture._draw import draw as draw
from jgraph.graph._picture._draw import text as text
from jgraph.graph._picture._facts import Port as Port
