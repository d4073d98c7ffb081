"""Changes along the gradient and the update of all processes and micro-batches, in loops of one's own.

The slow twin is plain autograd on one process: each response's gradient, the whole loss's gradient, AdamW's own step.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from engine_processes import BATCHES, MODELS, PAIRS, RATE, double, record
from torch import nn
from two_processes import together

from dyn_probe import Probe, load_trace, sequence_logps

COLUMNS = [f"{name}_delta_{side}" for name in ("batch", "update") for side in ("chosen", "rejected")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    done = together(str(Path(__file__).parents[1] / "support" / "engine_processes.py"), str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors])


def slow(model: nn.Module) -> pd.DataFrame:
    """Pair id → the four changes, by full gradients."""
    parameters = list(model.parameters())
    pulls = torch.tensor([0.0 if i == 1 else 1.0 + i for i in range(PAIRS)], dtype=torch.float64)
    rows, ids, total = [], [], torch.zeros(())
    for batch in BATCHES:
        logps = sequence_logps(model, batch)
        rows += [flat(torch.autograd.grad(logp, parameters, retain_graph=True)) for logp in logps]
        ids += batch.ids
        total = total + (-pulls * logps[:PAIRS] + 0.5 * pulls * logps[PAIRS:]).mean() / len(BATCHES)
    total.backward()
    gradient = flat([p.grad for p in parameters])
    before = flat([p.detach().clone() for p in parameters])
    torch.nn.utils.clip_grad_norm_(parameters, 0.1)
    torch.optim.AdamW(parameters, lr=RATE).step()
    moved = flat([p.detach() for p in parameters]) - before
    table = {}
    for k, pair in enumerate(ids):
        batch, i = divmod(k, PAIRS)
        sides = [rows[batch * 2 * PAIRS + i], rows[batch * 2 * PAIRS + PAIRS + i]]
        table[pair] = [-RATE * float(g @ gradient) for g in sides] + [float(g @ moved) for g in sides]
    return pd.DataFrame.from_dict(table, orient="index", columns=COLUMNS)


def worst(found: pd.DataFrame, wanted: pd.DataFrame) -> float:
    """Largest difference, relative to the largest change of its column; what is missing counts as infinite."""
    found = found.set_index("pair_id")[COLUMNS].astype(float)
    assert sorted(found.index) == sorted(wanted.index)
    return float(((found.loc[wanted.index] - wanted).abs().fillna(float("inf")) / wanted.abs().max()).max(axis=None))


@pytest.mark.parametrize("kind", ["none", "ddp", "fsdp2"])
@pytest.mark.parametrize("name", MODELS)
def test_changes_are_those_of_the_whole_step(name: str, kind: str, folder: Path, tmp_path: Path) -> None:
    with double():
        wanted = slow(MODELS[name]())
        if kind == "none":
            record(tmp_path / f"{name}-none", "none", MODELS[name]())
    trace = load_trace((tmp_path if kind == "none" else folder) / f"{name}-{kind}")
    assert worst(trace.pairs, wanted) <= 1e-9
    assert set(trace.pairs["rank"]) == ({0} if kind == "none" else {0, 1})
    assert "batch_delta" not in trace.manifest


def test_a_change_that_is_off_is_seen() -> None:
    with double():
        wanted = slow(MODELS["hand-written"]())
    found = wanted.reset_index(names="pair_id")
    assert worst(found, wanted) == 0.0
    found.loc[2, "update_delta_chosen"] *= 1 + 1e-6
    assert worst(found, wanted) > 1e-9
    found.loc[3, "batch_delta_rejected"] = None
    assert worst(found, wanted) == float("inf")


def test_what_was_not_asked_for_in_time_is_said(folder: Path, tmp_path: Path) -> None:
    with double():
        record(tmp_path / "silent", "none", MODELS["tied"](), before_update=False)
    for place in (folder, tmp_path):
        trace = load_trace(place / "silent")
        assert trace.pairs["batch_delta_chosen"].isna().all()
        assert "probe.before_update()" in trace.manifest["batch_delta"]


def test_one_batch_in_one_process_needs_no_call(tmp_path: Path) -> None:
    """The batch's own Gram gives the change; ``before_update`` leaves it as it is."""
    with double():
        model, batch = MODELS["tied"](), BATCHES[0]
        probe = Probe(model, gram_every=1)
        with probe.step(0, batch.ids, learning_rate=RATE):
            logps = sequence_logps(model, batch)
            probe.pairs(logps)
            logps.mean().backward()
    first = [row["batch_delta_chosen"] for row in probe.fresh]
    probe.before_update()
    assert [row["batch_delta_chosen"] for row in probe.fresh] == first and all(first)
