"""Probe as a user meets it: rows in a trace, predictions that come true, schedule, accumulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import make_batch, make_model
from hypothesis import given
from hypothesis import strategies as st

from dyn_probe import BadInput, CertificationError, Probe, entanglement, load_trace, sequence_logps
from dyn_probe.engine.recording import Recording

pytestmark = pytest.mark.usefixtures("double_everywhere")


def dpo(logps, reference, beta=0.1):
    half = len(logps) // 2
    ratio = logps - reference
    return -F.logsigmoid(beta * (ratio[:half] - ratio[half:]))


def run(probe, model, optimizer, batches, realised=True):
    with probe:
        for step, batch in enumerate(batches):
            optimizer.zero_grad()
            with probe.step(step, pair_ids=batch.ids):
                logps = sequence_logps(model, batch)
                losses = dpo(logps, logps.detach() + 0.3)
                probe.pairs(logps, reference=logps.detach() + 0.3, lengths=batch.lengths, losses=losses)
                losses.mean().backward()
            optimizer.step()
            if realised:
                probe.after_update(batch)


def test_the_trace_holds_what_happened(tmp_path):
    model = make_model("llama")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    batches = [make_batch(seed=s) for s in range(3)]
    run(Probe(model, tmp_path / "run", optimizer=optimizer, gram_every=1), model, optimizer, batches)
    trace = load_trace(tmp_path / "run")
    assert trace.closed and len(trace.pairs) == 9 and list(trace.steps["step"]) == [0, 1, 2]
    assert trace.manifest["certificate"]["max_relative_error"] < 1e-9
    assert (trace.steps["law1_error"] < 1e-9).all()
    assert list(trace.pairs["pair_id"][:3]) == list(batches[0].ids)
    layers = trace.layers.groupby(["step", "pair_id"])["grad_inner"].sum()
    pairs = trace.pairs.set_index(["step", "pair_id"])["grad_inner"]
    assert np.allclose(layers.sort_index(), pairs.sort_index())
    assert set(trace.layers["layer"]) == {"embedding", "0", "1", "final_norm", "head"}


def test_the_batch_prediction_comes_true_for_a_small_plain_step(tmp_path):
    """First order: halving the learning rate halves the relative error of the batch prediction."""
    errors = []
    for rate in (2e-4, 1e-4):
        model = make_model("llama")
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        probe = Probe(model, optimizer=optimizer, gram_every=1)
        run(probe, model, optimizer, [make_batch()])
        gaps = [
            abs(r[f"realised_delta_{s}"] - r[f"batch_delta_{s}"]) / abs(r[f"realised_delta_{s}"])
            for r in probe.rows
            for s in ("chosen", "rejected")
        ]
        errors.append(float(np.median(gaps)))
    assert errors[1] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.2)


def test_a_single_pair_moves_as_predicted():
    model = make_model("gpt2")
    batch = make_batch(pairs=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    probe = Probe(model, optimizer=optimizer)
    run(probe, model, optimizer, [batch])
    (row,) = probe.rows
    for side in ("chosen", "rejected"):
        assert row[f"realised_delta_{side}"] == pytest.approx(row[f"predicted_delta_{side}"], rel=2e-2)
    assert row["pull_chosen"] == pytest.approx(0.1 / 2, rel=1e-9) and row["pull_rejected"] == pytest.approx(
        0.05, rel=1e-9
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("rule", [torch.optim.AdamW, torch.optim.SGD])
def test_the_change_under_the_real_update(family, rule):
    """⟨g, Δθ⟩ with the optimizer's own Δθ, against plain autograd, and against what happened for a small step."""
    model, batch = make_model(family), make_batch()
    optimizer = rule(model.parameters(), lr=1e-6)
    named = dict(model.named_parameters())
    before = {n: p.detach().clone() for n, p in named.items()}
    grads = [
        torch.autograd.grad(logp, list(named.values()), retain_graph=True) for logp in sequence_logps(model, batch)
    ]
    probe = Probe(model, optimizer=optimizer, update=True)
    run(probe, model, optimizer, [batch])
    moved = [p.detach() - before[n] for n, p in named.items()]
    for i, row in enumerate(probe.rows):
        for side, j in (("chosen", i), ("rejected", i + batch.pairs)):
            wanted = sum(float((g * d).sum()) for g, d in zip(grads[j], moved, strict=True))
            assert row[f"update_delta_{side}"] == pytest.approx(wanted, rel=1e-7)
            assert row[f"realised_delta_{side}"] == pytest.approx(wanted, rel=0.05, abs=1e-7)


