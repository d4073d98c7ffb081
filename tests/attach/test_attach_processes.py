"""A ``DPOTrainer`` in two processes: one trace, exact rows from both, the same training bitwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="needs trl")

from dyn_probe import load_trace

TESTS = Path(__file__).parents[1] / "support"


def launched(folder: Path, *options: str) -> str:
    """Standard error of two processes that train without the recorder, then with it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(TESTS / "attach_processes.py"), str(folder), *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("gradient_accumulation_steps=2", "gradient_checkpointing=True")])
def test_two_processes_write_one_trace(tmp_path, options):
    said = launched(tmp_path, *options)
    found, expected = (torch.load(tmp_path / f"{how}.pt", weights_only=False) for how in ("recorded", "plain"))
    assert said.count("recorded. Next: dyn-probe report") == 1
    assert all(torch.equal(found["weights"][name], value) for name, value in expected["weights"].items())
    trace = load_trace(tmp_path / "run")
    assert trace.closed and set(trace.pairs["rank"]) == {0, 1} and trace.manifest["processes"]["count"] == 2
    for entry in found["logged"]:
        rows = trace.pairs[trace.pairs["step"] == entry["step"] - 1]
        assert np.isclose(rows["logp_chosen"].mean(), entry["logps/chosen"], rtol=1e-4)
        margin = (
            rows["logp_chosen"] - rows["ref_logp_chosen"] - rows["logp_rejected"] + rows["ref_logp_rejected"]
        ).mean()
        assert np.isclose(0.2 * margin, entry["rewards/margins"], rtol=1e-3, atol=1e-4)
        assert np.isclose(rows["loss"].mean(), entry["loss"], rtol=1e-4)
    assert "by the recorded rows" not in said and "recheck" not in trace.manifest
    assert ((trace.pairs["pull_chosen"] > 0.05) & (trace.pairs["pull_chosen"] < 0.15)).all()
    assert (trace.pushes["rounding"].abs() < 1e-3).all() and len(trace.pushes)
    assert trace.pairs["batch_delta_chosen"].notna().all() and trace.pairs["realised_delta_chosen"].notna().all()
