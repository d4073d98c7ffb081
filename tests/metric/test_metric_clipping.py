"""κ: one factor for clipping and unscaling, read from the same entries twice, or a reason why there is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from metric_runs import loss_at, make_parameters
from torch import nn

from dyn_probe.metric import Factor, StepReader, common_factor, gradient_slice


def factor_of(change: Callable[[list[nn.Parameter], torch.optim.Optimizer], object], dtype=torch.float32) -> Factor:
    """κ as a step sees it when ``change`` is made between the backward and the optimizer."""
    parameters = make_parameters(dtype)
    values = [p for p in parameters.values() if p.requires_grad]
    optimizer, found = torch.optim.AdamW(values), []
    loss_at(parameters, 0).backward()
    with StepReader(optimizer, ends=lambda reader: found.append(reader.factor())) as reader:
        reader.backward_ended()
        change(values, optimizer)
        optimizer.step()
    return found[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_clipping_by_the_norm_is_one_factor(dtype: torch.dtype) -> None:
    norms: list[float] = []
    found = factor_of(lambda values, _: norms.append(float(nn.utils.clip_grad_norm_(values, 0.5))), dtype)
    assert found.reason == ""
    assert found.value == pytest.approx(0.5 / norms[0], rel=4 * torch.finfo(dtype).eps + 1e-5)


def test_a_gradient_that_is_left_alone_has_the_factor_one() -> None:
    assert factor_of(lambda values, _: nn.utils.clip_grad_norm_(values, 1e9)) == Factor(1.0, 0.0)


def test_unscaling_and_clipping_are_one_factor() -> None:
    norms: list[float] = []

    def change(values: list[nn.Parameter], _: torch.optim.Optimizer) -> None:
        torch._foreach_div_([p.grad for p in values if p.grad is not None], 1024.0)
        norms.append(float(nn.utils.clip_grad_norm_(values, 0.001)))

    assert factor_of(change).value == pytest.approx(0.001 / (norms[0] + 1e-6) / 1024, rel=1e-5)


def test_a_fused_optimizer_unscales_within_its_step() -> None:
    weights = nn.Parameter(torch.arange(1.0, 5.0))
    optimizer, found = torch.optim.AdamW([weights], fused=True), []
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaler.scale((weights**2).sum()).backward()
    with StepReader(optimizer, ends=lambda reader: found.append(reader.factor())) as reader:
        reader.backward_ended()
        scaler.step(optimizer)
    assert found[0].value == pytest.approx(1 / 256)


@pytest.mark.parametrize(
    "change",
    [
        lambda values, _: nn.utils.clip_grad_value_(values, 0.01),
        lambda values, _: [nn.utils.clip_grad_norm_([value], 0.1) for value in values if value.grad is not None],
        lambda values, _: values[1].grad.mul_(0.9),
        lambda values, _: torch._foreach_neg_([value.grad for value in values if value.grad is not None]),
    ],
    ids=["by value", "each parameter alone", "one parameter", "sign"],
)
def test_more_than_one_factor_is_no_factor(change: Callable[..., object]) -> None:
    found = factor_of(change)
    assert found.value is None and "more than one factor" in found.reason


def test_a_gradient_of_zeros_says_nothing() -> None:
    found = factor_of(lambda values, optimizer: None)
    assert found.value == 1.0
    zeros = [torch.zeros(3)]
    assert common_factor(zeros, zeros) == Factor(
        None, pytest.approx(float("nan"), nan_ok=True), "all compared entries of the gradient are 0"
    )


def test_zeros_beside_other_entries_do_no_harm() -> None:
    ended = [torch.tensor([0.0, 2.0, 0.0]), torch.tensor([1e-30, -3.0])]
    assert common_factor(ended, [part / 4 for part in ended]).value == pytest.approx(0.25)


def test_an_entry_that_grew_from_zero_is_seen() -> None:
    assert common_factor([torch.tensor([0.0, 2.0])], [torch.tensor([0.1, 2.0])]).value is None


@pytest.mark.parametrize(
    ("ended", "begun", "words"),
    [
        ([torch.ones(2)], [torch.tensor([1.0, torch.inf])], "not finite"),
        ([torch.ones(2)], [torch.empty(0)], "appeared or vanished"),
        ([], [], "no parameter has a gradient"),
    ],
)
def test_what_cannot_be_read_has_a_reason(ended: list[torch.Tensor], begun: list[torch.Tensor], words: str) -> None:
    found = common_factor(ended, begun)
    assert found.value is None and words in found.reason


def test_without_the_note_there_is_no_factor() -> None:
    weights = nn.Parameter(torch.ones(3))
    weights.grad, found = torch.ones(3), []
    optimizer = torch.optim.AdamW([weights])
    with StepReader(optimizer, ends=lambda reader: found.append(reader.factor())) as reader:
        reader.backward_ended()
        optimizer.step()
        optimizer.step()
    assert [factor.value for factor in found] == [1.0, None] and "not noted" in found[1].reason


def test_the_note_of_a_step_that_is_not_wanted_does_not_reach_the_next() -> None:
    weights, wanted, found = nn.Parameter(torch.ones(3)), iter([False, True]), []
    optimizer = torch.optim.AdamW([weights])
    with StepReader(
        optimizer, ends=lambda reader: found.append(reader.factor()), wanted=lambda: next(wanted)
    ) as reader:
        weights.grad = torch.ones(3)
        reader.backward_ended()
        optimizer.step()
        weights.grad = torch.full((3,), 2.0)
        optimizer.step()
    assert [factor.value for factor in found] == [None]


def test_the_slice_is_small_and_spread() -> None:
    weights = nn.Parameter(torch.zeros(100, 30))
    assert len(gradient_slice([weights])[0]) == 0
    weights.grad = torch.arange(3000.0).reshape(100, 30)
    entries = gradient_slice([weights])[0]
    assert entries.tolist() == [375.0 * k for k in range(8)]
    weights.grad.zero_()
    assert entries[1] == 375.0, "a copy, not a view"
