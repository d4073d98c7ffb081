"""bitsandbytes' Adam with 8-bit moments: the step from the moments before it, against the change of the stored weights.

Runs where the package is installed (the extra ``bitsandbytes``); its CPU kernels are the ones tried here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import metric_runs
import pytest
import torch
from metric_runs import Setup, law_error, train

from dyn_probe.errors import UnsupportedUse
from dyn_probe.metric import AppliedStep, StepReader, StoredAgreement, coming_step, previous_metric, stored_agrees
from dyn_probe.metric.adam8bit import ADAM_8BIT
from dyn_probe.metric.family import StepData

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra bitsandbytes is not installed")
optim = bitsandbytes.optim

UNITS = 8.0
NAMES = ["AdamW8bit", "Adam8bit", "PagedAdamW8bit", "AdamW optim_bits=8", "AdamW", "Adam32bit"]


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices large enough for 8-bit moments (4096 entries), one no multiple of a block; the rest stays 32-bit."""
    shapes = {**metric_runs.SHAPES, "matrix": (80, 64), "block": (3, 37, 41)}
    monkeypatch.setattr(metric_runs, "SHAPES", shapes)


def setup(name: str) -> Setup:
    """A class of the package by name, in the two ways to ask for 8 bits."""
    return Setup(getattr(optim, name.split()[0]), {"optim_bits": 8} if " " in name else {})


@pytest.mark.parametrize("name", NAMES)
def test_the_step_is_the_change_of_the_stored_weights(name: str) -> None:
    records = train(setup(name), torch.float32)
    assert len(records) == 18
    assert max(map(law_error, records)) < UNITS


@pytest.mark.parametrize("name", NAMES[:2])
def test_training_is_bitwise_the_same(name: str) -> None:
    assert all(torch.equal(a, b) for a, b in zip(trained(name, True), trained(name, False), strict=True))


def trained(name: str, watched: bool) -> list[torch.Tensor]:
    """Weights and optimizer state after three steps."""
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(80, 64))
    optimizer = setup(name).optimizer([weights], [torch.nn.Parameter(torch.ones(2))])
    with StepReader(optimizer, ends=lambda reader: list(reader.steps()), wanted=lambda: watched):
        for _ in range(3):
            weights.grad = torch.randn(80, 64)
            optimizer.step()
    return [weights.detach(), *(v for v in optimizer.state[weights].values() if isinstance(v, torch.Tensor))]


@pytest.mark.parametrize("name", NAMES[:2])
def test_in_bfloat16_the_rounded_step_is_what_is_stored(name: str) -> None:
    counts = StoredAgreement()
    for record in train(setup(name), torch.bfloat16):
        counts += stored_agrees(record.before, record.after, record.step, record.gradient)
    assert counts.wrong == 0 and counts.exact > 0.99 * counts.entries


def test_the_moments_as_they_are_kept_after_the_step_are_not_those_that_were_applied() -> None:
    records = [r for r in train(setup("AdamW8bit"), torch.float32) if r.name == "matrix"]
    assert min(law_error(r, replace(r.step, metric=r.kept)) for r in records) > 100 * UNITS


def test_own_options_of_a_parameter_are_read() -> None:
    manager = optim.GlobalOptimManager.get_instance()
    weights = torch.nn.Parameter(torch.randn(80, 64))
    weights.grad = torch.randn(80, 64)
    manager.register_parameters([weights])
    manager.override_config(weights, key_value_dict={"lr": 0.5, "optim_bits": 32})
    try:
        optimizer, before = optim.AdamW8bit([weights], lr=0.01, weight_decay=0.0), weights.detach().clone()
        steps: list[AppliedStep] = []
        with StepReader(optimizer, ends=lambda reader: steps.extend(step for _, step, _ in reader.steps())):
            optimizer.step()
        moved = steps[0].step(weights.grad, before)
        torch.testing.assert_close(moved, weights.detach() - before, rtol=1e-5, atol=1e-6)
    finally:
        manager.pid2config.pop(id(weights))


@pytest.mark.parametrize(("name", "options"), [("LAMB8bit", {}), ("Lion8bit", {}), ("AdEMAMix8bit", {})])
def test_other_rules_of_the_package_are_refused(name: str, options: dict[str, Any]) -> None:
    weights = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(UnsupportedUse, match=r"is not Adam|no rule for"):
        previous_metric(getattr(optim, name)([weights], **options), weights)


@pytest.mark.parametrize("name", ["AdamW8bit", "Adam32bit"])
def test_the_coming_step_has_the_past_that_is_then_applied(name: str) -> None:
    weights = torch.nn.Parameter(torch.randn(80, 64))
    optimizer = setup(name).optimizer([weights], [torch.nn.Parameter(torch.ones(2))])
    assert previous_metric(optimizer, weights) is None and coming_step(optimizer, weights) is None
    weights.grad, before = torch.randn(80, 64), weights.detach().clone()
    optimizer.step()
    weights.grad, before = torch.randn(80, 64), weights.detach().clone()
    ahead = coming_step(optimizer, weights)
    old_past, old_metric = ahead.past(weights.grad, before), ahead.metric
    found: list[AppliedStep] = []
    with StepReader(optimizer, ends=lambda reader: found.extend(step for _, step, _ in reader.steps())):
        optimizer.step()
        applied = found[0]
    assert ahead.weight == pytest.approx(applied.weight)
    expected = applied.past(weights.grad, before)
    torch.testing.assert_close(old_past / old_metric * applied.metric, expected, rtol=1e-4, atol=1e-6)


def test_on_cuda_the_decay_comes_last() -> None:
    """The published kernel adds the step and then multiplies by 1 − ηλ; here a tensor only claims to be there."""
    before, gradient = torch.randn(6).double(), torch.randn(6).double()
    weights = torch.nn.Parameter(before.clone())
    optimizer = optim.AdamW32bit([weights], lr=0.1, weight_decay=0.5)
    state = {"step": 1, "state1": 0.1 * gradient, "state2": 0.001 * gradient**2}
    data = StepData(optimizer, OnCuda(weights), optimizer.param_groups[0], state, gradient)
    optimizer.param_groups[0]["params"][0] = data.parameter
    after = before - 0.1 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(ADAM_8BIT.read(data).step(gradient, before), after * 0.95 - before, rtol=0, atol=1e-12)


class OnCuda:
    """A parameter that claims to lie on a GPU."""

    def __init__(self, parameter: torch.Tensor) -> None:
        self.dtype, self.device = parameter.dtype, torch.device("cuda")
