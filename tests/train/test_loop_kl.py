"""KL to the start of training, over held-out and probe responses: against a loop over positions, however the start is
known, and through a resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import BARE, tiny, uneven

from dyn_probe.data.built_in import built_in_model, built_in_tokenizer
from dyn_probe.mass import start_kl
from dyn_probe.report.side_by_side.kl_price import margin_points
from dyn_probe.trace.reader import load_trace
from dyn_probe.train import held_out, loop

OPTIONS: dict[str, Any] = BARE | dict(eval_fraction=0.25, eval_every=1, mass_every=1, lr=1e-2, steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that is not the built-in one, in a folder."""
    place = tmp_path_factory.mktemp("model")
    built_in_model(1, width=32, layers=1, heads=2).save_pretrained(place)
    built_in_tokenizer().save_pretrained(place)
    return str(place)


def trained(out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Any, Any, Any]:
    """The run, its trace, and the policy as it was when preference training began."""
    kept: dict[str, Any] = {}
    real = loop.train

    def train(run: Any) -> None:
        kept.update(run=run, start=copy.deepcopy(run.setup.model))
        real(run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", train)
        trace = load_trace(loop.record(tiny(out, data=uneven(out.parent), **OPTIONS | options), progress=False))
    return kept["run"], trace, kept["start"]


def slow_kl(policy: Any, start: Any, ids: Any, first: int) -> list[float]:
    """KL(π‖q) of the next token at each position of a response, a sum over the vocabulary."""
    with torch.no_grad():
        p, q = (m.eval()(torch.tensor([ids])).logits[0].double().softmax(1) for m in (policy, start))
    return [float((p[t] * (p[t].log() - q[t].log())).sum()) for t in range(first - 1, len(ids) - 1)]


def held_out_twin(run: Any, start: Any) -> float:
    """The mean over the held-out pairs of the mean over both responses."""
    rows = [(pair.chosen, pair.rejected) for pair in run.setup.held_out]
    means = [
        np.mean([kl for row in both for kl in slow_kl(run.setup.model, start, row.ids, row.start)]) for both in rows
    ]
    return float(np.mean(means))


@pytest.mark.parametrize(
    ("kept", "options"),
    [
        (1 << 26, {}),
        (0, {}),
        (0, {"precompute_reference": False}),
        (0, {"objective": "simpo", "lora_rank": 2}),
    ],
    ids=["kept logits", "small copy", "live reference", "shared but the adapters"],
)
def test_the_kl_is_that_of_a_loop_over_positions(
    kept: int, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_kl, "KEPT_BYTES", kept)
    monkeypatch.setattr(held_out, "KL_NUMBERS", 1 if kept else 1 << 12)  # a position at a time, and several
    run, trace, start = trained(tmp_path / "run", monkeypatch, **options)
    assert bool(run.start_policy.kept) is bool(kept)
    evaluated = trace.steps.eval_kl_ref.tolist()
    assert evaluated[0] == pytest.approx(0, abs=1e-9) and evaluated[1] > 1e-5
    end = trace.manifest["held_out"]["eval_kl_ref"]
    assert end == pytest.approx(held_out_twin(run, start), rel=1e-5)
    assert margin_points(trace)[:, 0].tolist() == [*evaluated, end]
    rows = trace.mass[trace.mass.step == 2]
    wanted = {
        (one.prompt_id, one.kind): np.mean(slow_kl(run.setup.model, start, one.ids, one.start))
        for one in run.probes.responses
    }
    for row in rows.itertuples():
        assert row.kl_ref == pytest.approx(wanted[row.prompt_id, row.kind], rel=1e-5)
    assert trace.mass[trace.mass.step == 0].kl_ref.eq(0).all() and trace.mass.kl_ref_sampled.isna().all()


def test_adapters_alone_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, _ = trained(tmp_path / "run", monkeypatch, lora_rank=2)
    known = dict(run.start_policy.model.named_parameters())
    for name, parameter in run.setup.model.named_parameters():
        assert (parameter is known[name]) is not parameter.requires_grad


def test_a_start_that_is_not_at_hand_is_estimated_from_tokens_that_it_drew(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate is the formula over the tokens that were drawn, and near the exact KL with many of them."""
    monkeypatch.setattr(start_kl, "KEPT_BYTES", 0)
    run, trace, start = trained(tmp_path / "run", monkeypatch, model=folder)
    end = trace.manifest["held_out"]
    assert run.start_policy.model is None and "eval_kl_ref" not in end
    assert trace.steps.eval_kl_ref.isna().all() and trace.mass.kl_ref.isna().all()
    means = []
    for pair in run.setup.held_out:
        found = []
        for row in (pair.chosen, pair.rejected):
            ids, logps = run.start_policy.kept[start_kl.response_key(row.ids, row.start)]
            with torch.no_grad():
                p, q = (
                    m.eval()(torch.tensor([row.ids])).logits[0].double().softmax(1) for m in (run.setup.model, start)
                )
            for n, t in enumerate(range(row.start - 1, len(row.ids) - 1)):
                assert torch.allclose(q[t, ids[n].long()].log(), logps[n].double(), atol=1e-5)
                r = [float(p[t, v] / q[t, v]) for v in ids[n].tolist()]
                found.append(np.mean([x * np.log(x) - (x - 1) for x in r]))
        means.append(np.mean(found))
    assert end["eval_kl_ref_sampled"] == pytest.approx(np.mean(means), rel=1e-4)
    assert end["eval_kl_ref_sampled"] == pytest.approx(held_out_twin(run, start), rel=0.5)
    assert (trace.mass[trace.mass.step > 0].kl_ref_sampled > 0).all()


def test_tokens_are_drawn_from_the_start_and_the_estimate_is_unbiased() -> None:
    """Over all uniform numbers each token comes as often as it is probable, and the mean is the exact KL."""
    torch.manual_seed(0)
    policy, start = torch.randn(3, 12, dtype=torch.float64), torch.randn(3, 12, dtype=torch.float64)
    counts, estimates, grid = torch.zeros(3, 12), torch.zeros(3, dtype=torch.float64), 4000
    for u in (torch.arange(grid) + 0.5) / grid:
        ids, logps = start_kl.drawn_tokens(start, u.expand(3))
        counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=torch.float32))
        estimates += start_kl.sampled_kl(policy, ids, logps) / grid
    shares = counts.double() / counts.sum(1, keepdim=True)
    assert torch.allclose(shares, start.softmax(1), atol=1e-3)
    p, q = policy.softmax(1), start.softmax(1)
    assert torch.allclose(estimates, (p * (p / q).log()).sum(1), rtol=5e-3)


@pytest.mark.parametrize("way", ["kept", "model", "tokens"])
def test_a_resumed_run_has_the_kl_of_an_uninterrupted_one(
    way: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_kl, "KEPT_BYTES", 1 << 26 if way == "kept" else 0)
    options = OPTIONS | dict(data=uneven(tmp_path), checkpoint_every=1, model=folder if way == "tokens" else "built-in")
    whole = load_trace(loop.record(tiny(tmp_path / "whole", **options), progress=False))

    def killed(run: Any, step: int) -> Any:
        if step == 1:
            raise KeyboardInterrupt
        return real(run, step)

    real = loop.train_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_step", killed)
        loop.record(tiny(tmp_path / "cut", **options), progress=False)
    cut = load_trace(loop.record(tiny(tmp_path / "cut", **options, resume=True), progress=False))
    column = "kl_ref_sampled" if way == "tokens" else "kl_ref"
    assert cut.manifest["held_out"] == whole.manifest["held_out"] and f"eval_{column}" in whole.manifest["held_out"]
    assert cut.mass[column].tolist() == whole.mass[column].tolist() and whole.mass[column].max() > 0
