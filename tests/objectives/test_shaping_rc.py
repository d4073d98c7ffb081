"""Reward calibration: α per batch from the steps before, or per pair; against closed forms and full gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import CLOSED, numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_terms import all_terms, hypers
from reference.gradients import logp, row_gradients
from tiny_runs import run, tiny, uneven

from dyn_probe.data.built_in import built_in_model
from dyn_probe.data.collating import collate
from dyn_probe.errors import BadInput
from dyn_probe.objectives import Measured, Terms, composes_with, normalised_pulls, parse_shaping, parse_shapings, pulls
from dyn_probe.objectives.calibrate import DISTANCE, observe, remember
from dyn_probe.objectives.losses import objective
from dyn_probe.train.batches import step_order
from dyn_probe.train.checkpoints import newest_checkpoint
from dyn_probe.train.setup import prepare

PAIR, BATCH = parse_shaping("rc:per=pair"), parse_shaping("rc:ema=0.9")


def apply(chosen: Any, measured: Measured, memory: Any = None) -> Any:
    """New pulls under a chosen form of the shaping."""
    return chosen.shaping.reweight.apply(measured, chosen.options, memory or {})


def measured(seed: int, pairs: int = 5) -> Measured:
    """Positive pulls and norms over three orders of magnitude."""
    values = np.exp(np.random.default_rng(seed).normal(0, 1.5, (4, pairs)))
    return Measured(*(torch.from_numpy(row) for row in values))


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_per_pair_the_ratio_is_at_the_bands_centre_and_the_product_stays(seed: int) -> None:
    m = measured(seed)
    new = apply(PAIR, m)
    torch.testing.assert_close(new.chosen / new.rejected, m.norm_l / m.norm_w)
    torch.testing.assert_close(new.chosen * new.rejected, m.d_w * m.d_l)
    torch.testing.assert_close(new.columns["normaliser_chosen"] * m.d_w, new.chosen)
    torch.testing.assert_close(new.columns["normaliser_rejected"] * m.d_l, new.rejected)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_per_pair_it_is_pairwise_normalised_at_another_scale(seed: int) -> None:
    """C = √(d_w d_l‖g_w‖‖g_l‖) in place of √(d_w d_l)."""
    m = measured(seed)
    ours, theirs = apply(PAIR, m), normalised_pulls(*m[:4])
    scale = torch.sqrt(m.norm_w * m.norm_l)
    torch.testing.assert_close(ours.chosen, theirs.chosen * scale)
    torch.testing.assert_close(ours.rejected, theirs.rejected * scale)


@pytest.mark.parametrize("name", composes_with("rc"))
@settings(max_examples=15, deadline=None)
@given(data=st.data(), terms=all_terms(), seed=st.integers(0, 1000))
def test_per_pair_both_conditions_hold_where_both_pulls_are_positive(
    name: str, data: st.DataObject, terms: Terms, seed: int
) -> None:
    d_w, d_l = pulls(name, terms, data.draw(hypers(name)), ["rc:per=pair"])
    g_w, g_l = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, len(d_w), 6)) + 1)
    new = apply(PAIR, Measured(d_w, d_l, g_w.norm(dim=1), g_l.norm(dim=1)))
    update = new.chosen[:, None] * g_w - new.rejected[:, None] * g_l
    small = 1e-9 * (1 + new.chosen.abs() + new.rejected.abs()) * ((g_w**2).sum(1) + (g_l**2).sum(1))
    usual = (d_w > 0) & (d_l > 0)
    assert ((g_w * update).sum(1) >= -small)[usual].all() and ((g_l * update).sum(1) <= small)[usual].all()
    assert torch.equal(new.chosen[~usual], d_w[~usual]) and torch.equal(new.rejected[~usual], d_l[~usual])


def test_pulls_that_are_not_positive_and_rows_without_gradient_stay() -> None:
    m = Measured(*torch.tensor([[1.0, -1, 0, 1, 1], [2.0, 1, 1, 1, -2], [1.0, 1, 1, 0, 1], [4.0, 1, 1, 1, 1]]))
    new = apply(PAIR, m)
    assert new.chosen.tolist()[1:] == [-1, 0, 1, 1] and new.rejected.tolist()[1:] == [1, 1, 1, -2]
    assert all(torch.isfinite(values).all() for values in (*new[:2], *new.columns.values()))
    torch.testing.assert_close(new.chosen[0], torch.tensor(2 * math.sqrt(2.0)))


def test_the_average_over_steps() -> None:
    """m ← 0.9 m + 0.1 log(r*/r), begun with the first step's; α = exp(m/2) of the steps before."""
    memory: Any = {}
    average = None
    for seed in range(4):
        m = measured(seed)
        alpha = 1.0 if average is None else math.exp(average / 2)
        new = apply(BATCH, m, memory)
        torch.testing.assert_close(new.chosen, alpha * m.d_w)
        torch.testing.assert_close(new.rejected, m.d_l / alpha)
        d_w, d_l, norm_w, norm_l = (float(values.sum()) for values in m[:4])
        now = math.log(norm_l / norm_w) - math.log(d_w / d_l)
        average = now if average is None else 0.9 * average + 0.1 * now
        halves = [Measured(*(values[part] for values in m[:4])) for part in (slice(2), slice(2, None))]
        memory = remember(sum(observe(half) for half in halves), BATCH.options, memory)
        assert memory[DISTANCE] == pytest.approx(average, rel=1e-12)


