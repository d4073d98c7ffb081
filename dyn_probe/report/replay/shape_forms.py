"""Shapings in numpy: the factors that they put on a pair's two contributions, or on its pulls once they are known.

The shapings are those of ``dyn_probe.objectives`` (docs/methods.md); the tests hold both to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dyn_probe.objectives import objective
from dyn_probe.report.frames import Floats
from dyn_probe.report.replay.pull_forms import PairState, Pulls, sigmoid

Options = Mapping[str, Any]


def _gate_seq(name: str, s: PairState, options: Options) -> PairState:
    """g = σ(α(s − τ)) on the rejected contribution, s = e^b̄."""
    return replace(s, gate=sigmoid(options["alpha"] * (np.exp(s.b / s.n_l) - options["tau"])))


def _adadpo(name: str, s: PairState, options: Options) -> PairState:
    """ρ = min(exp(u_w − u_l), C) on the chosen contribution."""
    ratio = options["space"] == "ratio" or (options["space"] == "auto" and objective(name).needs_reference)
    u_w, u_l = (s.h_w, s.h_l) if ratio else (s.a, s.b)
    if options["stable"]:
        u_w, u_l = u_w / s.n_w, u_l / s.n_l
    return replace(s, rho=np.minimum(np.exp(u_w - u_l), options["ceiling"]))


SHAPES: dict[str, Callable[[str, PairState, Options], PairState]] = {"gate-seq": _gate_seq, "adadpo": _adadpo}
"""Shaping → (objective's name, state, options) → the state with its factor."""

FITS: dict[str, Callable[[str, Options], bool]] = {
    "gate-seq": lambda name, options: options["form"] == "value",
    "adadpo": lambda name, options: objective(name).balance is None,
    "pairwise-normalised": lambda name, options: options["metric"] == "plain",
}
"""Shaping → whether these options are known here with this objective."""


def normalised(pulls: Pulls, norm_w: Floats | float, norm_l: Floats | float) -> Pulls:
    """Pairwise-normalised pulls: √(d_w d_l)/‖g_w‖ and √(d_w d_l)/‖g_l‖, each with its sign."""
    d_w, d_l = pulls
    scalar = np.sqrt(np.abs(d_w) * np.abs(d_l))
    return np.sign(d_w) * scalar / norm_w, np.sign(d_l) * scalar / norm_l
