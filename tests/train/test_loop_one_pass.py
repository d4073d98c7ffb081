"""The loop with --one-pass: the same training to rounding, and the same rows."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import run

from dyn_probe import BadInput


@pytest.mark.parametrize(
    "options", [{}, {"objective": "simpo"}, {"lora_rank": 2}, {"gradient_accumulation": 2}], ids=str
)
def test_the_same_training_to_rounding(options, tmp_path):
    exact = run(tmp_path / "exact", steps=4, save=True, **options)
    found = run(tmp_path / "found", steps=4, save=True, one_pass=True, **options)
    for name in ("logp_chosen", "grad_norm_chosen", "grad_norm_rejected", "grad_cosine", "update_delta_chosen"):
        values = (torch.tensor(trace.pairs[name].to_numpy()) for trace in (found, exact))
        assert torch.allclose(*values, rtol=2e-4, atol=2e-4), name


@pytest.mark.parametrize(
    "options",
    [{"shaping": ("token-mask",)}, {"shaping": ("pairwise-normalised",)}],
    ids=["a learned mask", "coefficients that come after the norms"],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(options, tmp_path):
    with pytest.raises(BadInput, match="one-pass"):
        run(tmp_path / "run", one_pass=True, **options)
    assert not (tmp_path / "run").exists()
