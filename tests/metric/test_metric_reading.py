"""The reader watches: it sees every step as it was made, says which it cannot take apart, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from metric_runs import SETUPS, STEPS, law_error, loss_at, make_parameters, train
from torch import Tensor, nn

from dyn_probe.errors import BadInput, UnsupportedUse
from dyn_probe.metric import ParameterStep, StepReader

Closure = Callable[[], Tensor]


def one(make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, **options: Any) -> torch.optim.Optimizer:
    """An optimizer of one small parameter that has a gradient."""
    weights = nn.Parameter(torch.arange(1.0, 5.0))
    weights.grad = torch.full_like(weights, 0.5)
    return make([weights], lr=0.1, **options)


def read_one(optimizer: Any, step: Callable[[], object] | None = None) -> tuple[list[ParameterStep], str, bool]:
    """Its steps, the reason why there are none, and whether the step was skipped."""
    found: list[tuple[list[ParameterStep], str, bool]] = []

    def ends(reader: StepReader) -> None:
        found.append(([] if reader.reason else list(reader.steps()), reader.reason, reader.skipped))

    with StepReader(optimizer, ends=ends):
        (step or optimizer.step)()
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("name", SETUPS)
def test_training_is_bitwise_the_same(name: str) -> None:
    assert all(torch.equal(a, b) for a, b in zip(trained(name, True), trained(name, False), strict=True))


def trained(name: str, watched: bool) -> list[Tensor]:
    """The parameters, gradients and optimizer state after a few steps."""
    parameters = make_parameters(torch.float32)
    values = list(parameters.values())
    optimizer = SETUPS[name].optimizer(values[:2], values[2:])
    reader = StepReader(optimizer, ends=lambda r: [s.step.step(s.gradient, s.parameter) for s in r.steps()])
    if watched:
        reader.__enter__()
    for number in range(STEPS):
        optimizer.zero_grad()
        loss_at(parameters, number, SETUPS[name].always).backward()
        reader.backward_ended()
        nn.utils.clip_grad_norm_(values, 1.0)
        optimizer.step()
    reader.__exit__(None, None, None)
    kept = [v for p in values for v in optimizer.state.get(p, {}).values() if isinstance(v, Tensor)]
    return [*(p.detach() for p in values), *(p.grad for p in values if p.grad is not None), *kept]


def test_the_hooks_leave_with_the_context_even_after_an_error() -> None:
    optimizer = one()
    with pytest.raises(RuntimeError, match="on purpose"), StepReader(optimizer):
        raise RuntimeError("on purpose")
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_where_nothing_is_wanted_nothing_is_called() -> None:
    calls: list[str] = []
    optimizer = one()
    with StepReader(
        optimizer, begins=lambda _: calls.append("begins"), ends=lambda _: calls.append("ends"), wanted=lambda: False
    ):
        optimizer.step()
    assert calls == []


def test_a_step_can_be_read_only_while_it_ends() -> None:
    optimizer = one()
    with StepReader(optimizer) as reader:
        optimizer.step()
        with pytest.raises(UnsupportedUse, match="ask inside"):
            list(reader.steps())


def test_what_follows_the_step_is_read_from_options_of_that_step() -> None:
    optimizer = one(weight_decay=0.0)
    optimizer.param_groups[0]["lr"] = 0.3
    steps, _, _ = read_one(optimizer)
    assert steps[0].step.weight == pytest.approx(0.3)


def test_through_the_wrapper_of_accelerate() -> None:
    Accelerator(cpu=True)
    records = train(SETUPS["AdamW"], wrap=wrapped())
    assert len(records) == 18 and max(map(law_error, records)) < 4


def wrapped() -> Callable[[Any], Any]:
    """One accelerated optimizer around each optimizer it is asked for."""
    made: dict[int, AcceleratedOptimizer] = {}
    return lambda inner: made.setdefault(id(inner), AcceleratedOptimizer(inner, device_placement=False))


class Deeper(AcceleratedOptimizer):
    """A wrapper that may do anything."""


def test_an_unknown_wrapper_is_not_looked_through_and_goes_on() -> None:
    Accelerator(cpu=True)
    wrapper = Deeper(one(), device_placement=False)
    with StepReader(wrapper, ends=lambda reader: pytest.fail("no hook can be set")) as reader:
        wrapper.step()
    assert "no rule for" in reader.reason


def test_what_is_no_optimizer_is_an_error() -> None:
    with pytest.raises(BadInput, match="wanted a torch optimizer, got Linear"):
        StepReader(nn.Linear(2, 2))


class Renamed(torch.optim.AdamW):
    """A subclass with another name and default."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, lr=lr, weight_decay=0.25)


