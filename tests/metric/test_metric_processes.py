"""Two real processes (gloo on the CPU): the step is read from averaged gradients (DDP) and from shards (FSDP2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from two_processes import together

NAMES = [
    "AdamW",
    "AdamW fused=True",
    "Adam foreach=True",
    "NAdam",
    "SGD momentum=0.9 nesterov=True foreach=True",
    "SGD without decay, nesterov, foreach",
    "RMSprop centered=True momentum=0.8 foreach=True",
    "Adagrad lr_decay=0.3",
    "Adafactor",
    "transformers relative_step=True scale_parameter=True",
]
WHOLE = NAMES[-2:]
"""Neither Adafactor can step the shards of FSDP2 (torch 2.13, transformers 5.23)."""

RUNS = [(name, "ddp") for name in NAMES] + [(name, "fsdp2") for name in NAMES if name not in WHOLE]
ENTRIES = 11 * 6 + 6 * 5 + 5 + 5 * 3 + 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found, from one launch."""
    runs = tmp_path_factory.mktemp("metric") / "runs.json"
    runs.write_text(json.dumps(RUNS))
    done = together(str(Path(__file__).parents[1] / "support" / "metric_processes.py"), str(runs))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(runs.with_suffix(".found").read_text())


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_the_step_is_the_change_of_the_weights_where_they_lie(
    found: list[dict[str, Any]], name: str, kind: str
) -> None:
    here = [process[f"{name} {kind}"] for process in found]
    assert all(process["steps"] == 3 * 5 and process["error"] < 4 for process in here)
    assert all(process["ahead"] == (0 if name.startswith("SGD") else 2 * 5) for process in here)
    assert sum(process["entries"] for process in here) == 3 * ENTRIES * (2 if kind == "ddp" else 1)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_all_processes_read_the_same_factor(found: list[dict[str, Any]], kind: str) -> None:
    first, second = (process[f"AdamW {kind}"]["factors"] for process in found)
    assert first == pytest.approx(second, rel=1e-12)
    assert all(0 < factor < 0.9 for factor in first)
