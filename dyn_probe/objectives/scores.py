"""What an objective compares of a response: its score (nats), the same rule for chosen and rejected.

A pair is ordered right where chosen has the larger score; ``margin`` and ``accuracy`` of the trace are those of
scores. A score is the policy's part of what the loss compares. Target margins (γ of simpo, α(n_w − n_l) of rdpo,
1/(2β) of ipo), likelihood terms and factors of shapings are not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dyn_probe.errors import BadInput
from dyn_probe.objectives.formulas import log_odds

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Score:
    """One score.

    Args:
        rule: ``(logps, lengths, reference) → scores``, each ``[rows]``; ``reference`` None where there is none.
        formula: of chosen and of rejected, in the letters of docs/notation.md.
        unit: ``nats/sequence`` or ``nats/token``.
    """

    rule: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    formula: str
    unit: str
    meaning: str

    def of(self, logps: Tensor, lengths: Tensor, reference: Tensor | None = None) -> Tensor:
        """``[rows]`` scores, detached.

        Args:
            logps: log-probabilities, summed over response tokens (nats).
            lengths: response lengths in tokens.
            reference: log-probabilities under the reference policy.
        """
        return self.rule(logps.detach(), lengths.to(logps), reference)

    @property
    def as_manifest(self) -> dict[str, str]:
        """What ``run.json`` says of it."""
        return {"formula": self.formula, "unit": self.unit, "meaning": self.meaning}


def _ratio(logps: Tensor, reference: Tensor | None) -> Tensor:
    if reference is None:
        raise BadInput("this objective's score is a log-ratio and needs reference log-probabilities; got none")
    return logps - reference.detach().to(logps)


LOG_RATIO = Score(
    lambda logps, lengths, reference: _ratio(logps, reference),
    "h_w, h_l", "nats/sequence", "log-ratio to the reference",
)  # fmt: skip
MEAN_LOG_RATIO = Score(
    lambda logps, lengths, reference: _ratio(logps, reference) / lengths,
    "h_w/n_w, h_l/n_l", "nats/token", "mean log-ratio to the reference per token",
)  # fmt: skip
LOG_PROB = Score(
    lambda logps, lengths, reference: logps,
    "a, b", "nats/sequence", "log-probability",
)  # fmt: skip
MEAN_LOG_PROB = Score(
    lambda logps, lengths, reference: logps / lengths,
    "ā, b̄", "nats/token", "mean log-probability per token",
)  # fmt: skip
LOG_ODDS = Score(
    lambda logps, lengths, reference: log_odds(logps / lengths),
    "log-odds(e^ā), log-odds(e^b̄)", "nats", "log-odds of the geometric-mean token probability",
)  # fmt: skip
