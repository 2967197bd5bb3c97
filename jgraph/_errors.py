"""Errors that name what must hold, what came and what to do.

The base of the house: this file imports nothing of jgraph.
"""


class InputError(ValueError):
    """What a person gave cannot be used; the message says what must hold, what came, what to do.

    The `jgraph` command prints the message without a traceback and exits with code 2.
    """


class PictureError(InputError):
    """A file is not a picture that can be decoded."""


class ModuleFormatError(InputError):
    """A module or run folder does not follow the module format."""


class ModuleIntegrityError(InputError):
    """A file of a module is missing, or is not the file that was published."""


class ModuleWeightsError(InputError):
    """Weights are missing, left over, or of another shape than the network's."""


class SignatureError(InputError):
    """A module has no such signature, or the signature takes something else."""


class UnsafeModuleError(InputError):
    """A weight file names or needs something other than plain tensors."""


class GraphFormatError(InputError):
    """A file is no graph file or a damaged one, or a graph can't be written as one."""


class RetraceError(InputError):
    """A function was traced or compiled more often than `max_graphs` allows; it says why."""
