"""The recorder certifies itself: one pair again, by plain autograd, on the very graph that is being trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.engine.answer import Products
from dyn_probe.engine.coverage import gradients_aside
from dyn_probe.engine.recording import Recording
from dyn_probe.engine.survey import distributed
from dyn_probe.engine.uses import trained_parameters
from dyn_probe.errors import CertificationError

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest error of a parameter's contribution, relative to the product of the two whole-model norms. (Models computed
in float64 still run their norms and softmax in float32, as written; hence no less than 1e-6.)"""


def tolerance_for(model: nn.Module, autocast: bool) -> float:
    """The tolerance of the coarsest arithmetic among the weights (and autocast); frozen ones too, for gradients of
    adapters in float32 come through a base model in bfloat16."""
    found = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max([TOLERANCES.get(d, 5e-2) for d in found] + ([TOLERANCES[torch.bfloat16]] if autocast else []))


def plain_products(model: nn.Module, chosen: Tensor, rejected: Tensor, reentrant: bool = False) -> dict[str, Tensor]:
    """``{parameter: [‖g_w‖², ‖g_l‖², ⟨g_w, g_l⟩]}`` of two log-probabilities by plain autograd; the graph is kept.

    Args:
        reentrant: the graph holds reentrant checkpoints, which refuse ``autograd.grad``: a plain backward runs in its
            place, with the parameters' gradients put aside.
    """
    named = trained_parameters(model)
    sides = [_plain_gradients(list(named.values()), logp, reentrant) for logp in (chosen, rejected)]
    return {
        name: torch.stack([_dot(left, left), _dot(right, right), _dot(left, right)])
        for name, left, right in zip(named, *sides, strict=True)
    }


def _plain_gradients(parameters: list[nn.Parameter], logp: Tensor, reentrant: bool) -> list[Tensor | None]:
    if not reentrant:
        return list(torch.autograd.grad(logp, parameters, retain_graph=True, allow_unused=True))
    with gradients_aside(parameters):
        logp.backward(retain_graph=True)
        return [p.grad for p in parameters]


def _dot(left: Tensor | None, right: Tensor | None, step: int = 1 << 22) -> Tensor:
    """Inner product on the CPU, in float64 without a float64 copy of the whole; a missing gradient is 0."""
    if left is None or right is None:
        return torch.zeros((), dtype=torch.float64)
    left, right = left.flatten(), right.flatten()
    total = torch.zeros((), dtype=torch.float64, device=left.device)
    for i in range(0, left.numel(), step):
        total += left[i : i + step].double() @ right[i : i + step].double()
    return total.cpu()


def law_one(model: nn.Module, gram: Tensor, coefficients: Tensor) -> float:
    """``|cᵀKc − ‖∇loss‖²| / ‖∇loss‖²`` (law 1 of docs/notation.md); call it before anything touches the gradients.

    Args:
        gram: ``K [2B, 2B]``.
        coefficients: ``c [2B]`` ``∂loss/∂(row log-probability)``.
    """
    sizes = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in _gradients(model)]
    total = sum(float(size) ** 2 for size in sizes)
    predicted = float(coefficients @ gram @ coefficients)
    return abs(predicted - total) / total if total > 0 else abs(predicted)


def overflowed(model: nn.Module) -> bool:
    """Whether the gradient that the training computed itself is not finite."""
    return not all(bool(grad.isfinite().all()) for grad in _gradients(model))


def _gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in trained_parameters(model).values() if p.grad is not None]


@dataclass(frozen=True)
class Certificate:
    """The self-check's outcome: largest relative error, and the parameters above tolerance."""

    max_relative_error: float
    tolerance: float
    wrong: tuple[tuple[str, float], ...]
    parameters: int

    def as_manifest(self) -> dict[str, Any]:
        """For ``run.json``."""
        return {
            "max_relative_error": self.max_relative_error,
            "tolerance": self.tolerance,
            "pairs": 1,
            "parameters": self.parameters,
            "method": "one pair again by plain autograd, per parameter, on the graph of the first recorded step "
            "whose gradient is finite",
        }

    def require(self) -> None:
        """Raise with the list of parameters that disagree.

        Raises:
            CertificationError: at least one parameter is above tolerance.
        """
        if self.wrong:
            listed = "\n  ".join(f"{name}: relative error {error:.2e}" for name, error in self.wrong)
            raise CertificationError(
                f"the recorder and plain autograd disagree by more than {self.tolerance:.0e}, so nothing is recorded. "
                "If the loss reaches the model other than through the log-probabilities given to probe.pairs, "
                "use Probe(..., separate=True); otherwise the model uses these parameters in a way that no rule "
                f"covers. Parameters that disagree:\n  {listed}"
            )


