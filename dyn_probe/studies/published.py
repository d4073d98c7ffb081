"""The published Δ table of the squeezing study, and the methods behind its rows. No torch.

Numbers: the author's study of Gate-DPO (Mouiche 2026, arXiv 2605.02626): HH helpful-base, supervised training on chosen
first, then 5 epochs of preference training of Pythia-410M; changes of summed log-probabilities, in nats per response.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One method: its objective and shapings here, and its row of the published table (nats/sequence)."""

    objective: str
    shaping: tuple[str, ...]
    delta_chosen: float
    delta_rejected: float
    margin: float
    delta_others: float


_SEQ, _Q10 = ("gate-seq",), ("gate-q10",)

PUBLISHED: dict[str, Published] = {
    "DPO": Published("dpo", (), -11.90, -26.35, 14.45, -27.55),
    "IPO": Published("ipo", (), -0.95, -9.43, 8.48, -8.55),
    "Cal-DPO": Published("cal_dpo", (), 1.03, -6.74, 7.77, -3.02),
    "DPO-Shift": Published("dpo_shift", (), -10.60, -25.40, 14.81, -27.85),
    "Gate-DPO seq": Published("dpo", _SEQ, 1.17, -7.31, 8.48, -1.42),
    "Gate-DPO q10": Published("dpo", _Q10, 1.30, -7.60, 8.90, -3.86),
    "Gate-IPO seq": Published("ipo", _SEQ, 0.96, -6.46, 7.43, -1.46),
    "Gate-IPO q10": Published("ipo", _Q10, 1.22, -6.69, 7.91, -2.76),
    "Gate-Cal-DPO seq": Published("cal_dpo", _SEQ, 1.51, -5.64, 7.15, -1.04),
    "Gate-Cal-DPO q10": Published("cal_dpo", _Q10, 1.61, -5.61, 7.22, -2.06),
}
"""Method → its row, in the order of the paper."""

_UNKNOWN = (float("nan"),) * 4
UNPUBLISHED: dict[str, Published] = {
    "Gate-DPO-Shift seq": Published("dpo_shift", _SEQ, *_UNKNOWN),
    "Gate-DPO-Shift q10": Published("dpo_shift", _Q10, *_UNKNOWN),
}
"""Methods that the table has no row for, and that the claims need: the gate beside DPO-Shift."""
TRAINED: dict[str, Published] = {**PUBLISHED, **UNPUBLISHED}
"""Every method that the study trains."""

COLUMNS: dict[str, str] = {
    "delta_chosen": "Δ chosen",
    "delta_rejected": "Δ rejected",
    "margin": "margin",
    "delta_others": "Δ others",
    "delta_argmax": "Δ argmax",
}
"""Run-level figure → its title; Δ argmax was not published."""
