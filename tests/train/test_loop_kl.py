"""KL to the reference over the held-out responses: against a loop over positions, at the start and through a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import tiny, uneven

from dyn_probe.report.figures.margin_for_kl import points
from dyn_probe.trace.reader import load_trace
from dyn_probe.train import held_out, loop


@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_the_kl_is_that_of_a_loop_over_positions(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A position at a time, and all at once."""
    monkeypatch.setattr(held_out, "KL_NUMBERS", at_once)
    kept: dict[str, Any] = {}
    real = loop.train

    def train(run: Any) -> None:
        real(run)
        kept["run"] = run

    monkeypatch.setattr(loop, "train", train)
    options = dict(data=uneven(tmp_path), eval_fraction=0.25, eval_every=1, lr=1e-2, steps=2)
    trace = load_trace(loop.record(tiny(tmp_path / "run", **options), progress=False))
    run = kept["run"]
    assert run.reference.model is None and run.start_model is not None
    means = []
    for pair in run.setup.held_out:
        found = []
        for row in (pair.chosen, pair.rejected):
            ids = torch.tensor([row.ids])
            with torch.no_grad():
                p, q = (m.eval()(ids).logits[0].double().softmax(1) for m in (run.setup.model, run.start_model))
            for t in range(row.start - 1, len(row.ids) - 1):
                found.append(sum(float(a * (a.log() - b.log())) for a, b in zip(p[t], q[t], strict=True)))
        means.append(np.mean(found))
    evaluated = trace.steps.eval_kl_ref.tolist()
    assert evaluated[0] == pytest.approx(0, abs=1e-9) and evaluated[1] > 1e-4
    assert trace.manifest["held_out"]["eval_kl_ref"] == pytest.approx(np.mean(means), rel=1e-5)
    drawn = points(trace)
    assert drawn[:, 0].tolist() == [*evaluated, trace.manifest["held_out"]["eval_kl_ref"]]
