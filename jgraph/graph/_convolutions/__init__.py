"""Convolutions that XLA compiles poorly for CPU, written as what it compiles well.

`_shapes.py` reads a convolution; `_choice.py` says by its shape which formulation is fastest, of
those in `_depthwise.py` and `_dense.py`; `_rule.py` makes it a rule for `rewrite`; `_cost.py` says
what that costs to compile.
"""

from jgraph.graph._convolutions._cost import compile_factor as compile_factor
from jgraph.graph._convolutions._rule import fast_convolution as fast_convolution
