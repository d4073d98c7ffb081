"""Pushes in the last step's metric, in somebody's own trainer."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs trl")
import attach_runs as runs

from dyn_probe import load_trace

STEPS = 4
PARTS = ["own_chosen", "own_rejected", "past", "decay"]
OFF = {"gram_every": 0, "metric_every": 0, "realised_every": 0, "final_pairs": 0}


@pytest.mark.parametrize("options", [dict(), dict(gradient_accumulation_steps=2)], ids=["plain", "accumulation"])
def test_without_a_metric_they_are_the_step_s_own(tmp_path, options):
    """SGD's P is 1 in every step: what was known before it is what it did."""
    options = {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 0.1, "max_steps": STEPS, **options}
    known = runs.recorded(tmp_path / "known", probe={**OFF, "metric": "previous"}, **options)
    runs.recorded(tmp_path / "applied", probe={**OFF, "metric_every": 1}, **options)
    key = ["step", "pair_id", "side"]
    found, wanted = (load_trace(tmp_path / name / "run").pushes.set_index(key) for name in ("known", "applied"))
    assert set(found["metric"]) == {"previous"} and set(wanted["metric"]) == {"applied"}
    assert sorted(found.index) == sorted(wanted.index) and len(found) >= 2 * STEPS
    assert (wanted["past"] != 0).any()
    size = wanted[[*PARTS, "others"]].abs().sum(axis=1)
    for part in PARTS:
        assert np.max((found[part] - wanted[part].reindex(found.index)).abs() / size.reindex(found.index)) < 1e-4
    assert runs.same_weights(known, runs.plain(tmp_path, **options))
