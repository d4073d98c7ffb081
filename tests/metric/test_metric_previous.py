"""The last step's metric, and the step to come in it, from the optimizer's state before that step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from metric_runs import SETUPS, law_error, loss_at, make_parameters, train
from torch import Tensor

from dyn_probe.errors import UnsupportedUse
from dyn_probe.metric import AppliedStep, RankOne, StepReader, coming_step, previous_metric

AHEAD = [name for name in SETUPS if not name.startswith(("Adafactor", "transformers"))]
EXACTLY = [name for name in AHEAD if name.startswith("SGD")]


def dense(metric: Any, like: Tensor) -> Tensor:
    """P in the parameter's shape."""
    if metric is None:
        return torch.ones_like(like)
    return metric.dense() if isinstance(metric, RankOne) else metric


@pytest.mark.parametrize("name", SETUPS)
def test_after_a_step_its_metric_is_the_previous_one(name: str) -> None:
    records = train(SETUPS[name])
    for record in records:
        torch.testing.assert_close(
            dense(record.kept, record.before), dense(record.step.metric, record.before), rtol=1e-14, atol=0
        )
    assert all(record.earlier is None for record in records if record.number == 0)
    adaptive = not name.startswith("SGD")
    assert all((record.earlier is not None) is adaptive for record in records if record.number == 3)


def two_forms(name: str) -> list[tuple[AppliedStep, Tensor | None, AppliedStep, Tensor, Tensor]]:
    """Of the fourth step: as it came (with its past, before the state changed), as it was applied, G, θ before."""
    parameters = make_parameters(torch.float64)
    values = list(parameters.values())
    optimizer = SETUPS[name].optimizer(values[:2], values[2:])
    for number in range(3):
        optimizer.zero_grad()
        loss_at(parameters, number, SETUPS[name].always).backward()
        optimizer.step()
    optimizer.zero_grad()
    loss_at(parameters, 3).backward()
    coming, found = {}, []
    for parameter in (p for p in values if p.grad is not None):
        step, gradient = coming_step(optimizer, parameter), parameter.grad.clone()
        assert step is not None
        before = parameter.detach().clone()
        past = step.past(gradient, before)
        coming[parameter] = (step, None if past is None else past.clone(), gradient, before)

    def read(reader: StepReader) -> None:
        for parameter, applied, _ in reader.steps():
            step, past, gradient, before = coming[parameter]
            kept = applied.momentum and replace(applied.momentum, buffer=applied.momentum.buffer.clone())
            found.append((step, past, replace(applied, momentum=kept), gradient, before))

    with StepReader(optimizer, ends=read):
        optimizer.step()
    return found


@pytest.mark.parametrize("name", AHEAD)
def test_the_coming_step_differs_from_the_applied_one_by_its_metric_alone(name: str) -> None:
    forms = two_forms(name)
    assert len(forms) == 5
    for coming, past, applied, gradient, before in forms:
        assert float(coming.weight) == pytest.approx(float(applied.weight), rel=1e-6)
        assert coming.decay == applied.decay and coming.coupled == applied.coupled
        expected = applied.past(gradient, before)
        expected = torch.zeros_like(before) if expected is None else expected
        past = torch.zeros_like(before) if past is None else past
        if applied.momentum and applied.momentum.in_metric:
            past = past / dense(coming.metric, before) * dense(applied.metric, before)
        scale = expected.abs().max() + before.abs().max() * 1e-3
        assert float((past - expected).abs().max() / scale) < (1e-6 if rounded(name) else 1e-13)


def rounded(name: str) -> bool:
    """Where the optimizer computes its own weights in float32: a rate given as a tensor, and NAdam's product."""
    return name.startswith("NAdam") or isinstance(SETUPS[name].options.get("lr"), Tensor)


@pytest.mark.parametrize("name", EXACTLY)
def test_without_a_metric_the_coming_step_is_the_step(name: str) -> None:
    for coming, past, applied, gradient, before in two_forms(name):
        moved = coming.weight * (gradient + coming.coupled * before) + (0 if past is None else past)
        torch.testing.assert_close(-moved, applied.step(gradient, before), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    "name", ["AdamW", "Adagrad", "Adafactor", "transformers relative_step=True scale_parameter=True"]
)
def test_before_the_first_step_there_is_neither(name: str) -> None:
    values = list(make_parameters(torch.float64).values())
    optimizer = SETUPS[name].optimizer(values[:2], values[2:])
    assert previous_metric(optimizer, values[0]) is None and coming_step(optimizer, values[0]) is None


@pytest.mark.parametrize("name", ["Adafactor", "transformers relative_step=True scale_parameter=True"])
def test_adafactor_has_a_metric_but_no_coming_step(name: str) -> None:
    values = list(make_parameters(torch.float64).values())
    optimizer = SETUPS[name].optimizer(values[:2], values[2:])
    values[1].grad = torch.ones_like(values[1])
    optimizer.step()
    assert previous_metric(optimizer, values[1]) is not None and coming_step(optimizer, values[1]) is None


def test_a_first_step_that_was_skipped_for_overflow_leaves_the_plain_metric() -> None:
    weights = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weights], fused=True)
    weights.grad = torch.full_like(weights, torch.inf)
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), torch.tensor(8.0)
    optimizer.step()
    assert optimizer.state[weights]["step"] == 0
    assert previous_metric(optimizer, weights).tolist() == [1, 1, 1]
    assert coming_step(optimizer, weights).metric.tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", SETUPS)
def test_it_is_read_where_no_gradient_is_there(name: str) -> None:
    parameters = make_parameters(torch.float64)
    values = list(parameters.values())
    optimizer = SETUPS[name].optimizer(values[:2], values[2:])
    loss_at(parameters, 1).backward()
    optimizer.step()
    found = [previous_metric(optimizer, p) for p in values[:4]]
    optimizer.zero_grad()
    for parameter, metric in zip(values[:4], found, strict=True):
        torch.testing.assert_close(dense(previous_metric(optimizer, parameter), parameter), dense(metric, parameter))


def test_strangers_are_refused() -> None:
    weights, other = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    with pytest.raises(UnsupportedUse, match=r"no rule for torch\.optim"):
        previous_metric(torch.optim.Rprop([weights]), weights)
    with pytest.raises(UnsupportedUse, match="none of the optimizer's groups"):
        coming_step(torch.optim.AdamW([weights]), other)


def test_the_metric_of_the_step_before_is_another() -> None:
    late = [record for record in train(SETUPS["AdamW"]) if record.number == 3]
    assert min(law_error(record, replace(record.step, metric=record.earlier)) for record in late) > 1e3
