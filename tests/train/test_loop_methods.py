"""Every objective and every shaping it composes with trains in the reference loop, and its rows keep the laws."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_runs import BARE, COMPOSED, TRAINED, pulls_seen, run

from dyn_probe import Probe
from dyn_probe.data.built_in import built_in_model
from dyn_probe.errors import BadInput
from dyn_probe.objectives import SHAPINGS
from dyn_probe.train.checkpoints import newest_checkpoint


def check_rows(trace, seen, normalised=False, masked=False) -> None:
    """Pulls are the objective's; predictions keep the law; the recorder is certified."""
    pairs = trace.pairs
    d_w, d_l = (torch.cat([step[side] for step in seen]).double().numpy() for side in (0, 1))
    if normalised:
        d_w, d_l = d_w * pairs["normaliser_chosen"], d_l * pairs["normaliser_rejected"]
    np.testing.assert_allclose(pairs["pull_chosen"], d_w, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(pairs["pull_rejected"], d_l, rtol=1e-5, atol=1e-9)
    certificate = trace.manifest["certificate"]
    assert certificate["max_relative_error"] < certificate["tolerance"]
    if not masked:
        gain = d_w * pairs["predicted_delta_chosen"] - d_l * pairs["predicted_delta_rejected"]
        scale = (d_w * pairs["grad_norm_chosen"]) ** 2 + (d_l * pairs["grad_norm_rejected"]) ** 2
        assert (gain >= -1e-6 * trace.steps["learning_rate"].iloc[0] * scale).all()


@pytest.mark.parametrize("objective", TRAINED)
def test_every_objective_trains(objective, tmp_path, monkeypatch):
    with pulls_seen(monkeypatch) as seen:
        trace = run(tmp_path / "run", objective=objective, steps=3)
    assert trace.closed and list(trace.steps["step"]) == [0, 1, 2] and len(trace.pairs) == 9
    assert trace.steps["loss"].notna().all() and (trace.steps["grad_norm"] > 0).all()
    assert (trace.pairs["realised_delta_chosen"] != 0).all()
    assert trace.steps["law1_error"].iloc[0] < 1e-4
    check_rows(trace, seen)


@pytest.mark.parametrize(("objective", "shaping"), COMPOSED)
def test_every_composition_trains(objective, shaping, tmp_path, monkeypatch):
    with pulls_seen(monkeypatch) as seen:
        options = dict(realised=False, gram_every=1, metric_every=0, split_momentum=False, final_pairs=0)
        trace = run(tmp_path / "run", objective=objective, shaping=(shaping,), **options)
    assert len(trace.pairs) == 6
    assert (trace.steps["law1_error"] < 1e-4).all()
    least = trace.pairs[["pull_chosen", "pull_rejected"]].abs().min(axis=1)
    undivided = least.groupby(trace.pairs["step"]).transform("min") < 1e-15  # the full Gram divides by all of a step's
    assert not trace.pairs["separate_backward"][~undivided].any()
    for column in SHAPINGS[shaping].columns:
        assert trace.pairs[column].notna().all()
    check_rows(trace, seen, "normaliser_chosen" in SHAPINGS[shaping].columns, shaping == "token-mask")


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (dict(objective="dpo"), False),
        (dict(objective="dpo:label_smoothing=0.1"), True),
        (dict(objective="slic_hf"), True),
        (dict(objective="dpo_shift", shaping=("gate-seq",)), False),
        (dict(objective="dpo", shaping=("gate-seq:alpha=1000",)), True),
        (dict(objective="dpo", shaping=("adadpo:stable=false",)), True),
    ],
)
def test_a_pull_is_asked_for_where_it_can_vanish(options, asked, tmp_path, monkeypatch):
    said, pairs = [], Probe.pairs

    def see(*args, vanishing=True, **kwargs):
        said.append(vanishing)
        pairs(*args, vanishing=vanishing, **kwargs)

    monkeypatch.setattr(Probe, "pairs", see)
    run(tmp_path / "run", steps=2, gram_every=0, metric_every=0, split_momentum=False, realised=False, **options)
    assert said == [asked] * 2


def test_wrong_pulls_are_seen(tmp_path, monkeypatch):
    with pulls_seen(monkeypatch) as seen:
        trace = run(tmp_path / "run")
    with pytest.raises(AssertionError):
        check_rows(trace, [(1.01 * d_w, d_l) for d_w, d_l in seen])
    trace.pairs["predicted_delta_chosen"] *= -1
    with pytest.raises(AssertionError):
        check_rows(trace, seen)