class Doubled(torch.optim.AdamW):
    """A subclass with a step of its own."""

    def step(self, closure: Closure | None = None) -> None:  # type: ignore[override]
        super().step(closure)
        super().step(closure)


@pytest.mark.parametrize("base_first", [True, False])
def test_a_subclass_is_known_by_its_step(base_first: bool) -> None:
    if base_first:
        one()
    steps, reason, _ = read_one(one(Renamed))
    assert reason == "" and steps[0].step.decay == pytest.approx(0.025)


def test_a_subclass_with_a_step_of_its_own_is_unknown() -> None:
    assert StepReader(one(Doubled)).reason.endswith("Doubled overrides the step of AdamW")


@pytest.mark.parametrize("name", ["Rprop", "Adamax", "RAdam", "ASGD", "Adadelta"])
def test_other_optimizers_are_refused_by_name(name: str) -> None:
    optimizer = one(getattr(torch.optim, name))
    steps, reason, _ = read_one(optimizer)
    assert steps == [] and name in reason and "AdamW, Adam (torch)" in reason


def test_a_closure_is_refused() -> None:
    for optimizer in (one(), one(torch.optim.LBFGS)):
        steps, reason, _ = read_one(optimizer, lambda optimizer=optimizer: optimizer.step(lambda: torch.ones(())))
        assert steps == [] and ("closure" in reason or "LBFGS" in reason)


def test_a_scheduler_may_wrap_the_step() -> None:
    optimizer = one(weight_decay=0.0)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    steps, reason, _ = read_one(optimizer)
    assert reason == "" and steps[0].step.weight == pytest.approx(0.05)


def test_sparse_complex_and_differentiable_are_refused() -> None:
    rows = nn.Embedding(5, 2, sparse=True)
    rows(torch.tensor([1])).sum().backward()
    assert read_one(torch.optim.SGD(rows.parameters(), lr=0.1))[1] == "sparse gradients"
    number = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    number.grad = torch.ones_like(number)
    assert read_one(torch.optim.AdamW([number]))[1] == "complex parameters"
    assert "part of a graph" in StepReader(one(differentiable=True)).reason


def test_mixed_types_of_adafactor_are_refused_only_where_it_matters() -> None:
    values = [nn.Parameter(torch.ones(2, 2, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)]
    assert "split the group" in StepReader(torch.optim.Adafactor(values, foreach=True)).reason
    assert StepReader(torch.optim.Adafactor(values)).reason == ""
    assert StepReader(torch.optim.Adafactor(values, eps=(1e-6, 1e-3), foreach=True)).reason == ""


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("overflow", [False, True])
def test_a_fused_optimizer_under_a_scaler(make: Callable[..., torch.optim.Optimizer], overflow: bool) -> None:
    optimizer = one(make, fused=True)
    weights = optimizer.param_groups[0]["params"][0]
    before, plain = weights.detach().clone(), weights.grad.clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    weights.grad *= torch.inf if overflow else 1024.0
    steps, reason, skipped = read_one(optimizer, lambda: scaler.step(optimizer))
    assert reason == "" and skipped is overflow
    if overflow:
        assert steps == [] and torch.equal(weights, before)
        return
    _, step, gradient = steps[0]
    torch.testing.assert_close(gradient, plain)
    torch.testing.assert_close(step.step(gradient, before), weights.detach() - before, rtol=1e-5, atol=1e-6)


def test_a_scaler_that_leaves_a_step_out_itself_shows_no_step() -> None:
    optimizer, seen = one(), []
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    optimizer.param_groups[0]["params"][0].grad *= torch.inf
    with StepReader(optimizer, ends=seen.append):
        scaler.step(optimizer)
    assert seen == []


def test_a_gradient_that_another_hook_replaces_is_the_one_that_is_read() -> None:
    optimizer = one(torch.optim.SGD)
    weights = optimizer.param_groups[0]["params"][0]
    before, found = weights.detach().clone(), []

    def replace(*_: Any) -> None:
        weights.grad = torch.tensor([1.0, -1.0, 2.0, -2.0])

    with StepReader(optimizer, ends=lambda reader: found.extend(reader.steps())):
        handle = optimizer.register_step_pre_hook(replace)
        optimizer.step()
        handle.remove()
    torch.testing.assert_close(found[0].step.step(found[0].gradient, before), weights.detach() - before)
