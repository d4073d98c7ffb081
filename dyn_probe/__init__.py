"""dyn-probe: exact per-pair gradient dynamics for preference training of language models.

The names below load on first use, so that reading a trace never imports torch. They and the modules that docs/api.md
lists are the whole public surface.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "PairBatch": "dyn_probe.pairs",
    "sequence_logps": "dyn_probe.pairs",
    "token_logps": "dyn_probe.pairs",
    "pair_gradients": "dyn_probe.engine",
    "row_gram": "dyn_probe.engine",
    "token_gram": "dyn_probe.engine",
    "Probe": "dyn_probe.probe",
    "RunConfig": "dyn_probe.train.options.config",
    "record": "dyn_probe.train.loop",
    "load_trace": "dyn_probe.trace.reader",
    "DynProbeError": "dyn_probe.errors",
    "BadInput": "dyn_probe.errors",
    "UnsupportedUse": "dyn_probe.errors",
    "TraceError": "dyn_probe.errors",
    "CertificationError": "dyn_probe.errors",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from dyn_probe.engine import pair_gradients, row_gram, token_gram
    from dyn_probe.errors import BadInput, CertificationError, DynProbeError, TraceError, UnsupportedUse
    from dyn_probe.pairs import PairBatch, sequence_logps, token_logps
    from dyn_probe.probe import Probe
    from dyn_probe.trace.reader import load_trace
    from dyn_probe.train.loop import record
    from dyn_probe.train.options.config import RunConfig


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dyn_probe' has no attribute {name!r}; it has: {', '.join(__all__)}")
    errors = importlib.import_module("dyn_probe.errors")
    if _HOMES[name] != errors.__name__:
        errors.check_versions()
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
