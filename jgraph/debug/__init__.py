"""Debug mode: breakpoints that stop, and values that are values."""

from jgraph.debug._frames import is_shown as is_shown
from jgraph.debug._friendly import value as value
from jgraph.debug._locate import describe_bad as describe_bad
from jgraph.debug._locate import locate as locate
from jgraph.debug._mode import asked_mode as asked_mode
from jgraph.debug._mode import compiled_mode as compiled_mode
from jgraph.debug._mode import debug_mode as debug_mode
from jgraph.debug._mode import debuggable as debuggable
from jgraph.debug._mode import executing_eagerly as executing_eagerly
from jgraph.debug._mode import remat as remat
from jgraph.debug._notes import explain as explain
from jgraph.debug._notes import explained as explained
from jgraph.debug._numpy import numpy as numpy
from jgraph.debug._tracebacks import trim as trim
