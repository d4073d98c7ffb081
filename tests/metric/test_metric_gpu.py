"""On CUDA: every optimizer's step against the stored weights, and the forms that run there alone."""

from __future__ import annotations

import pytest
import torch
from metric_runs import SETUPS, Setup, law_error, train

from dyn_probe.metric import StoredAgreement, stored_agrees

CAPTURABLE = {
    f"{make.__name__} capturable {options}": Setup(make, {"capturable": True, **options})
    for make in (torch.optim.AdamW, torch.optim.Adam, torch.optim.NAdam, torch.optim.RMSprop)
    for options in ({}, {"foreach": True})
}
ON_CUDA = {name: setup for name, setup in SETUPS.items() if not (setup.make is torch.optim.Adagrad and "fused" in name)}
"""torch has no fused Adagrad for CUDA."""
ALL = {**ON_CUDA, **CAPTURABLE}
UNITS = 16.0
"""Kernels contract products and sums, and capturable forms compute their scalars in float32."""
FUSED_UNITS = 512.0
"""Fused and 8-bit kernels compute 1 − β₂ᵗ in float32 too, where at the first steps only eps/(1 − β₂) of it is left."""


@pytest.mark.gpu
@pytest.mark.parametrize("name", ALL)
def test_the_step_is_the_change_of_the_stored_weights(name: str) -> None:
    most = FUSED_UNITS if "fused" in name else UNITS
    assert max(map(law_error, train(ALL[name], torch.float32, device="cuda"))) < most


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["AdamW", "AdamW foreach=True", "AdamW fused=True", "SGD momentum=0.9", "Adafactor"])
def test_in_bfloat16_the_rounded_step_is_what_is_stored(name: str) -> None:
    records = train(SETUPS[name], torch.bfloat16, device="cuda")
    found = sum((stored_agrees(r.before, r.after, r.step, r.gradient) for r in records), StoredAgreement())
    assert found.wrong == 0 and found.exact > 0.9 * found.entries


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["AdamW8bit", "Adam8bit", "PagedAdamW8bit", "AdamW"])
def test_bitsandbytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import metric_runs

    optim = pytest.importorskip("bitsandbytes", reason="the extra bitsandbytes is not installed").optim
    monkeypatch.setattr(metric_runs, "SHAPES", {**metric_runs.SHAPES, "matrix": (80, 64), "block": (3, 37, 41)})
    assert max(map(law_error, train(Setup(getattr(optim, name), {}), torch.float32, device="cuda"))) < FUSED_UNITS
