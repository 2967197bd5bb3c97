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
    """A file does what plain data doesn't: names code, leaves its folder, or has no bounds."""


class UntrustedProgramError(InputError):
    """A module has a compiled program, which can't be checked, and nobody said to trust it."""


class ModuleFetchError(InputError):
    """What a handle names can't be fetched: it isn't there, is refused, or can't be reached."""


class ModuleNotCachedError(InputError):
    """What a handle names isn't in the cache, and nothing may be fetched while offline."""


class GraphFormatError(InputError):
    """A file is no graph file or a damaged one, or a graph can't be written as one."""


class RetraceError(InputError):
    """A function was traced or compiled more often than `max_graphs` allows; it says why."""


class CheckpointError(InputError):
    """A checkpoint can't be written, read, or used for what it was asked for."""


class CheckpointWriteError(CheckpointError):
    """A checkpoint couldn't be written; earlier ones are as they were."""


class CheckpointIntegrityError(CheckpointError):
    """Files of a checkpoint are missing, or are not what was written."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint holds other arrays than the program: missing, extra, or of another kind."""
