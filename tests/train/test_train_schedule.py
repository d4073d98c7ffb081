"""Learning rates: those of transformers after the warm-up, and a first step that moves."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    get_constant_schedule,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.rate_schedule import learning_rate

PEAK = 3e-4
THEIRS = {
    "constant": lambda optimizer, warmup, steps: get_constant_schedule(optimizer),
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
}


def ours(schedule: str, steps: int, warmup: int) -> list[float]:
    """The rate of every step."""
    config = RunConfig(schedule=schedule, steps=steps, warmup_steps=warmup, lr=PEAK)
    return [learning_rate(config, step) for step in range(steps)]


def theirs(schedule: str, steps: int, warmup: int) -> list[float]:
    """The rate that a transformers schedule has in every step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = THEIRS[schedule](optimizer, warmup, steps)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", THEIRS)
@pytest.mark.parametrize(("steps", "warmup"), [(6, 0), (6, 2), (60, 10), (1, 0), (5, 4)])
def test_rates_after_the_warm_up_are_those_of_transformers(schedule: str, steps: int, warmup: int) -> None:
    found, expected = ours(schedule, steps, warmup), theirs(schedule, steps, warmup)
    assert found[warmup:] == pytest.approx(expected[warmup:], rel=1e-12)
    assert found[warmup] == PEAK and found[-1] > 0


def test_linear_takes_the_share_of_the_steps_that_are_left() -> None:
    assert ours("linear", 6, 2)[2:] == pytest.approx([PEAK * share for share in (1, 0.75, 0.5, 0.25)])


@pytest.mark.parametrize("schedule", THEIRS)
def test_the_warm_up_rises_evenly_and_its_first_step_moves(schedule: str) -> None:
    assert ours(schedule, 9, 3)[:4] == pytest.approx([PEAK * share for share in (0.25, 0.5, 0.75, 1)])