def compare(recorded: dict[str, Tensor], plain: dict[str, Tensor], tolerance: float) -> Certificate:
    """Hold ``{parameter: [3]}`` against the plain twin; errors relative to the product of the two norms.

    A small parameter may be wrong by all of itself and not show in the sum: none may be off by more than ten tolerances
    of its own size, plus rounding of the whole.
    """
    wanted = torch.stack(list(plain.values()))
    off = torch.stack([recorded[name] for name in plain]) - wanted
    total = wanted.sum(0).clamp(min=1e-300)
    scale = _sizes(total)
    errors = (off.abs() / scale).nan_to_num(float("inf")).amax(1)
    worst = max(float(errors.max()), float((off.sum(0).abs() / scale).nan_to_num(float("inf")).max()))
    lost = (off.abs() > 10 * tolerance * _sizes(wanted) + 1e-3 * tolerance * scale).any(1)
    found = zip(plain, errors.tolist(), lost.tolist(), strict=True)
    wrong = sorted([(name, e) for name, e, own in found if e > tolerance or own], key=lambda item: -item[1])
    if not wrong and worst > tolerance:
        wrong = [("sum over all parameters", worst)]
    return Certificate(worst, tolerance, tuple(wrong), len(plain))


def _sizes(products: Tensor) -> Tensor:
    """``[…, 3]`` products of norms, by which errors of ``[…, 3]`` are measured."""
    chosen, rejected = products[..., 0], products[..., 1]
    return torch.stack([chosen, rejected, (chosen * rejected).clamp(min=0).sqrt()], -1)


class SelfCheck:
    """The check of one run's first recorded step: by plain autograd before the backward, compared after it.

    Args:
        tolerance: largest relative error; None for that of the arithmetic (``TOLERANCES``).
        done: whether nothing is to be checked.
    """

    def __init__(self, tolerance: float | None = None, done: bool = False) -> None:
        self.tolerance, self.done = tolerance, done
        self.skipped = ""
        """Why nothing was checked, "" where it was or is still to be."""
        self._plain: dict[str, Tensor] | None = None

    def prepare(self, recording: Recording) -> None:
        """Compute the first pair by plain autograd on the recorded graph, where the model allows it."""
        split = recording.capture.survey.split
        if split or (recording.reentrant and distributed()):
            why = "parameters are sharded" if split else "reentrant gradient checkpointing in several processes"
            self.done, self.skipped = True, f"{why}; run a step without it to certify"
            return
        assert recording.logps is not None
        half = len(recording.logps) // 2
        with recording.quiet():
            model = recording.capture.model
            self._plain = plain_products(model, recording.logps[0], recording.logps[half], recording.reentrant)

    def judge(self, recording: Recording, products: Products, made: bool = False) -> Certificate | None:
        """Compare what was recorded; None where nothing was prepared, or where the training's own gradient has
        overflowed (usual in the first steps under a loss scale): then the next recorded step is checked. The check is
        done unless it failed.

        Args:
            made: whether the gradient is the recorder's own, and no witness.
        """
        if self._plain is None:
            return None
        model, autocast = recording.capture.model, recording.capture.autocast
        tolerance = tolerance_for(model, autocast) if self.tolerance is None else self.tolerance
        first = products.entries[:, 0]
        if not first.isfinite().all() and not made and overflowed(model):
            self._plain = None
            return None
        found, self._plain = compare(dict(zip(products.names, first, strict=True)), self._plain, tolerance), None
        self.done = not found.wrong
        return found
