"""Tables and traces of mass dynamics, made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd

from dyn_probe.trace.manifest import typed
from dyn_probe.trace.schema import TABLES


def mass_table(steps=(0, 10, 20), kinds=("chosen", "rejected", "irr_train", "chosen_initial"), fall=1.0):
    """Three prompts whose target mass falls and whose rival rises, evenly."""
    rows = []
    for step in steps:
        for prompt in range(3):
            for place, kind in enumerate(kinds):
                target = 0.5 - 0.1 * place - 0.01 * step
                rows.append(
                    {
                        "step": step, "prompt_id": f"p{prompt}", "kind": kind, "tokens": 10,
                        "logp": -20.0 - fall * step * (1 + place), "logp_token": -2.0, "argmax_logp": -5.0 + 0.1 * step,
                        "entropy": 3.0 - 0.05 * step, "rank": 4.0 + place * step, "top1": target,
                        "missing_mass": 1 - target, "rival_mass": 0.2 + 0.01 * step,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=list(TABLES["mass"].names))


def trace(mass=None, method="dpo", shaping=()):
    empty = pd.DataFrame(columns=list(TABLES["mass"].names))
    pairs = pd.DataFrame(columns=list(TABLES["pairs"].names))
    about = typed({"objective": {"name": method, "shaping": list(shaping)}})
    return SimpleNamespace(mass=empty if mass is None else mass, pairs=pairs, about=about)