@pytest.mark.parametrize("objective", ["dpo", "ipo"])
def test_an_open_gate_is_no_gate(objective, tmp_path):
    """g → 1 leaves losses and parameters as they are, bit for bit."""
    plain = run(tmp_path / "plain", objective=objective, steps=3)
    gated = run(tmp_path / "gated", objective=objective, steps=3, shaping=("gate-seq:tau=0,alpha=1e8",))
    assert (gated.pairs["gate"] == 1.0).all()
    for column in ("loss", "logp_chosen", "logp_rejected", "pull_rejected"):
        assert list(plain.pairs[column]) == list(gated.pairs[column])
    shut = run(tmp_path / "shut", objective=objective, steps=3, shaping=("gate-seq:tau=0.5",))
    assert list(plain.pairs["loss"]) != list(shut.pairs["loss"])


def test_a_normalised_run_meets_both_conditions_for_every_pair(tmp_path):
    """cpo pulls chosen so much harder that plain updates lift both sides; normalised, the pulls weigh the same."""
    trace = run(tmp_path / "run", objective="cpo", shaping=("pairwise-normalised",), steps=4, lr=1e-5)
    assert (trace.pairs["case_plain"] == 1).all()
    assert (trace.pairs["predicted_delta_chosen"] > 0).all() and (trace.pairs["predicted_delta_rejected"] < 0).all()
    plain = run(tmp_path / "plain", objective="cpo", steps=4, lr=1e-5)
    assert (plain.pairs["case_plain"] == 3).any()


@pytest.mark.parametrize("objective", ["dpo", "simpo"])
def test_a_token_mask_learns(objective, tmp_path):
    options = dict(objective=objective, steps=4, lr=1e-3, warmup_steps=1, tokens_every=3, token_pairs=2)
    trace = run(tmp_path / "run", shaping=("token-mask:readout_lr=0.1",), **options)
    masks = trace.pairs.groupby("step")[["mask_chosen", "mask_spread"]].mean()
    assert masks.iloc[0].tolist() == pytest.approx([0.5, 0.0])
    assert masks.mask_spread.iloc[-1] > 0.01
    assert trace.pairs["case_plain"].isna().all() and trace.pairs["predicted_delta_chosen"].isna().all()
    assert trace.pairs["realised_delta_chosen"].notna().all()
    first, last = (trace.tokens[trace.tokens.step == step] for step in (0, 3))
    for rows, flat in ((first, True), (last, False)):
        both = rows[rows.side == "chosen_rejected"]
        found = [x for side in ("chosen", "rejected") for one in both[f"mask_tokens_{side}"] for x in one]
        assert (np.ptp(found) < 1e-9) is np.bool_(flat) and len(found) == sum(
            len(one) for name in ("tokens_rows", "tokens_columns") for one in both[name]
        )


@pytest.mark.parametrize("through", ["false", "true"])
def test_a_masked_rows_gradients_are_those_of_its_masked_log_probability(through, tmp_path):
    """One pair, no penalty: −∇ℓ = d_w g_w − d_l g_l has the norm that the trace says the update had."""
    shaping = (f"token-mask:penalty=0,slope=3,through_hidden={through}",)
    options = dict(dtype="float64", batch_size=1, max_grad_norm=0.0, steps=3, lr=1e-2, gram_every=1)
    trace = run(tmp_path / "run", shaping=shaping, **options)
    row, plain = trace.pairs, run(tmp_path / "plain", **options).pairs
    d_w, d_l, n_w, n_l = (row[c] for c in ("pull_chosen", "pull_rejected", "grad_norm_chosen", "grad_norm_rejected"))
    squared = (d_w * n_w) ** 2 + (d_l * n_l) ** 2 - 2 * d_w * d_l * row["grad_inner"]
    np.testing.assert_allclose(row["logp_chosen"][0], plain["logp_chosen"][0], rtol=1e-12)
    np.testing.assert_allclose(row["grad_norm_chosen"][0], 0.5 * plain["grad_norm_chosen"][0], rtol=1e-6)
    if through == "false":  # the read-out's own gradient is part of the update's norm from the first step on
        assert (trace.steps["law1_error"] < 1e-6).all()
        assert (np.sqrt(squared) <= trace.steps["grad_norm"] * (1 + 1e-6)).all()
        assert not row["separate_backward"].any()
    else:
        assert trace.steps["law1_error"].isna().all() and row["separate_backward"].all()
    assert trace.manifest["certificate"]["max_relative_error"] < 1e-6


