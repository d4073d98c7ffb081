"""Pushes in the metric of the step before, out of the recorded backward itself: own parts, past and decay.

With ``P``, the momentum and the weights as they stand before the backward, what the coming step will do to a row is
known but for its own gradient's part in ``P``:

    own chosen     −ω κ c_w ⟨g_i, P g_w⟩        own rejected   −ω κ c_l ⟨g_i, P g_l⟩
    past           −⟨g_i, p⟩                    decay          −λ_d ⟨g_i, θ⟩ − ωγ ⟨g_i, Pθ⟩

The products come from the pass that forms the rows' gradients (``engine/routes/weighed.py``); κ is read off the
gradients as the optimizer begins (on a GPU it arrives with the parts, and nothing waits for it), η as the group has it
in the backward. The other parts and the total need the finished gradient and the step itself: they are left out. Before
a parameter's first step there is no metric: ``P = 1``, ``ω = η`` and no past, as for plain gradient descent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.engine.fetching import fetching
from dyn_probe.engine.routes.weighed import Weighed
from dyn_probe.engine.shield import Shield
from dyn_probe.errors import BadInput
from dyn_probe.metric.applied import AppliedStep, RankOne, Scalar, wide
from dyn_probe.metric.clip_factor import Compared
from dyn_probe.metric.family import direction, exact, learning_rate
from dyn_probe.metric.optimizers import FAMILIES, family_of, unwrapped
from dyn_probe.metric.pushes import own_parts
from dyn_probe.metric.step_reader import StepReader, coming_step

KNOWN_BEFORE = ("own_chosen", "own_rejected", "past", "decay")
"""The parts that this gives, in this order."""


@dataclass(frozen=True, eq=False)
class KnownStep:
    """A parameter before its step, as ``engine.routes.weighed.Known`` wants it.

    Args:
        step: the step to come with the last one's metric.
        weights: ``θ``.
    """

    step: AppliedStep
    weights: Tensor

    def of(self, entries: slice) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """The metric, and what past and decay are products with, for some entries of the first dimension."""
        step, found = self.step.of(entries), {}
        if step.momentum is not None:
            buffer = step.momentum.buffer
            found["momentum"] = step.times_metric(buffer) if step.momentum.in_metric else wide(buffer)
        if not _zero(step.decay):
            found["weights"] = wide(self.weights[entries])
        if not _zero(step.coupled):
            found["scaled weights"] = step.times_metric(self.weights[entries])
        return step.metric.dense() if isinstance(step.metric, RankOne) else step.metric, found

    @property
    def scalars(self) -> tuple[Scalar, Scalar, Scalar, Scalar]:
        """What multiplies the products: ``ω``, the momentum's weight, ``λ_d``, ``ωγ``."""
        momentum = 0.0 if self.step.momentum is None else self.step.momentum.weight
        return self.step.weight, momentum, self.step.decay, self.step.weight * self.step.coupled


DIRECTIONS = ("momentum", "weights", "scaled weights")


@dataclass(frozen=True, eq=False)
class KnownPushes:
    """A batch's pushes when the optimizer begins, on the device.

    Args:
        parts: ``[4, 2B]`` ``KNOWN_BEFORE`` (float64, nats), the own parts for ``κ = 1``.
        compared: what κ is read off.
    """

    parts: Tensor
    compared: Compared

    def fetching(self) -> Callable[[], tuple[Tensor, str]]:
        """Start copying to the CPU; calling what this returns waits for ``[4, 2B]`` with κ in the own parts, and for
        why those are not known (NaN then), in words."""
        arrived = fetching([self.parts, self.compared.ended, self.compared.begun])

        def found() -> tuple[Tensor, str]:
            parts, ended, begun = arrived()
            factor, own = self.compared.factor(ended, begun), parts[:2]
            if factor.value is None and not bool(own.any()):
                return parts, ""  # rows that the loss does not pull: whatever multiplies them
            own = own * (float("nan") if factor.value is None else factor.value)
            return torch.cat([own, parts[2:]]), factor.reason

        return found


@dataclass(frozen=True, eq=False)
class _Waiting:
    weighed: Weighed
    steps: Mapping[str, tuple[Scalar, Scalar, Scalar, Scalar]]
    coefficients: Tensor
    done: Callable[[KnownPushes], None]


