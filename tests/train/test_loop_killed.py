"""A recording that is killed outright: what it left can be read, reported and gone on with."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import pandas as pd
import pytest
from tiny_runs import TINY, run, tiny

from dyn_probe import load_trace
from dyn_probe.errors import BadInput
from dyn_probe.report.build import build_report
from dyn_probe.train import loop
from dyn_probe.train.options.config_file import make_config

LONG: dict[str, Any] = {"steps": 6, "checkpoint_every": 2, "max_pairs": 24}
KILLED_AT = """
import json, os, signal, sys
from dyn_probe.train import loop
from dyn_probe.train.options.config import RunConfig
options, real = json.loads(sys.argv[1]), loop.train_step

def train_step(run, step):
    if step == 5:
        run.probe.flush()
        run.writer.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return real(run, step)

loop.train_step = train_step
loop.record(RunConfig(**options), progress=False)
"""


@pytest.fixture(
    scope="module", params=["dpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("kto", "dpo+token-mask"))]
)
def method(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of a method: table reference, live reference, read-out of its own."""
    objective, _, shaping = request.param.partition("+")
    return LONG | {"objective": objective, "shaping": [shaping] if shaping else []}


def killed(out: Path, **options: Any) -> Path:
    """The folder of a run whose process killed itself at step 5 of 6."""
    arguments = json.dumps({**TINY, **options, "out": str(out)})
    assert forked.run("-c", KILLED_AT, arguments).returncode == -signal.SIGKILL
    return out


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    keys = [column for column in ("step", "pair_id", "depth") if column in frame]
    return frame.drop(columns=["step_seconds", "pushes_seconds"], errors="ignore").sort_values(keys, ignore_index=True)


@pytest.mark.usefixtures("unrendered")
def test_a_killed_run_reads_reports_and_resumes_to_the_uninterrupted_one(method: dict[str, Any], tmp_path: Path):
    whole, folder = run(tmp_path / "whole", **method), killed(tmp_path / "run", **method)
    trace = load_trace(folder)
    assert not trace.closed and trace.manifest["status"] == "recording" and set(trace.pairs["step"]) == {0, 1, 2, 3, 4}
    said = build_report([folder]).read_text()
    assert "did not close" in said or "not closed" in said
    loop.record(make_config(None, {"out": str(folder), "resume": True}), progress=False)
    resumed = load_trace(folder)
    assert resumed.closed
    for table in ("pairs", "steps", "layers", "examples"):
        pd.testing.assert_frame_equal(
            comparable(getattr(resumed, table)), comparable(getattr(whole, table)), check_exact=True
        )


@pytest.mark.parametrize(
    ("change", "said"), [({"objective": "ipo"}, "objective was 'dpo'"), ({"max_pairs": 13}, "max-pairs"), ({}, "")]
)
def test_a_resumed_run_keeps_its_options(change: dict[str, Any], said: str, tmp_path: Path):
    config = tiny(tmp_path / "run", **LONG)
    loop.record(config, progress=False)
    again = replace(config, resume=True, **change)
    if said:
        with pytest.raises(BadInput, match=said):
            loop.record(again, progress=False)
    else:
        loop.record(again, progress=False)