@pytest.mark.parametrize("written", [True, False])
def test_all_recorded_rows_are_kept(written, tmp_path):
    """Those of earlier steps too, with or without a trace, and while the probe is still at work."""
    model = make_model("llama")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    batches = [make_batch(seed=s) for s in range(3)]
    probe = Probe(model, tmp_path / "run" if written else None, optimizer=optimizer)
    seen = []
    with probe:
        for step, batch in enumerate(batches):
            optimizer.zero_grad()
            with probe.step(step, pair_ids=batch.ids):
                logps = sequence_logps(model, batch)
                probe.pairs(logps, lengths=batch.lengths)
                dpo(logps, logps.detach()).mean().backward()
            optimizer.step()
            probe.after_update(batch)
            seen.append(len(probe.rows))
    assert seen == [3, 6, 9]
    assert [(row["step"], row["pair_id"]) for row in probe.rows] == [(s, i) for s in range(3) for i in batches[s].ids]
    assert len({row["logp_chosen"] for row in probe.rows}) == 9
    if written:
        for row, kept in zip(probe.rows, load_trace(tmp_path / "run").pairs.to_dict("records"), strict=True):
            np.testing.assert_equal({name: kept[name] for name in row}, dict(row))


def test_a_step_without_pairs_is_refused():
    with pytest.raises(BadInput, match=r"probe\.pairs"), Probe(make_model("gpt2")).step(0):
        pass


def test_schedule_and_micro_batches(tmp_path):
    model = make_model("llama")
    probe = Probe(model, tmp_path / "run", every=2)
    with probe:
        for step in range(3):
            for micro in range(2):
                batch = make_batch(seed=10 * step + micro)
                with probe.step(step, batch.ids, learning_rate=0.1):
                    assert probe.recording == (step % 2 == 0)
                    logps = sequence_logps(model, batch)
                    probe.pairs(logps, loss_scale=0.5)
                    (0.5 * dpo(logps, logps.detach()).mean()).backward()
            probe.log(step, loss=1.0, grad_norm=2.0)
    trace = load_trace(tmp_path / "run")
    assert list(trace.pairs.groupby("step").size()) == [6, 6]
    assert list(trace.steps["step"]) == [0, 1, 2] and (trace.steps["grad_norm"] == 2.0).all()
    assert np.allclose(trace.pairs["pull_chosen"], 0.05)


def test_realised_change_under_dropout_needs_a_baseline():
    model = make_model("gpt2", resid_pdrop=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    batch = make_batch()
    with pytest.raises(BadInput, match="before = probe"):
        run(Probe(model), model, optimizer, [batch])
    probe = Probe(model, optimizer=optimizer)
    with probe.step(0, batch.ids):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        dpo(logps, logps.detach()).mean().backward()
    before = probe.evaluate(batch)
    optimizer.step()
    probe.after_update(batch, before)
    assert model.training and model.transformer.h[0].mlp.dropout.training
    probe.close()
    assert all(math.isfinite(r["realised_delta_chosen"]) for r in probe.rows)


def test_an_error_leaves_a_readable_trace(tmp_path):
    model, batch = make_model("llama"), make_batch()
    with pytest.raises(RuntimeError), Probe(model, tmp_path / "run") as probe:
        with probe.step(0, batch.ids):
            logps = sequence_logps(model, batch)
            probe.pairs(logps)
            logps.mean().backward()
        raise RuntimeError("out of coffee")
    trace = load_trace(tmp_path / "run")
    assert len(trace.pairs) == 3 and trace.manifest["status"] == "stopped" and "coffee" in trace.manifest["reason"]


numbers = st.floats(-5, 5)
positive = st.floats(1e-3, 5)


@given(positive, positive, positive, positive, st.floats(-1, 1), positive)
def test_chosen_down_and_rejected_up_is_impossible_for_pulls_above_zero(d_w, d_l, n_w, n_l, cosine, rate):
    up, down = entanglement.predicted_delta(d_w, d_l, n_w, n_l, cosine * n_w * n_l, rate)
    assert d_w * up - d_l * down >= -1e-9
    assert int(entanglement.cases(up, down)) in (1, 2, 3)


@given(numbers, numbers, positive, positive, st.floats(-1, 1))
def test_the_conditions_say_what_the_signs_say(d_w, d_l, n_w, n_l, cosine):
    inner = cosine * n_w * n_l
    first, second = entanglement.conditions(d_w, d_l, n_w, n_l, inner)
    assert bool(first) == (d_l * inner <= d_w * n_w**2) or abs(d_l * inner - d_w * n_w**2) < 1e-9
    assert bool(second) == (d_w * inner <= d_l * n_l**2) or abs(d_w * inner - d_l * n_l**2) < 1e-9


def test_batch_prediction_is_the_loop_over_pairs():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 9))
    gram, d_w, d_l = root @ root.T, rng.normal(size=3), rng.normal(size=3)
    up, down = entanglement.batch_delta(gram, d_w, d_l, 0.1)
    for i in range(3):
        assert up[i] == pytest.approx(0.1 / 3 * sum(d_w[j] * gram[i, j] - d_l[j] * gram[i, j + 3] for j in range(3)))
        assert down[i] == pytest.approx(
            0.1 / 3 * sum(d_w[j] * gram[i + 3, j] - d_l[j] * gram[i + 3, j + 3] for j in range(3))
        )
    c = np.concatenate([-d_w, d_l]) / 3
    assert entanglement.loss_gradient_norm(gram, d_w, d_l) == pytest.approx(math.sqrt(c @ gram @ c))


