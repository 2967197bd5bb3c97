"""Modules: groups of signatures with weights, in a folder that is verified before it is used."""

from jgraph._errors import ModuleFormatError as ModuleFormatError
from jgraph._errors import ModuleIntegrityError as ModuleIntegrityError
from jgraph._errors import ModuleWeightsError as ModuleWeightsError
from jgraph._errors import UnsafeModuleError as UnsafeModuleError
from jgraph.hub._format import read_module as read_module
from jgraph.hub._format import write_module as write_module
