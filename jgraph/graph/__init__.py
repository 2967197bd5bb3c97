"""Compiled graphs: trace a function once, run it, ask why it was traced, see it."""

from jgraph._errors import RetraceError as RetraceError
from jgraph.graph._compiled import Function as Function
from jgraph.graph._execution import Memory as Memory
from jgraph.graph._function import function as function
from jgraph.graph._graph import Graph as Graph
from jgraph.graph._jaxpr import bodies_of as bodies_of
from jgraph.graph._jaxpr import shape_of as shape_of
from jgraph.graph._nnx import named_variables as named_variables
from jgraph.graph._ops import Op as Op
from jgraph.graph._scopes import module_scopes as module_scopes
from jgraph.graph._strategy import Body as Body
from jgraph.graph._strategy import Output as Output
from jgraph.graph._strategy import Strategy as Strategy
from jgraph.graph._synchronised import synchronised as synchronised
