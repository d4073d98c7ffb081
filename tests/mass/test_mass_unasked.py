"""A plain record: a few probe responses at the start and the end, and every column of the measures page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_runs import run, tiny

from dyn_probe.errors import BadInput
from dyn_probe.trace.reader import load_trace
from dyn_probe.train import loop, mass_rows
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.options.unasked import MOST_PROBED, probed_unasked
from dyn_probe.train.setup import prepare

PLAIN: dict[str, Any] = dict(steps=5, batch_size=12, max_pairs=20, eval_fraction=0.2)


def test_one_prompt_for_every_sixty_pairs_that_are_trained_on() -> None:
    plain = RunConfig()
    assert probed_unasked(plain) == MOST_PROBED == 8 and plain.with_model_defaults().mass_every == plain.steps
    assert plain.with_model_defaults().probe_size == 8 and probed_unasked(replace(plain, steps=29)) == 3
    assert probed_unasked(replace(plain, steps=1000)) == 8
    for options in (dict(mass_every=0), dict(mass_every=5), dict(probe_size=3), dict(parallel="fsdp2"), dict(steps=7)):
        found = replace(plain, **options)
        assert probed_unasked(found) == 0 and found.with_model_defaults().probe_size == found.probe_size
        assert found.with_model_defaults().mass_every == options.get("mass_every", 0)


def test_a_plain_run_fills_every_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = run(tmp_path / "run", **PLAIN)
    assert sorted(set(trace.mass["step"])) == [0, 5] and trace.mass["prompt_id"].nunique() == 1
    start, end = (trace.mass.loc[trace.mass["step"] == step, "kl_ref"] for step in (0, 5))
    assert (start == 0).all() and (end > 0).all()
    parts = [f"logp_{side}_{part}" for side in ("chosen", "rejected") for part in ("before", "at", "after")]
    columns = [*parts, "edit_distance", "shared_prefix", "pull_chosen", "pull_rejected", "realised_delta_chosen"]
    assert trace.pairs[columns].notna().all().all()
    assert np.isfinite(trace.steps["eval_kl_ref"].dropna()).any()
    assert "probe set" not in capsys.readouterr().err


def test_what_was_not_asked_for_does_not_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise BadInput("no probe response can be measured")

    monkeypatch.setattr(mass_rows, "encode_probes", none)
    setup = prepare(tiny(tmp_path / "a", **PLAIN))
    assert setup.probes is None and setup.config.mass_every == 0
    with pytest.raises(BadInput, match="no probe response"):
        prepare(tiny(tmp_path / "b", **PLAIN, mass_every=5))


def test_the_table_of_pairs_is_read_for_a_gate_alone(tmp_path: Path) -> None:
    class Unread:
        @property
        def pairs(self) -> Any:
            raise AssertionError("read without a gate")

    trained: Any = SimpleNamespace(setup=prepare(tiny(tmp_path / "a", **PLAIN)))
    assert mass_rows.gate_figures(trained, Unread()) == {}  # type: ignore[arg-type]
    trained = SimpleNamespace(setup=prepare(tiny(tmp_path / "b", **PLAIN, shaping=("gate-seq",))))
    with pytest.raises(AssertionError, match="without a gate"):
        mass_rows.gate_figures(trained, Unread())  # type: ignore[arg-type]


EMPTY = [{"prompt": "", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(20)]
TURNS = [
    {
        "prompt": [{"role": "user", "content": f"{i}?"}],
        "chosen": [{"role": role, "content": f"{i}"} for role in ("assistant", "user", "assistant")],
        "rejected": [{"role": role, "content": f"not {i}"} for role in ("assistant", "user", "assistant")],
    }
    for i in range(20)
]


@pytest.mark.parametrize("rows", [EMPTY, TURNS], ids=["empty prompts", "several turns"])
def test_data_without_probes_are_trained_on_and_resumed(tmp_path: Path, rows: list[Any]) -> None:
    """Their run says that nothing is measured, so that a resumed one looks for no probe set."""
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = PLAIN | dict(data=str(file), checkpoint_every=3)
    assert probed_unasked(tiny(tmp_path / "run", **options)) == 1
    trace = run(tmp_path / "run", **options)
    saved = trace.manifest["config"]
    assert (saved["mass_every"], saved["probe_size"]) == (0, RunConfig().probe_size)
    assert trace.mass.empty and not (trace.path / mass_rows.PROBE_FILE).exists()
    loop.record(tiny(tmp_path / "run", **options, resume=True), progress=False)
    assert load_trace(tmp_path / "run").closed
    with pytest.raises(BadInput):
        prepare(tiny(tmp_path / "asked", **options, mass_every=5))


@pytest.mark.parametrize(("before", "steps"), [({}, {0, 5}), ({"mass_every": 0}, set())])
def test_a_resumed_run_keeps_what_it_measured(tmp_path: Path, before: dict[str, Any], steps: set[int]) -> None:
    options = PLAIN | dict(checkpoint_every=3)
    run(tmp_path / "run", **options, **before)
    loop.record(tiny(tmp_path / "run", **options, resume=True), progress=False)
    assert set(load_trace(tmp_path / "run").mass["step"]) == steps
