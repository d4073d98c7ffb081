"""The errors this package raises: one small tree, so that a caller can catch all of it or one branch."""


class DynProbeError(Exception):
    """Base of every error that dyn-probe raises on purpose."""


class BadInput(DynProbeError, ValueError):
    """An argument, option or data file is not usable; the message says what was wanted and what came."""


class UnsupportedUse(DynProbeError):
    """A model uses parameters in a way whose per-row gradient cannot be recovered; the message lists every one."""


class TraceError(DynProbeError):
    """A trace folder cannot be read or written as asked."""


class WriteFailed(TraceError):
    """The system refused to write a file of the run: a full disk, a file-size limit, a folder that is gone."""

    exit_code = 1


class CertificationError(DynProbeError):
    """The recorder disagrees with plain autograd by more than its tolerance."""


class Diverged(DynProbeError):
    """Training came to a loss that is no number; what was recorded before is kept."""

    exit_code = 1
