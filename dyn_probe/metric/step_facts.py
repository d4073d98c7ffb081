"""What is known about an optimizer's step as a whole: does it hold law 7, and what did storing the weights lose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.engine.uses import is_split, trained_parameters
from dyn_probe.metric.applied import wide
from dyn_probe.metric.pushes import Moved
from dyn_probe.metric.step_reader import ParameterStep
from dyn_probe.metric.storing import StoredAgreement, lost_of, stored_agrees

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest residual of law 7 relative to ``Σ|parts|``, by the type of the weights. Half-precision weights lose small
steps: there the stored weights are held against the formula's, rounded as they are stored. So they are in float32 where
the residual is larger: a step of 5e-6 from a weight of 0.1 is a whole number of the 7e-9 between its neighbours."""
WRONG = 1e-4
"""Share of the weights that may be stored otherwise than the formula says."""


@dataclass(frozen=True)
class StepFacts:
    """What is known about a step as a whole.

    Args:
        law7_error: largest ``|rounding| / Σ|parts|`` of its rows; None without pushes.
        law7_share: share of the weights that law 7 was checked on.
        lost_share: largest ``‖Δθ rounded − Δθ‖ / ‖Δθ‖`` of a float32 parameter; None where law 7 needed no such look.
        deviating: how many float32 parameters are not where the formula's step, rounded, puts them, if that was asked.
        unmoved_share: share of the weights that the step left as they were.
        agreement: how half-precision weights, as they are stored, compare with the formula's step.
        gradient_squared: ``‖G‖²`` of the gradient that the optimizer saw.
        other_terms: share of ``‖G‖²`` that the recorded rows do not explain; None where it was not asked for.
        factor: ``κ`` that the optimizer's gradient had over the backward's; None where it could not be read.
        seconds: wall time that taking the step apart took, the copy of the weights included.
        held: bytes that it held until the step was made: the copy, and the rows' gradients in factored form.
        reason: why there are no pushes, or no own parts; "" where nothing is missing.
    """

    law7_error: float | None = None
    law7_share: float | None = None
    lost_share: float | None = None
    deviating: int = 0
    unmoved_share: float | None = None
    agreement: StoredAgreement | None = None
    gradient_squared: float | None = None
    other_terms: float | None = None
    factor: float | None = None
    seconds: float | None = None
    held: int | None = None
    reason: str = ""

    def trusted(self, tolerance: float | None) -> bool:
        """Whether the parts and the stored weights tell the same story.

        Args:
            tolerance: what law 7 allows (``tolerance_of``); None where storing the weights loses small steps.
        """
        if self.agreement is not None and self.agreement.wrong > WRONG * self.agreement.entries:
            return False
        if tolerance is None or self.law7_error is None or self.law7_error <= tolerance:
            return True
        explained = self.lost_share is not None and self.law7_error <= tolerance + self.lost_share
        return explained and not self.deviating


class StepCounts:
    """Counts over the parameters of a step."""

    def __init__(self) -> None:
        self.weights = self.copied = self.unmoved = 0
        self.agreement: StoredAgreement | None = None
        self.gradient_squared = 0.0

    def add(self, move: Moved, copied: bool) -> None:
        """One parameter; ``copied`` where its weights before the step are known."""
        self.weights += move.after.numel()
        self.gradient_squared += float(torch.linalg.vector_norm(wide(move.gradient))) ** 2
        if not copied:
            return
        self.copied += move.after.numel()
        if move.after.dtype.itemsize < 4:
            found = stored_agrees(move.before, move.after, move.step, move.gradient)
            self.agreement = found if self.agreement is None else self.agreement + found
            self.unmoved += found.unmoved
        else:
            self.unmoved += move.after.numel() - int(torch.count_nonzero(move.before != move.after))

    def facts(self) -> dict[str, Any]:
        """The same as fields of ``StepFacts``."""
        return {
            "agreement": self.agreement,
            "gradient_squared": self.gradient_squared,
            "law7_share": self.copied / self.weights if self.weights else None,
            "unmoved_share": self.unmoved / self.copied if self.copied else None,
        }


def tolerance_of(model: nn.Module) -> float | None:
    """What law 7 allows: by the coarsest type among the trained weights; None where that is half precision."""
    found = {p.dtype for p in trained_parameters(model).values()}
    return max(TOLERANCES[d] for d in found) if found <= TOLERANCES.keys() else None


def needs_a_look(law7_error: float, model: nn.Module) -> bool:
    """Whether a residual of law 7 is one that storing float32 weights may explain. Where parameters are split over
    processes nobody looks, since all of them would have to."""
    tolerance = TOLERANCES[torch.float32]
    return law7_error > tolerance and tolerance_of(model) == tolerance and not is_split(model)


def lost_by_storing(steps: Iterable[ParameterStep], copies: Mapping[int, Tensor]) -> dict[str, Any]:
    """``lost_share`` and ``deviating`` of a step.

    Args:
        copies: ``id(parameter)`` → its values before the step, where they are known.
    """
    share, deviating = 0.0, 0
    for parameter, step, gradient in steps:
        if (before := copies.get(id(parameter))) is not None:
            lost, wrong = lost_of(before, parameter, step, gradient)
            share, deviating = max(share, lost), deviating + (wrong > max(1, WRONG * before.numel()))
    return {"lost_share": share, "deviating": deviating}
