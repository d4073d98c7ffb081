"""Half-precision weights: the formula's step, rounded as they are stored, is what is stored; and what storing loses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from metric_runs import SETUPS, Record, Setup, train

from dyn_probe.metric import AppliedStep, StoredAgreement, stored_agrees, unmoved_share
from dyn_probe.metric.step_facts import StepFacts
from dyn_probe.metric.storing import lost_of

BROKEN_IN_TORCH = [
    name for name, setup in SETUPS.items() if setup.make is torch.optim.SGD and setup.options.get("fused")
]
"""The fused SGD of torch 2.13 leaves most half-precision weights on a CPU where they are."""

HALF = [name for name in SETUPS if name not in BROKEN_IN_TORCH]
FLOAT16 = ["SGD", "SGD momentum=0.9 dampening=0.3", "Adagrad initial_accumulator_value=0.2", "Adafactor"]
EXACTLY = [
    "AdamW",
    "AdamW foreach=True",
    "Adam",
    "NAdam decoupled_weight_decay=True",
    "transformers lr=0.02 relative_step=False scale_parameter=False beta1=0.9",
]
"""Where the state holds what the step applied, digit for digit."""


def agreement(records: list[Record]) -> StoredAgreement:
    """Counts over all parameters and steps."""
    counts = (stored_agrees(r.before, r.after, r.step, r.gradient) for r in records)
    return sum(counts, StoredAgreement())


@pytest.mark.parametrize("name", HALF)
def test_in_bfloat16_the_rounded_step_is_what_is_stored(name: str) -> None:
    found = agreement(train(SETUPS[name], torch.bfloat16))
    assert found.wrong == 0 and found.exact + found.edge == found.entries
    assert found.exact > 0.6 * found.entries


@pytest.mark.parametrize("name", EXACTLY)
def test_where_nothing_is_lost_in_the_state_no_entry_is_even_on_an_edge(name: str) -> None:
    found = agreement(train(SETUPS[name], torch.bfloat16))
    assert found.exact == found.entries > 400


@pytest.mark.parametrize("name", FLOAT16)
def test_in_float16_too(name: str) -> None:
    found = agreement(train(SETUPS[name], torch.float16))
    assert found.wrong == 0 and found.exact > 0.9 * found.entries


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["AdamW", "AdamW fused=True", "NAdam", "RMSprop", "Adafactor"])
def test_in_full_precision_too(name: str, dtype: torch.dtype) -> None:
    found = agreement(train(SETUPS[name], dtype))
    assert found.wrong == 0 and found.unmoved == found.lost == 0


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_at_a_rate_of_finetuning_nearly_no_entry_lies_on_an_edge(options: dict[str, bool]) -> None:
    found = agreement(train(Setup(torch.optim.AdamW, options, rate=1e-3, decays=(0.01, 0.0)), torch.bfloat16))
    assert found.wrong == 0 and found.exact > 0.99 * found.entries


@pytest.mark.parametrize("name", ["AdamW", "AdamW fused=True", "SGD momentum=0.9 dampening=0.3", "RMSprop", "NAdam"])
def test_a_wrong_step_is_found(name: str) -> None:
    records = train(SETUPS[name], torch.bfloat16)
    wrong = sum((stored_agrees(r.before, r.after, smaller(r.step), r.gradient) for r in records), StoredAgreement())
    assert wrong.wrong > 0.01 * wrong.entries


def smaller(step: AppliedStep, factor: float = 0.9) -> AppliedStep:
    """ω a tenth too small."""
    momentum = step.momentum and replace(step.momentum, weight=step.momentum.weight * factor)
    return replace(step, direct=step.direct * factor, momentum=momentum)


def test_weights_that_never_move_are_found() -> None:
    records = train(SETUPS["AdamW"], torch.bfloat16)
    stuck = sum((stored_agrees(r.before, r.before, r.step, r.gradient) for r in records), StoredAgreement())
    assert stuck.wrong > 0.5 * stuck.entries and stuck.unmoved == stuck.entries


FINETUNING = [1e-4, 1e-6, 1e-7]


@pytest.mark.parametrize("rate", FINETUNING)
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_what_float32_loses_of_a_small_step_is_no_error(rate: float, options: dict[str, bool]) -> None:
    """Weights of size 1 lie 6e-8 to 1.2e-7 apart: of a step of that size much is lost, and nothing is wrong."""
    for r in train(Setup(torch.optim.AdamW, options, rate=rate, decays=(0.1, 0.4)), torch.float32):
        share, wrong = lost_of(r.before, r.after, r.step, r.gradient)
        told = r.step.step(r.gradient.double(), r.before.double())
        stored = (r.after - r.before).double()
        assert wrong == 0
        assert share == pytest.approx(float((stored - told).norm() / told.norm()), rel=0.2, abs=1e-6)


@pytest.mark.parametrize("change", ["a tenth", "a hundredth", "no decay"])
def test_a_wrong_step_is_found_in_float32(change: str) -> None:
    """Also where the weights' type holds little of it; what storing lost is the formula's own and hides nothing."""
    records = train(Setup(torch.optim.AdamW, {}, rate=1e-6, decays=(0.1, 0.4)), torch.float32)
    factors, wrong = {"a tenth": 0.9, "a hundredth": 0.99}, 0
    for r in records:
        broken = smaller(r.step, factors[change]) if change in factors else replace(r.step, decay=0.0)
        wrong += lost_of(r.before, r.after, broken, r.gradient)[1]
    assert wrong > 0.05 * sum(r.before.numel() for r in records)


def test_slices_are_compared_like_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    records = train(Setup(torch.optim.AdamW, {}, rate=1e-6), torch.float32)
    whole = [lost_of(r.before, r.after, smaller(r.step, 0.9), r.gradient) for r in records]
    monkeypatch.setattr("dyn_probe.metric.storing.SLICE", 1)
    parts = [lost_of(r.before, r.after, smaller(r.step, 0.9), r.gradient) for r in records]
    assert [wrong for _, wrong in whole] == [wrong for _, wrong in parts] and any(wrong for _, wrong in whole)
    assert [share for share, _ in whole] == pytest.approx([share for share, _ in parts])


def test_a_residual_is_trusted_as_far_as_storing_explains_it() -> None:
    """Law 7 is missed by more than its tolerance: trusted where no parameter deviates, and up to what was lost."""
    assert StepFacts(law7_error=9e-5).trusted(1e-4) and not StepFacts(law7_error=2e-4).trusted(1e-4)
    assert StepFacts(law7_error=1e-3, lost_share=1e-3).trusted(1e-4)
    assert not StepFacts(law7_error=1.2e-3, lost_share=1e-3).trusted(1e-4)
    assert not StepFacts(law7_error=1e-3, lost_share=1e-3, deviating=1).trusted(1e-4)
    assert StepFacts(law7_error=0.5).trusted(None)


def test_what_bfloat16_loses_is_counted() -> None:
    records = train(Setup(torch.optim.AdamW, {}, rate=1e-5, decays=(0.0, 0.0)), torch.bfloat16)
    found = agreement(records)
    still = sum(int((r.before == r.after).sum()) for r in records)
    assert found.wrong == 0 and found.unmoved == still > 0.9 * found.entries
    assert found.unmoved - found.lost == 4 * 25, "five rows of the embedding have no step to lose"
    assert unmoved_share([(r.before, r.after) for r in records]) == still / found.entries


def test_stochastic_rounding_may_be_one_unit_off() -> None:
    before, step = torch.linspace(1, 2, 4001).bfloat16(), AppliedStep(1e-3)
    exact = before.float() - 1e-3
    down = torch.where(
        exact.bfloat16() > exact, torch.nextafter(exact.bfloat16(), torch.zeros_like(before)), exact.bfloat16()
    )
    gradient = torch.ones_like(before)
    assert stored_agrees(before, down, step, gradient).wrong > 1000
    assert stored_agrees(before, down, step, gradient, ulps=1).wrong == 0
    two = torch.nextafter(down, torch.zeros_like(before))
    assert stored_agrees(before, two, step, gradient, ulps=1).wrong > 1000


def test_the_order_of_rounding_is_the_optimizers() -> None:
    """A decay below half a unit is lost where it is stored alone, and kept where it is stored with the step."""
    before = torch.full((64,), 1.5, dtype=torch.bfloat16)
    gradient = torch.ones_like(before)
    step = AppliedStep(0.002, decay=0.0016)
    apart, together = 1.5, 1.4921875
    from dyn_probe.metric.applied import AT_ONCE

    assert stored_agrees(before, torch.full_like(before, apart), step, gradient).exact == 64
    assert stored_agrees(before, torch.full_like(before, together), replace(step, stores=AT_ONCE), gradient).exact == 64
    assert stored_agrees(before, torch.full_like(before, together), step, gradient).wrong == 64


def test_no_weights_have_no_share() -> None:
    assert unmoved_share([]) != unmoved_share([])
