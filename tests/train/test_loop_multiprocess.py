"""Two real processes (gloo on the CPU), DDP and FSDP2: every pair's numbers are those of one process alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_runs import TINY, run, uneven
from two_processes import launch, together

from dyn_probe import load_trace

KEY = ["step", "pair_id"]
PLAIN: dict[str, Any] = {**TINY, "optimizer": "sgd", "lr": 0.05, "batch_size": 4, "steps": 2, "gram_every": 1}
RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"max_pairs": 20, "eval_fraction": 0.3, "eval_every": 2, "gradient_accumulation": 2},
    "kto": {"objective": "kto"},
    "slic_hf": {"objective": "slic_hf", "hyper": {"delta": 0.1, "lambda": 0.0}},
    "lora": {"lora_rank": 2, "optimizer": "adamw", "lr": 1e-3},
    "gated": {"objective": "ipo", "shaping": ["gate-seq"], "gradient_checkpointing": True},
    "normalised": {"shaping": ["pairwise-normalised"], "gradient_accumulation": 2, "max_pairs": 24},
    "rc": {"shaping": ["rc:ema=0.5"], "objective": "cpo", "gradient_accumulation": 2, "max_pairs": 24},
    "nll": {"hyper": {"nll": 0.3}, "data": "uneven", "gradient_accumulation": 2, "max_pairs": 24},
    "mask": {"shaping": ["token-mask"]},
    "update": {
        "update": True,
        "optimizer": "adamw",
        "lr": 1e-3,
        "gradient_accumulation": 2,
        "max_pairs": 20,
        "dtype": "float64",
    },
}
LAUNCHED = [(name, kind) for name in RUNS for kind in ("ddp", "fsdp2")]
PARTS = {"objective": "kto", "optimizer": "adamw", "lr": 1e-3, "checkpoint_every": 2, "steps": 4, "max_pairs": 20}
REFUSED = [("normalised", "fsdp2"), ("rc", "fsdp2"), ("mask", "fsdp2")]


def options_of(name: str, folder: Path) -> dict[str, Any]:
    """A run's own options, with the file of uneven responses written where it wants one."""
    own = RUNS[name]
    return own | ({"data": uneven(folder, 24)} if own.get("data") == "uneven" else {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of two processes, from one launch."""
    folder = tmp_path_factory.mktemp("runs")
    wanted = [
        {**PLAIN, **options_of(n, folder), "parallel": kind, "out": str(folder / f"{n}-{kind}")} for n, kind in LAUNCHED
    ]
    for kind in ("ddp", "fsdp2"):
        parts = {**PLAIN, **PARTS, "parallel": kind, "out": str(folder / f"parts-{kind}")}
        wanted += [parts | {"stop": 3}, parts | {"resume": True}]
    wanted += [{"odd": odd, "out": str(folder / f"odd-{odd}")} for odd in ("none", "called", "stranger")]
    (folder / "runs.json").write_text(json.dumps(wanted))
    done = together(str(Path(__file__).parents[1] / "support" / "multiprocess_runs.py"), str(folder / "runs.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Name of a run → its trace by one process, trained once for both kinds."""

    @cache
    def trained(name: str) -> Any:
        place = tmp_path_factory.mktemp(name)
        return run(place / "one", **PLAIN | options_of(name, place))

    return trained


def sorted_pairs(trace: Any) -> pd.DataFrame:
    return trace.pairs.sort_values(KEY, ignore_index=True)


def worst(got: pd.DataFrame, wanted: pd.DataFrame) -> float:
    """Largest relative difference of the per-pair numbers; inner products relative to the product of the norms."""
    assert got[KEY].equals(wanted[KEY])
    scales = {"grad_inner": wanted["grad_norm_chosen"] * wanted["grad_norm_rejected"]}
    errors = []
    for name in ("logp", "pull", "grad_norm", "ref_logp"):
        for column in (f"{name}_chosen", f"{name}_rejected"):
            scales[column] = wanted[column].abs()
    for column, scale in scales.items():
        if wanted[column].notna().all():
            errors.append(float(((got[column] - wanted[column]).abs() / scale.clip(lower=1e-6)).max()))
    return max(errors)


@pytest.mark.parametrize(("name", "kind"), [case for case in LAUNCHED if case not in REFUSED])
def test_two_processes_give_the_numbers_of_one(name: str, kind: str, folder: Path, alone: Callable[[str], Any]) -> None:
    one, together = alone(name), load_trace(folder / f"{name}-{kind}")
    got, wanted = sorted_pairs(together), sorted_pairs(one)
    assert worst(got, wanted) < 1e-4  # masks learn, so float32 sums of other orders drift apart
    assert together.closed and together.manifest["processes"] == {"count": 2, "parallel": kind}
    assert together.pairs.groupby(["step", "rank"]).size().nunique() == 1 and set(together.pairs["rank"]) == {0, 1}
    for column in ("grad_norm", "grad_norm_clipped"):
        np.testing.assert_allclose(together.steps.groupby("step")[column].max(), one.steps[column], rtol=1e-4)
    if name != "mask":
        np.testing.assert_allclose(got["realised_delta_chosen"], wanted["realised_delta_chosen"], atol=2e-3)
    for change, recorded in (("batch_delta", name != "mask"), ("update_delta", name != "mask")):
        for column in (f"{change}_chosen", f"{change}_rejected"):
            assert got[column].notna().all() == wanted[column].notna().all() == recorded
            if recorded:
                limit = (1e-9 if name == "update" else 1e-5) * wanted[column].abs().max()
                np.testing.assert_allclose(got[column], wanted[column], rtol=0, atol=limit)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_processes_run_extra_backwards_together_when_one_needs_them(kind: str, folder: Path) -> None:
    """A hinge that is satisfied for the pairs of one process only."""
    needed = load_trace(folder / f"slic_hf-{kind}").pairs.groupby(["step", "rank"])["separate_backward"].any()
    assert needed.unstack().nunique(axis=1).max() == 2


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(kind: str, folder: Path, tmp_path: Path) -> None:
    together = load_trace(folder / f"parts-{kind}")
    assert together.closed and "on purpose" in (folder / f"parts-{kind}.error").read_text()
    alone = run(tmp_path / "one", **PLAIN | PARTS)
    assert worst(sorted_pairs(together), sorted_pairs(alone)) < 1e-4


@pytest.mark.parametrize(("odd", "said"), [("called", "layer.weight: used 2 times"), ("stranger", r"shape [8, 8]")])
def test_parameters_of_a_split_model_used_elsewhere_are_refused(odd: str, said: str, folder: Path) -> None:
    assert not (folder / "odd-none.error").exists()
    error = (folder / f"odd-{odd}.error").read_text()
    assert error.startswith("UnsupportedUse") and said in error


def test_a_pair_that_moved_is_seen(tmp_path: Path) -> None:
    pairs = sorted_pairs(run(tmp_path / "one", **PLAIN))
    moved = pairs.copy()
    moved.loc[0, "grad_inner"] += 2e-5 * pairs["grad_norm_chosen"][0] * pairs["grad_norm_rejected"][0]
    assert worst(pairs, pairs) == 0.0 and worst(moved, pairs) > 1e-5


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_each_process_writes_its_own_steps(kind: str, folder: Path, alone: Callable[[str], Any]) -> None:
    one, together = alone("dpo"), load_trace(folder / f"dpo-{kind}")
    assert together.steps[["step", "rank"]].values.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert (together.steps["pairs"] == 4).all()
    np.testing.assert_allclose(together.steps.groupby("step")["loss"].mean(), one.steps["loss"], rtol=1e-5)
    wanted = dict(one.manifest["held_out"])
    assert wanted["eval_kl_ref"] > 0
    assert together.manifest["held_out"] == pytest.approx(wanted, rel=1e-5)
    assert len(together.examples) == len(one.examples)


def test_certified_where_parameters_are_whole_and_said_where_not(folder: Path) -> None:
    assert load_trace(folder / "dpo-ddp").manifest["certificate"]["max_relative_error"] < 1e-5
    assert "sharded" in load_trace(folder / "dpo-fsdp2").manifest["certificate"]["skipped"]


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_what_split_parameters_cannot_do_is_refused(name: str, kind: str, folder: Path) -> None:
    said = (folder / f"{name}-{kind}.error").read_text()
    assert said.startswith("BadInput") and "--parallel ddp" in said and not (folder / f"{name}-{kind}").exists()


def test_a_grid_of_runs_in_one_launch(tmp_path: Path) -> None:
    """Runs follow each other in the same group of processes, and one process reports."""
    options = {"steps": 2, "max_pairs": 20, "pretrain_steps": 2, "sft_steps": 0, "batch_size": 4}
    (tmp_path / "grid.yaml").write_text(json.dumps(options))
    where = ["--out", str(tmp_path / "grid"), "--config", str(tmp_path / "grid.yaml")]
    done = launch("-m", "dyn_probe_cli", "grid", "--methods", "dpo", "--methods", "simpo", *where)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("2 of 2: simpo") == done.stdout.count("Report: ") == 1
    for name in ("dpo", "simpo"):
        trace = load_trace(tmp_path / "grid" / f"{name}-seed0")
        assert trace.closed and trace.manifest["processes"]["count"] == 2


PUSHES = ["own_chosen", "own_rejected", "others", "past", "decay", "total", "all_chosen", "all_rejected"]


@pytest.mark.parametrize(("name", "limit"), [("update", 1e-9), ("lora", 5e-3)])
def test_pushes_of_two_processes_are_those_of_one(
    name: str, limit: float, folder: Path, alone: Callable[[str], Any]
) -> None:
    """Each process takes the common step apart for its own pairs; law 7 holds in both. In float32 the order of sums
    shows: where a gradient is nearly 0, the metric of AdamW's first steps is as large as its rounding."""
    one, together = alone(name), load_trace(folder / f"{name}-ddp")
    keys = [*KEY, "side"]
    got, wanted = (trace.pushes.sort_values(keys, ignore_index=True) for trace in (together, one))
    assert got[keys].equals(wanted[keys]) and len(got) == 2 * len(one.pairs) and set(got["rank"]) == {0, 1}
    scale = wanted[PUSHES[:5]].abs().sum(axis=1).max()
    for column in PUSHES:
        assert wanted[column].notna().all()
        np.testing.assert_allclose(got[column], wanted[column], rtol=0, atol=limit * scale)
    assert (together.steps["law7_error"] <= (1e-10 if name == "update" else 1e-4)).all()
