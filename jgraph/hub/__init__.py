"""Modules: groups of signatures with weights, in a folder that is verified before it is used."""

from jgraph._errors import ModuleFetchError as ModuleFetchError
from jgraph._errors import ModuleFormatError as ModuleFormatError
from jgraph._errors import ModuleIntegrityError as ModuleIntegrityError
from jgraph._errors import ModuleNotCachedError as ModuleNotCachedError
from jgraph._errors import ModuleWeightsError as ModuleWeightsError
from jgraph._errors import SignatureError as SignatureError
from jgraph._errors import UnsafeModuleError as UnsafeModuleError
from jgraph._errors import UntrustedProgramError as UntrustedProgramError
from jgraph._handles import Limits as Limits
from jgraph._handles import resolve as resolve
from jgraph.hub._format import read_module as read_module
from jgraph.hub._format import write_module as write_module
from jgraph.hub._layer import Layer as Layer
from jgraph.hub._load import load as load
from jgraph.hub._module import Info as Info
from jgraph.hub._module import Module as Module
from jgraph.hub._publish import describe as describe
from jgraph.hub._publish import publish as publish
from jgraph.hub._transfer import pull as pull
from jgraph.hub._transfer import push as push
from jgraph.hub._weights import Frozen as Frozen