def test_cases_name_every_sign():
    deltas = [(1, -1), (-1, -1), (1, 1), (-1, 1), (0, 0), (math.nan, 1)]
    assert list(entanglement.cases(*zip(*deltas, strict=True))) == [1, 2, 3, 4, 1, 0]


def test_a_change_along_the_update_is_not_read_from_other_rows():
    model, batch = make_model("llama", torch.float32), make_batch()
    with pytest.raises(BadInput, match="update=False"), Probe(model, update=True).step(0, batch.ids) as probe:
        probe.pairs(0.5 * sequence_logps(model, batch), predict=False)


def test_a_training_that_overflows_in_its_first_step_is_checked_in_the_next(tmp_path):
    """As in float16 under a loss scale that is still too large; rows of that step stay visible as not finite."""
    model, batch = make_model("llama"), make_batch()
    with Probe(model, tmp_path / "run") as probe:
        for step, scale in enumerate((1e308, 1e308, 1.0)):
            model.zero_grad()
            with probe.step(step, batch.ids):
                logps = sequence_logps(model, batch)
                probe.pairs(logps)
                (logps * scale * 100).sum().backward()
            assert (probe.certificate is None) == (step < 2)
    trace = load_trace(tmp_path / "run")
    assert trace.manifest["certificate"]["max_relative_error"] < 1e-4
    norms = trace.pairs.set_index("step")["grad_norm_chosen"]
    assert not np.isfinite(norms[[0, 1]]).any() and np.isfinite(norms[2]).all()


def test_a_gradient_of_the_recorders_own_is_no_witness(monkeypatch):
    """In one pass what is not finite may be its own fault, so that nothing is put off."""
    model, batch = make_model("llama"), make_batch()
    with pytest.raises(CertificationError), Probe(model).step(0, batch.ids) as probe:
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        probe.one_pass((logps * 1e308 * 100).sum())


def test_an_overflow_of_the_recorders_own_is_no_excuse(monkeypatch):
    """The training's gradient is finite here, so that what is not finite is wrong."""
    model, batch = make_model("llama"), make_batch()
    monkeypatch.setattr("dyn_probe.engine.assembly.inverse_of", lambda c: torch.full_like(c.double(), torch.inf))
    with pytest.raises(CertificationError), Probe(model).step(0, batch.ids) as probe:
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        logps.sum().backward()


def test_a_step_is_read_when_the_next_one_is_under_way(monkeypatch):
    """On a device that works behind the host, reading at a step's beginning would have it stand still."""
    order = []
    fetching = Recording.fetching

    def watched(recording):
        answers = fetching(recording)
        order.append("asked")
        return lambda: (order.append("read"), answers())[1]

    monkeypatch.setattr(Recording, "fetching", watched)
    model, batch = make_model("llama"), make_batch()
    probe = Probe(model, certify=False)
    for step in range(3):
        with probe.step(step, batch.ids):
            order.append("begun")
            logps = sequence_logps(model, batch)
            probe.pairs(logps)
            dpo(logps, logps.detach()).mean().backward()
        assert order[-2:] == ["asked", "read"] if step else order[-1] == "asked"
    assert order == ["begun", "asked", "begun", "asked", "read", "begun", "asked", "read"]
    assert [row["step"] for row in probe.rows] == [0] * 3 + [1] * 3 + [2] * 3 and order[-1] == "read"


def test_rows_asked_for_in_a_step_that_has_begun_are_those_of_the_steps_before():
    model, batch = make_model("llama"), make_batch()
    probe = Probe(model, certify=False)
    for step in range(2):
        with probe.step(step, batch.ids):
            assert probe.fresh == [] and len(probe.rows) == 3 * step
            logps = sequence_logps(model, batch)
            probe.pairs(logps)
            dpo(logps, logps.detach()).mean().backward()
        assert {row["step"] for row in probe.fresh} == {step}


def test_what_is_logged_of_a_step_before_it_begins_stays_in_its_one_row(tmp_path):
    """Also where the step before was only followed, and had no rows to hand over."""
    model, batch = make_model("llama"), make_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with Probe(model, tmp_path / "run", optimizer=optimizer, every=2, split_momentum=True, certify=False) as probe:
        for step in range(5):
            probe.log(step, grad_norm=float(step))
            with probe.step(step, batch.ids):
                logps = sequence_logps(model, batch)
                probe.pairs(logps)
                dpo(logps, logps.detach()).mean().backward()
            optimizer.step()
    steps = load_trace(tmp_path / "run").steps
    assert list(steps["step"]) == list(range(5)) and list(steps["grad_norm"]) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert list(steps["pairs"].notna()) == [True, False, True, False, True]
