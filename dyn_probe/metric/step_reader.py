"""Reading an optimizer's steps as it makes them: notes as a step begins, an ``AppliedStep`` per parameter after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, no_grad
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from dyn_probe.engine.shield import Shield
from dyn_probe.errors import UnsupportedUse
from dyn_probe.metric.applied import AppliedStep, Metric
from dyn_probe.metric.clip_factor import Compared, Factor, compared, gradient_slice
from dyn_probe.metric.family import Family, StepData
from dyn_probe.metric.optimizers import family_of, unwrapped


class ParameterStep(NamedTuple):
    """One parameter's step, and the gradient ``G`` that the optimizer saw: clipped, unscaled, averaged."""

    parameter: Tensor
    step: AppliedStep
    gradient: Tensor


@dataclass(frozen=True)
class _Note:
    gradient: Tensor
    own: Any


class StepReader:
    """Reads every step of an optimizer while the context is open; the optimizer is never changed.

    Args:
        optimizer: a torch optimizer, or accelerate's wrapper of one.
        begins: called when a step begins, before anything has moved (the place to copy weights).
        ends: called when a step has been made; ``steps()``, ``factor()`` and ``skipped`` speak of it within this call.
        wanted: asked when a step begins; where it says False nothing is noted, called or read.
        shield: around what runs inside the step.

    ::

        with StepReader(optimizer, ends=lambda reader: use(reader.steps())):
            ...
            optimizer.step()
    """

    def __init__(
        self,
        optimizer: Any,
        *,
        begins: Callable[[StepReader], None] | None = None,
        ends: Callable[[StepReader], None] | None = None,
        wanted: Callable[[], bool] = lambda: True,
        shield: Shield | None = None,
    ) -> None:
        self._shield = Shield() if shield is None else shield
        self.optimizer = unwrapped(optimizer)
        self.reason = family_of(self.optimizer)[1]
        """Why the steps cannot be taken apart, "" where they can; looked at again at every step."""
        self.skipped = False
        """Whether the step that is being read was left out because a scaled gradient overflowed."""
        self._begins, self._ends, self._wanted = begins, ends, wanted
        self._notes: dict[Tensor, _Note] | None = None
        self._slices: dict[str, list[Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> StepReader:
        if not hasattr(
            self.optimizer, "_optimizer_step_pre_hooks"
        ):  # a wrapper that never set itself up as an optimizer
            return self
        self._handles = [
            self.optimizer.register_step_pre_hook(self._shield.around(self._before)),
            self.optimizer.register_step_post_hook(self._shield.around(self._after)),
        ]
        return self

    @property
    def hooked(self) -> bool:
        """Whether the optimizer calls this at its steps."""
        return bool(self._handles)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._forget()

    def backward_ended(self) -> None:
        """Note a few entries of the gradients: from here on they are clipped and unscaled, which ``factor`` reads."""
        self._slices = {"ended": gradient_slice(self._parameters())}

    def factor(self) -> Factor:
        """κ between ``backward_ended`` and the step that is being read."""
        found = self.compared()
        return found.factor(found.ended.cpu(), found.begun.cpu())

    def compared(self) -> Compared:
        """What ``factor`` is read off, still on the device."""
        if set(self._slices) != {"ended", "begun"}:
            return Compared(reason="the end of the backward was not noted")
        return compared(self._slices["ended"], self._slices["begun"])

    @no_grad()
    def steps(self) -> Iterator[ParameterStep]:
        """The step of every parameter that was moved, one after the other; none where the step was skipped.

        Raises:
            UnsupportedUse: the optimizer's step cannot be taken apart (``reason``), or no step is being read.
        """
        family = family_of(self.optimizer)[0]
        if self.reason or family is None or self._notes is None:
            raise UnsupportedUse(self.reason or "no step to read: ask inside ``ends``")
        if self.skipped:
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if note := self._notes.get(parameter):
                    yield _read(family, self._data(parameter, group, note))

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wanted = self._wanted()
        self._forget(keep="ended" if wanted else "")
        if not wanted:
            return
        family, self.reason = family_of(optimizer)
        self.reason = self.reason or _unread(self._parameters(), args, kwargs)
        with no_grad():
            self._notes = {} if self.reason or family is None else self._take(family)
            scale = getattr(optimizer, "grad_scale", None)
            if "ended" in self._slices:
                begun = gradient_slice(self._parameters())
                self._slices["begun"] = begun if scale is None else [part / scale.to(part.device) for part in begun]
        if self._begins:
            self._begins(self)

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._notes is None:
            return
        overflow = getattr(optimizer, "found_inf", None)
        self.skipped = overflow is not None and bool(overflow.item())
        if self._ends:
            self._ends(self)
        self._forget()

    def _take(self, family: Family) -> dict[Tensor, _Note]:
        return {
            parameter: _Note(parameter.grad, family.note(self._data(parameter, group)))
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        }

    def _data(self, parameter: Tensor, group: dict[str, Any], note: _Note | None = None) -> StepData:
        gradient = note.gradient if note and parameter.grad is None else parameter.grad
        state = self.optimizer.state.get(parameter, {})
        return StepData(self.optimizer, parameter, group, state, gradient, note and note.own)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _forget(self, keep: str = "") -> None:
        self._notes, self.skipped = None, False
        self._slices = {name: part for name, part in self._slices.items() if name == keep}


@no_grad()
def previous_metric(optimizer: Any, parameter: Tensor) -> Metric:
    """``P`` of the last step, from the optimizer's state as it stands; None (P = 1) before the first step.

    Raises:
        UnsupportedUse: the optimizer's step cannot be taken apart.
    """
    family, data = _standing(optimizer, parameter)
    return _plain_at_first(family.metric(data), data) if family.stepped(data) else None


@no_grad()
def coming_step(optimizer: Any, parameter: Tensor) -> AppliedStep | None:
    """The step to come with the last one's metric: ω, the past and both decays as they will be.

    None before the first step, and where ω depends on the coming gradient (both Adafactors).

    Raises:
        UnsupportedUse: the optimizer's step cannot be taken apart.
    """
    family, data = _standing(optimizer, parameter)
    if family.coming is None or not family.stepped(data):
        return None
    step = family.coming(data)
    return replace(step, metric=_plain_at_first(step.metric, data))


def _plain_at_first(metric: Metric, data: StepData) -> Metric:
    """P = 1 where a first step was skipped for overflow: it leaves a state, and a count of 0 on the device."""
    step = data.state.get("step")
    if isinstance(metric, Tensor) and isinstance(step, Tensor) and data.group.get("fused"):
        return torch.where(step > 0, metric, 1.0)
    return metric


def _standing(optimizer: Any, parameter: Tensor) -> tuple[Family, StepData]:
    inner = unwrapped(optimizer)
    family, reason = family_of(inner)
    if family is None:
        raise UnsupportedUse(reason)
    for group in inner.param_groups:
        for own in group["params"]:
            if own is parameter:
                return family, StepData(inner, parameter, group, inner.state.get(parameter, {}))
    raise UnsupportedUse("the parameter is in none of the optimizer's groups")


def _read(family: Family, data: StepData) -> ParameterStep:
    return ParameterStep(data.parameter, family.read(data), family.gradient(data).detach())


def _unread(parameters: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Why this one step cannot be read although its optimizer can."""
    if any(value is not None for value in (*args[1:], *kwargs.values())):
        return "the step was called with a closure: its gradient is computed within the step"
    if any(p.grad is not None and p.grad.is_sparse for p in parameters):
        return "sparse gradients"
    return "complex parameters" if any(p.is_complex() for p in parameters) else ""
