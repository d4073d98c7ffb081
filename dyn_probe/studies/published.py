"""The published Δ table of the squeezing study, and the methods behind its rows. No torch.

Numbers: the author's study of Gate-DPO (Mouiche 2026, arXiv 2605.02626, and the table of its repository,
github.com/imouiche/gradient-gate-dpo-vs-the-field): HH helpful-base, supervised training on chosen first, then 5 epochs
of preference training of Pythia-410M; changes of summed log-probabilities, in nats per response.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dyn_probe.objectives.options import Value


@dataclass(frozen=True)
class Published:
    """One method: its objective with the hyper-parameters that are not the default, its shapings, and its row of the
    published table (nats/sequence)."""

    objective: str
    shaping: tuple[str, ...] = ()
    delta_chosen: float = float("nan")
    delta_rejected: float = float("nan")
    margin: float = float("nan")
    delta_others: float = float("nan")
    hyper: Mapping[str, Value] = field(default_factory=dict)


_SEQ, _Q10 = ("gate-seq",), ("gate-q10",)
PER_SEQUENCE: dict[str, Value] = {"average": False}
"""IPO on sums, as in the code of DPO's authors: a target of 1/(2β) = 5 nats per sequence. Only that fits the published
margin of 8.5 nats per sequence; the mean per token that IPO's authors confirmed has its target at 5 nats per token."""
RISING: dict[str, Value] = {"lambda": 0.75, "schedule": True}
"""DPO-Shift with λ rising to 1 over training: the author's is "training-progress-scheduled"; the start is the smallest
of Yang et al. 2025 (linear increase 0.75 to 1)."""

PUBLISHED: dict[str, Published] = {
    "DPO": Published("dpo", (), -11.90, -26.35, 14.45, -27.55),
    "IPO": Published("ipo", (), -0.95, -9.43, 8.48, -8.55, PER_SEQUENCE),
    "Cal-DPO": Published("cal_dpo", (), 1.03, -6.74, 7.77, -3.02),
    "DPO-Shift": Published("dpo_shift", (), -10.60, -25.40, 14.81, -27.85, RISING),
    "Gate-DPO seq": Published("dpo", _SEQ, 1.17, -7.31, 8.48, -1.42),
    "Gate-DPO q10": Published("dpo", _Q10, 1.30, -7.60, 8.90, -3.86),
    "Gate-IPO seq": Published("ipo", _SEQ, 0.96, -6.46, 7.43, -1.46, PER_SEQUENCE),
    "Gate-IPO q10": Published("ipo", _Q10, 1.22, -6.69, 7.91, -2.76, PER_SEQUENCE),
    "Gate-Cal-DPO seq": Published("cal_dpo", _SEQ, 1.51, -5.64, 7.15, -1.04),
    "Gate-Cal-DPO q10": Published("cal_dpo", _Q10, 1.61, -5.61, 7.22, -2.06),
    "Gate-DPO-Shift seq": Published("dpo_shift", _SEQ, 1.23, -7.25, 8.47, -1.65, RISING),
    "Gate-DPO-Shift q10": Published("dpo_shift", _Q10, 1.58, -7.29, 8.87, -3.37, RISING),
}
"""Method → its row, in the order of the paper; the gates beside DPO-Shift are of the repository alone."""

OTHER_FORMS: dict[str, Published] = {
    "IPO, per token": Published("ipo", hyper={"average": True}),
    "DPO-Shift, fixed": Published("dpo_shift", hyper={"lambda": 0.5}),
}
"""The other forms of the two methods that have two: a target per token; λ = 0.5 throughout."""
TRAINED: dict[str, Published] = {**PUBLISHED, **OTHER_FORMS}
"""Every method that the study trains."""

COLUMNS: dict[str, str] = {
    "delta_chosen": "Δ chosen",
    "delta_rejected": "Δ rejected",
    "margin": "margin",
    "delta_others": "Δ others",
    "delta_argmax": "Δ argmax",
}
"""Run-level figure → its title; Δ argmax was not published."""