@pytest.mark.parametrize(
    "options",
    [
        dict(realised=False),
        dict(shaping=("pairwise-normalised",)),
        dict(objective="slic_hf", hyper={"delta": -1000.0, "lambda": 0.0}),
        dict(gradient_accumulation=2),
    ],
    ids=str,
)
def test_the_change_along_the_update_is_recorded_wherever_it_is_asked_for(options, tmp_path):
    pairs = run(tmp_path / "run", update=True, **options).pairs
    assert pairs["update_delta_chosen"].notna().all() and pairs["update_delta_rejected"].notna().all()
    if options.get("realised", True) and "hyper" not in options:
        assert (np.sign(pairs["update_delta_chosen"]) == np.sign(pairs["realised_delta_chosen"])).mean() > 0.7


def test_options_that_contradict_each_other_are_refused(tmp_path):
    for options, said in (
        (dict(shaping=("token-mask", "pairwise-normalised")), "choose one of them"),
        (dict(shaping=("token-mask",), update=True), "leave out --update"),
        (dict(parallel="fsdp2"), "several|over processes"),
        (dict(sft_objective="extended_sft"), "--sft-steps 20"),
        (dict(beta=0.1, hyper={"beta": 0.2}), "beta is given more than once"),
        (dict(objective="dpo:beta=0.3", beta=0.1), "write it in one place"),
    ):
        with pytest.raises(BadInput, match=said):
            run(tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()


def test_the_objectives_own_coefficients_are_written_down(tmp_path):
    kto = run(tmp_path / "kto", objective="kto", lr=1e-2, steps=4).pairs
    assert (kto["kl"] >= 0).all() and kto["kl"].max() > 0 and kto.groupby("step")["kl"].nunique().max() == 1
    moving = run(tmp_path / "moving", objective="dpo_shift:lambda=0.5,schedule=true", steps=4).pairs
    assert moving.groupby("step")["shift"].first().tolist() == [0.5, 0.625, 0.75, 0.875]
    fixed = run(tmp_path / "fixed", objective="dpo_shift:lambda=0.7").pairs
    np.testing.assert_allclose(fixed["shift"], 0.7, rtol=1e-6)
    np.testing.assert_allclose(fixed["pull_rejected"], 0.7 * fixed["pull_chosen"], rtol=1e-5)


def test_kto_cuts_mismatched_rows_to_the_models_positions(tmp_path):
    data = tmp_path / "long.jsonl"
    sides = [(f"{i} " + "word " * 700, "yes", "no") for i in range(3)]
    sides += [(f"short {i}", "good " * 700, "bad " * 650) for i in range(3)]
    data.write_text("".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in sides))
    options = dict(data=str(data), max_length=1024, batch_size=4, steps=1)
    trace = run(tmp_path / "run", objective="kto", **BARE, **options)
    assert trace.closed and trace.pairs["loss"].notna().all()


@pytest.mark.parametrize("shaping", [(), ("pairwise-normalised",), ("token-mask",)])
def test_accumulated_batches_make_the_update_of_one_large_batch(shaping, tmp_path):
    options = dict(shaping=shaping, dtype="float64", optimizer="sgd", lr=0.1, steps=1, checkpoint_every=1)
    weights = []
    for size, parts in ((8, 1), (4, 2)):
        folder = tmp_path / str(size)
        run(folder, **options, max_pairs=8, batch_size=size, gradient_accumulation=parts, realised=False)
        weights.append(newest_checkpoint(folder)["model"])
    start = built_in_model(0).double().state_dict()
    moved = max(float((weights[0][n] - start[n]).abs().max()) for n in start)
    assert moved > 1e-5
    assert max(float((weights[0][n] - weights[1][n]).abs().max()) for n in start) < 1e-6 * moved


def test_clipping_is_written_down_and_kept(tmp_path):
    steps = run(tmp_path / "run", max_grad_norm=1e-3, optimizer="sgd", lr=1.0).steps
    assert (steps["grad_norm"] > 1e-2).all() and np.allclose(steps["grad_norm_clipped"], 1e-3)
    free = run(tmp_path / "free", max_grad_norm=0.0, optimizer="sgd", lr=1e-6).steps
    assert (free["grad_norm"] == free["grad_norm_clipped"]).all()