class PreviousPushes:
    """Follows one optimizer for pushes in its last step's metric; ``close`` when the training is over.

    Raises:
        BadInput: the optimizer's coming step is not known before its gradient is.
    """

    def __init__(self, optimizer: Any, shield: Shield | None = None) -> None:
        self.optimizer = optimizer
        check_coming(optimizer)
        self._steps: dict[str, tuple[Scalar, Scalar, Scalar, Scalar]] = {}
        self._last: dict[str, KnownStep] = {}
        self._waiting: list[_Waiting] = []
        self._reader = StepReader(optimizer, begins=self._begins, wanted=lambda: bool(self._waiting), shield=shield)
        self._reader.__enter__()

    def before_backward(self, trained: Mapping[str, nn.Parameter]) -> Callable[[str], KnownStep]:
        """Asked use by use in the coming backward: what is known of a parameter."""
        steps, last = self._steps, self._last
        steps.clear()
        last.clear()

        def knows(name: str) -> KnownStep:
            if name not in last:  # a metric is a tensor of the parameter's size: the last one is kept alone
                parameter = trained[name]
                last.clear()
                step = coming_step(self.optimizer, parameter)
                last[name] = KnownStep(self._plain(parameter) if step is None else step, parameter.detach())
                steps[name] = last[name].scalars
            return last[name]

        return knows

    def expect(self, weighed: Weighed, coefficients: Tensor, done: Callable[[KnownPushes], None]) -> None:
        """A batch whose backward has run.

        Args:
            coefficients: ``c [2B]``.
            done: called when the optimizer begins.
        """
        self._last.clear()
        self._waiting.append(_Waiting(weighed, dict(self._steps), coefficients, done))
        self.backward_ended()

    def backward_ended(self) -> None:
        """A backward has run, recorded or not: whatever multiplies the gradients from here on is one factor."""
        if self._waiting:
            self._reader.backward_ended()

    def drop(self) -> None:
        """Forget batches whose step never came."""
        self._waiting = []
        self._last.clear()

    def close(self) -> None:
        """Leave the optimizer alone again."""
        self._reader.__exit__(None, None, None)
        self.drop()

    def _plain(self, parameter: Tensor) -> AppliedStep:
        """Before a first step: gradient descent with the group's rate and decay."""
        inner = unwrapped(self.optimizer)
        group = next(g for g in inner.param_groups if any(parameter is own for own in g["params"]))
        rate, decay = exact(learning_rate(group)), group.get("weight_decay", 0.0)
        sign, decoupled = direction(group), group.get("decoupled_weight_decay", False)
        if decoupled:
            return AppliedStep(sign * rate, decay=rate * decay)
        return AppliedStep(sign * rate, coupled=sign * decay)

    @torch.no_grad()
    def _begins(self, reader: StepReader) -> None:
        waiting, self._waiting = self._waiting, []
        compared = reader.compared()
        for one in waiting:
            one.done(KnownPushes(pushes_of(one.weighed, one.steps, one.coefficients), compared))


def pushes_of(
    weighed: Weighed,
    steps: Mapping[str, tuple[Scalar, Scalar, Scalar, Scalar]],
    coefficients: Tensor,
) -> Tensor:
    """``[4, 2B]`` (float64, nats) the parts ``KNOWN_BEFORE`` for ``κ = 1``, summed over the parameters.

    Args:
        steps: parameter → ``KnownStep.scalars``.
        coefficients: ``c [2B]``.
    """
    scalars = _on_device([steps[name] for name in weighed.names], coefficients.device)  # [P, 4]
    entries = (weighed.entries * scalars[:, :1, None]).sum(0)  # [B, 3]
    none = coefficients.new_zeros(1, len(coefficients), dtype=torch.float64)
    along = [weighed.along.get(direction, none) for direction in DIRECTIONS]
    past, decay, coupled = (-(products * scalars[:, k + 1, None]).sum(0) for k, products in enumerate(along))
    gram = torch.stack([entries[:, [0, 2]], entries[:, [2, 1]]], 1)  # [B, 2, 2]
    return torch.cat([own_parts(gram, coefficients), past[None], (decay + coupled)[None]])


def _on_device(rows: Sequence[tuple[Scalar, ...]], device: torch.device) -> Tensor:
    """``[rows, scalars]``: what the host has in one copy, which nobody waits for; what the device has stays there."""
    there = [(i, j) for i, row in enumerate(rows) for j, one in enumerate(row) if _is_elsewhere(one)]
    host = [[0.0 if (i, j) in there else float(one) for j, one in enumerate(row)] for i, row in enumerate(rows)]
    found = torch.tensor(host, dtype=torch.float64)
    found = found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)
    for i, j in there:
        found[i, j].copy_(rows[i][j])  # type: ignore[arg-type]
    return found


def _is_elsewhere(scalar: Scalar) -> bool:
    return isinstance(scalar, Tensor) and scalar.device.type != "cpu"


def _zero(scalar: Scalar) -> bool:
    return not isinstance(scalar, Tensor) and scalar == 0


def check_coming(optimizer: Any) -> None:
    """Refuse an optimizer whose coming step is not known before its gradient is.

    Raises:
        BadInput: it is one.
    """
    inner = unwrapped(optimizer)
    family, reason = family_of(inner)
    if family is not None and family.coming is not None:
        return
    if family is not None:
        reason = f"the weight of {family.title}'s step depends on the coming gradient"
    able = ", ".join(dict.fromkeys(one.title for one in FAMILIES.values() if one.coming is not None))
    raise BadInput(
        f"metric 'previous' needs an optimizer whose step is known but for its gradient ({able}); got "
        f"{type(inner).__name__}: {reason}; write metric='applied' (--metric applied)"
    )
