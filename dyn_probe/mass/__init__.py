"""Mass: where the probability mass goes during training, measured on a fixed set of probe responses.

The names below load on first use: run-level figures and the toy need no torch, measuring a model does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "KINDS": "probe_kinds",
    "ProbePrompt": "probes",
    "ProbeSet": "probes",
    "SkippedResponse": "probes",
    "read_probe_set": "probe_file",
    "build_probe_set": "building",
    "TokenProbes": "probe_tokens",
    "check_vocabulary": "measuring",
    "encode_probes": "probe_tokens",
    "with_initial": "initial",
    "measure": "measuring",
    "KeptPosition": "kept_positions",
    "Watch": "kept_positions",
    "choose_places": "kept_positions",
    "PlaceChange": "distributions",
    "find_place": "distributions",
    "summarise": "metrics",
    "token_metrics": "metrics",
}

__all__ = [
    "KINDS",
    "KeptPosition",
    "PlaceChange",
    "ProbePrompt",
    "ProbeSet",
    "SkippedResponse",
    "TokenProbes",
    "Watch",
    "build_probe_set",
    "check_vocabulary",
    "choose_places",
    "encode_probes",
    "find_place",
    "measure",
    "read_probe_set",
    "summarise",
    "token_metrics",
    "with_initial",
]

if TYPE_CHECKING:
    from dyn_probe.mass.building import build_probe_set
    from dyn_probe.mass.distributions import PlaceChange, find_place
    from dyn_probe.mass.initial import with_initial
    from dyn_probe.mass.kept_positions import KeptPosition, Watch, choose_places
    from dyn_probe.mass.measuring import check_vocabulary, measure
    from dyn_probe.mass.metrics import summarise, token_metrics
    from dyn_probe.mass.probe_file import read_probe_set
    from dyn_probe.mass.probe_kinds import KINDS
    from dyn_probe.mass.probe_tokens import TokenProbes, encode_probes
    from dyn_probe.mass.probes import ProbePrompt, ProbeSet, SkippedResponse


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dyn_probe.mass' has no attribute {name!r}; it has: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