def test_a_step_past_the_target_is_left_out_of_the_average() -> None:
    for sums in ([-1.0, 1, 1, 1], [1.0, 0, 1, 1], [1.0, 1, math.nan, 1], [1.0, 1, 1, math.inf]):
        assert remember(torch.tensor(sums), BATCH.options, {DISTANCE: 0.5}) == {DISTANCE: 0.5}


def test_two_ways_to_rescale_pulls_are_refused() -> None:
    with pytest.raises(BadInput, match="two shapings fill normaliser_chosen, normaliser_rejected"):
        parse_shapings(["rc", "pairwise-normalised"], objective("dpo"))


def twin(options: dict[str, Any], per: str, steps: int, out: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights and α after plain gradient steps, from full gradients of every response and closed-form pulls of cpo."""
    config = tiny(out, **options)
    setup, model = prepare(config), built_in_model(0).double()
    hyper = {"beta": 0.1, "lambda": 1.0, "mean_nll": False}
    average, alphas = None, []
    for step in range(steps):
        order = step_order(len(setup.pairs), 4, step, 0)
        batch = collate([setup.pairs[i] for i in order])
        inputs = list(zip(batch.input_ids, batch.attention_mask, batch.response_mask, strict=True))
        rows = torch.stack([logp(model, *row).detach() for row in inputs])
        terms = numbers_of(rows, batch.lengths)
        d_w, d_l = (torch.as_tensor(pull) for pull in CLOSED["cpo"](terms, hyper))
        gradients = row_gradients(model, batch.input_ids, batch.attention_mask, batch.response_mask)
        norms = torch.stack([(g**2).sum(1) for g in gradients.values()]).sum(0).sqrt()
        distance = (norms[4:] / norms[:4]).log() - (d_w / d_l).log()
        alpha = (distance / 2).exp() if per == "pair" else torch.full((4,), math.exp((average or 0.0) / 2)).double()
        whole = float((norms[4:].sum() / norms[:4].sum()).log() - (d_w.sum() / d_l.sum()).log())
        average = whole if average is None else 0.5 * average + 0.5 * whole
        alphas += alpha.tolist()
        c = torch.cat([-d_w * alpha, d_l / alpha]) / 4
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter -= 0.02 * (c @ gradients[name]).view_as(parameter)
    return model.state_dict(), alphas


def numbers_of(rows: torch.Tensor, lengths: torch.Tensor) -> Any:
    """What a closed form without a reference reads."""
    flat = torch.zeros(len(rows), 2, dtype=torch.float64)
    more = dict.fromkeys(("token_logps", "ref_token_logps", "token_mask"), flat)
    half = rows.new_zeros(len(rows) // 2)
    return numbers(Terms.from_rows(rows, lengths, rows, win_w=half, win_l=half, response_mask=flat > 1, **more))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("per", ["batch", "pair"])
def test_the_loop_is_the_slow_twin(per: str, accumulation: int, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(
        data=uneven(tmp_path), objective="cpo", shaping=(f"rc:per={per},ema=0.5",), dtype="float64", optimizer="sgd",
        steps=3, lr=0.02, batch_size=4 // accumulation, gradient_accumulation=accumulation, checkpoint_every=3,
        max_grad_norm=0.0,
    )  # fmt: skip
    trace = run(tmp_path / "run", **options)
    weights, alphas = twin(options, per, 3, tmp_path / "other")
    np.testing.assert_allclose(trace.pairs["normaliser_chosen"], alphas, rtol=1e-7)
    np.testing.assert_allclose(trace.pairs["normaliser_rejected"], 1 / np.array(alphas), rtol=1e-7)
    after, start = newest_checkpoint(tmp_path / "run")["model"], built_in_model(0).double().state_dict()
    moved = max(float((weights[name] - start[name]).abs().max()) for name in weights)
    assert max(float((weights[name] - after[name]).abs().max()) for name in weights) < 1e-7 * moved
    at_first = trace.pairs.query("step == 0")["normaliser_chosen"]
    assert (at_first == 1).all() if per == "batch" else (at_first != 1).all()
    if per == "pair":
        assert (trace.pairs["case"] == 1).all()


def test_a_first_step_is_the_plain_one(tmp_path: Path) -> None:
    options: dict[str, Any] = dict(dtype="float64", optimizer="sgd", lr=0.1, steps=1, checkpoint_every=1)
    weights = [
        newest_checkpoint(run(tmp_path / name, **options, shaping=shaping).path)["model"]
        for name, shaping in (("plain", ()), ("rc", ("rc",)))
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-9, atol=1e-12)
