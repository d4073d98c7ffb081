"""Probe and the optimizer's own steps: pushes in the trace, whatever the loop does between backward and step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import make_batch, make_model

from dyn_probe import BadInput, Probe, load_trace, sequence_logps

pytestmark = pytest.mark.usefixtures("double_everywhere")

PARTS = ["own_chosen", "own_rejected", "others", "past", "decay", "rounding"]


def train(model, optimizer, probe, steps=3, micro=1, clip=0.5, scaler=None, realised=True, first=0):
    """A loop as people write it."""
    with probe:
        for step in range(first, first + steps):
            optimizer.zero_grad()
            batches = [make_batch(seed=10 * step + k) for k in range(micro)]
            for batch in batches:
                with probe.step(step, batch.ids):
                    logps = sequence_logps(model, batch)
                    half = len(logps) // 2
                    losses = -F.logsigmoid(0.1 * (logps[:half] - logps[half:]))
                    scale = (1.0 if scaler is None else scaler) / micro
                    probe.pairs(logps, losses=losses, loss_scale=scale)
                    (losses.mean() * scale).backward()
            if scaler is not None:
                for p in model.parameters():
                    p.grad /= scaler
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            for batch in batches if realised else ():
                probe.after_update(batch)
    return probe


def adamw(model, **options):
    return torch.optim.AdamW(model.parameters(), **{"lr": 1e-5, "weight_decay": 0.1, **options})


@pytest.mark.parametrize("way", [{}, {"micro": 3}, {"scaler": 1024.0}, {"clip": 1e9}])
def test_pushes_add_up_and_come_true(tmp_path, way):
    model = make_model("llama")
    optimizer = adamw(model)
    train(model, optimizer, Probe(model, tmp_path / "run", optimizer=optimizer, metric_every=1), **way)
    trace = load_trace(tmp_path / "run")
    pushes = trace.pushes
    assert len(pushes) == 2 * len(trace.pairs) == 18 * way.get("micro", 1)
    assert np.allclose(pushes[PARTS].sum(axis=1), pushes["total"], rtol=1e-12)
    assert (trace.steps["law7_error"] <= 1e-10).all() and (trace.steps["unmoved_share"] == 0).all()
    assert pushes["past"].iloc[:6].abs().max() <= 1e-9 * pushes["total"].abs().max()
    realised = np.concatenate([trace.pairs[f"realised_delta_{side}"] for side in ("chosen", "rejected")])
    totals = np.concatenate([pushes.loc[pushes["side"] == side, "total"] for side in ("chosen", "rejected")])
    assert np.corrcoef(realised, totals)[0, 1] > 0.999
    updates = np.concatenate([trace.pairs[f"update_delta_{side}"] for side in ("chosen", "rejected")])
    assert np.allclose(updates, totals, rtol=1e-12)


def test_clipping_is_read_and_not_guessed(tmp_path):
    """A pair alone in its batch, plain SGD: its own parts are the whole step, whatever the gradient was clipped to."""
    model, batch = make_model("llama"), make_batch(pairs=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    probe = Probe(model, tmp_path / "run", optimizer=optimizer, metric_every=1)
    with probe:
        with probe.step(0, batch.ids):
            logps = sequence_logps(model, batch)
            probe.pairs(logps)
            (logps[1] - logps[0]).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        assert float(norm) > 1.0
        optimizer.step()
    pushes = load_trace(tmp_path / "run").pushes
    assert (pushes["others"].abs() <= 1e-9 * pushes["own_chosen"].abs()).all()


def test_an_optimizer_that_cannot_be_taken_apart_gives_totals_alone(tmp_path):
    class Sign(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {"lr": 1e-5})

        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["lr"] * p.grad.sign()

    model = make_model("llama")
    optimizer = Sign(model.parameters())
    train(model, optimizer, Probe(model, tmp_path / "run", optimizer=optimizer, metric_every=1))
    trace = load_trace(tmp_path / "run")
    assert trace.pushes.empty and trace.pairs["update_delta_chosen"].notna().all()
    assert "Sign" in trace.manifest["pushes"]["reason"]


def test_both_sides_over_all_steps(tmp_path):
    """Every second step is taken apart; the momentum of both sides follows all of them."""
    model = make_model("llama")
    optimizer = adamw(model)
    probe = Probe(model, tmp_path / "run", optimizer=optimizer, every=2, metric_every=2, split_momentum=True)
    train(model, optimizer, probe, steps=5)
    trace = load_trace(tmp_path / "run")
    both = trace.pushes["all_chosen"] + trace.pushes["all_rejected"]
    assert sorted(trace.pushes["step"].unique()) == [0, 2, 4]
    wanted = trace.pushes["total"] - trace.pushes["decay"] - trace.pushes["rounding"]
    assert np.allclose(both, wanted, rtol=1e-7, atol=1e-9 * float(wanted.abs().max()))


def test_a_step_that_is_only_followed_multiplies_with_nothing_and_copies_no_weights(tmp_path, monkeypatch):
    """Of steps between recorded ones the momentum takes both sides' gradients, each a sum over half of the rows; rows
    are multiplied neither with the change of the weights nor with each other."""
    from dyn_probe.engine import assembly
    from dyn_probe.engine.held import Held
    from dyn_probe.metric.watch import StepWatch

    copied, sums, changes, products = [], [], [], []
    begin, weighted, along = StepWatch.begin, Held.weighted, Held.along

    def begins(self):
        begin(self)
        copied.append(len(self._before))
        assert not self.split._fresh, "both sides' gradients of an earlier step were kept"

    def sums_up(self, name, coefficients, shape, rows=slice(None), total=None):
        sums.append((len(copied), rows))
        return weighted(self, name, coefficients, shape, rows, total)

    def multiplies(self, name, direction):
        changes.append(len(copied))
        return along(self, name, direction)

    for name in ("gram", "cross", "by_sum"):
        made = getattr(assembly, name)
        counted = lambda *given, made=made: (products.append(len(copied)), made(*given))[1]  # noqa: E731
        monkeypatch.setattr(assembly, name, counted)
    monkeypatch.setattr(StepWatch, "begin", begins)
    monkeypatch.setattr(Held, "weighted", sums_up)
    monkeypatch.setattr(Held, "along", multiplies)
    model = make_model("llama")
    optimizer = adamw(model)
    probe = Probe(model, tmp_path / "run", optimizer=optimizer, every=3, metric_every=3, split_momentum=True)
    train(model, optimizer, probe, steps=5, realised=False)
    trained = len([p for p in model.parameters() if p.requires_grad])
    assert [bool(n) for n in copied] == [True, False, False, True, False] and copied[0] == trained
    followed = [rows for step, rows in sums if step in (2, 3, 5)]
    assert len(followed) == 2 * 3 * trained and {(r.start, r.stop) for r in followed} == {(0, 3), (3, 6)}
    assert set(changes) <= {1, 4} and set(products) == {0, 3}
    assert load_trace(tmp_path / "run").pushes["all_chosen"].notna().all()


def test_a_run_that_begins_between_recorded_steps_is_certified_all_the_same(tmp_path):
    """The first step that is followed is compared with plain autograd, recorded or not."""
    model = make_model("llama")
    optimizer = adamw(model)
    probe = Probe(model, tmp_path / "run", optimizer=optimizer, every=3, metric_every=3, split_momentum=True)
    train(model, optimizer, probe, steps=3, realised=False, first=1)
    assert probe.certificate is not None and not probe.certificate.wrong
    trace = load_trace(tmp_path / "run")
    assert sorted(trace.pairs["step"].unique()) == [3] and (trace.steps["law7_error"].dropna() <= 1e-10).all()


def test_norms_that_are_asked_for_in_a_step_that_is_only_followed_are_measured():
    """Also by a loop that did not say so when it entered the step."""
    norms = []
    for split in (False, True):
        model, batch = make_model("llama"), make_batch()
        optimizer = adamw(model)
        probe = Probe(model, optimizer=optimizer, every=2, metric_every=2, split_momentum=split)
        train(model, optimizer, probe, steps=1, realised=False)
        with probe.step(1, batch.ids, measure=not split):
            norms.append(torch.cat(probe.measure(sequence_logps(model, batch))))
            probe.backward(torch.ones(len(norms[0]), dtype=torch.float64))
    assert torch.equal(*norms) and (norms[0] > 0).all()


def test_the_momentum_of_both_sides_is_a_snapshot(tmp_path):
    """What was read for a checkpoint, and what was loaded from one, does not change with later steps."""
    model = make_model("llama")
    optimizer = adamw(model)
    probe = Probe(model, optimizer=optimizer, metric_every=2, split_momentum=True)
    train(model, optimizer, probe, steps=1, realised=False)
    read = probe.momentum
    values = {name: [side.clone() for side in sides] for name, sides in read.items()}
    again = Probe(model, optimizer=optimizer, metric_every=2, split_momentum=True)
    again.momentum = read
    train(model, optimizer, again, steps=2, realised=False)
    assert read and all(torch.equal(a, b) for name in read for a, b in zip(read[name], values[name], strict=True))
    assert any(not torch.equal(again.momentum[name][0], values[name][0]) for name in read)


def test_a_momentum_that_was_there_before_is_not_divided(tmp_path):
    """A probe that comes late cannot know whose momentum it finds: everything but the two sides is recorded."""
    model = make_model("llama")
    optimizer = adamw(model)
    train(model, optimizer, Probe(model), steps=2)
    probe = Probe(model, tmp_path / "run", optimizer=optimizer, metric_every=1, split_momentum=True)
    train(model, optimizer, probe, steps=2)
    trace = load_trace(tmp_path / "run")
    assert trace.pushes[["all_chosen", "all_rejected"]].isna().all(axis=None)
    assert trace.pushes[PARTS].notna().all(axis=None) and (trace.steps["law7_error"] <= 1e-10).all()
    assert "had a momentum before" in trace.manifest["pushes"]["reason"]


def test_training_is_bitwise_the_same():
    finals = []
    for recorded in (False, True):
        model = make_model("gpt2", torch.float32)
        optimizer = adamw(model)
        probe = Probe(model, optimizer=optimizer, metric_every=1, split_momentum=True) if recorded else Probe(model)
        train(model, optimizer, probe, realised=False)
        finals.append([p.detach().clone() for p in model.parameters()])
        assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert all(torch.equal(p, q) for p, q in zip(*finals, strict=True))


def test_half_precision_weights_name_what_they_lose(tmp_path):
    model = make_model("llama", torch.bfloat16, noise=0.05)
    optimizer = adamw(model, lr=1e-4)
    train(model, optimizer, Probe(model, tmp_path / "run", optimizer=optimizer, metric_every=1), realised=False)
    trace = load_trace(tmp_path / "run")
    assert (trace.steps["unmoved_share"] > 0.3).all()
    assert "pushes" not in trace.manifest or trace.manifest["pushes"].get("trusted", True)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_float32_weights_at_a_small_rate_are_no_error_and_a_wrong_step_is(tmp_path, monkeypatch, factor):
    """Pretrained weights at a rate of finetuning: storing them loses more of a step than law 7 allows."""
    from dataclasses import replace

    from dyn_probe.metric import adam

    def read(data):
        step = adam.read(data)
        momentum = replace(step.momentum, weight=step.momentum.weight * factor)
        return replace(step, direct=step.direct * factor, momentum=momentum)

    family = replace(adam.ADAM, read=read)
    monkeypatch.setattr("dyn_probe.metric.step_reader.family_of", lambda optimizer: (family, ""))
    model = make_model("llama", torch.float32)
    optimizer = adamw(model, lr=2e-7)
    train(model, optimizer, Probe(model, tmp_path / "run", optimizer=optimizer, metric_every=1), realised=False)
    trace = load_trace(tmp_path / "run")
    assert (trace.steps["law7_error"] > 1e-4).any()
    assert trace.manifest.get("pushes", {}).get("trusted", True) is (factor == 1.0)


def test_a_run_whose_parts_do_not_add_up_says_so(tmp_path, monkeypatch):
    """Break the formula on purpose: the decay is forgotten."""
    from dataclasses import replace

    from dyn_probe.metric import adam

    honest = adam.read
    family = replace(adam.ADAM, read=lambda data: replace(honest(data), decay=0.0))
    monkeypatch.setattr("dyn_probe.metric.step_reader.family_of", lambda optimizer: (family, ""))
    model = make_model("llama")
    optimizer = adamw(model)
    train(model, optimizer, Probe(model, tmp_path / "run", optimizer=optimizer, metric_every=1))
    manifest = load_trace(tmp_path / "run").manifest["pushes"]
    assert manifest["trusted"] is False and manifest["law7_error"] > 1e-6


def test_pushes_want_the_optimizer():
    with pytest.raises(BadInput, match="optimizer=optimizer"):
        Probe(make_model("llama"), metric_every=1)


def test_the_grams_and_the_factor(tmp_path):
    """K and K in the step's metric: own parts are entries of the second, and ‖G‖² = κ²cᵀKc holds."""
    model = make_model("gpt2")
    optimizer = adamw(model, weight_decay=0.0)
    train(model, optimizer, Probe(model, tmp_path / "run", optimizer=optimizer, gram_every=1, metric_every=2))
    trace = load_trace(tmp_path / "run")
    assert (trace.steps["kappa_error"].dropna() <= 1e-9).all() and trace.steps["kappa_error"].notna().sum() == 2
    assert (trace.steps["law1_error"] <= 1e-9).all() and len(trace.grams) == 3
    row, pairs = trace.grams.iloc[0], trace.pairs[trace.pairs["step"] == 0]
    gram, metric = (np.asarray(row[name]).reshape(6, 6) for name in ("gram", "gram_metric"))
    assert np.allclose(gram.diagonal()[:3], pairs["grad_norm_chosen"] ** 2, rtol=1e-12)
    own = trace.pushes[(trace.pushes["step"] == 0) & (trace.pushes["side"] == "chosen")]["own_rejected"].to_numpy()
    ratio = own / (-metric.diagonal(offset=3) * pairs["pull_rejected"].to_numpy())
    assert np.allclose(ratio, ratio[0], rtol=1e-9) and 0 < ratio[0] <= 1 / 3 + 1e-9
    assert trace.grams["gram_metric"].isna().tolist() == [False, True, False]


def test_a_forgotten_factor_is_seen(tmp_path, monkeypatch):
    """It cancels in law 7, where ``others`` takes it up; ‖G‖² does not forgive it."""
    from dyn_probe.metric.clip_factor import Factor

    monkeypatch.setattr("dyn_probe.metric.step_reader.StepReader.factor", lambda self: Factor(1.0, 0.0))
    model = make_model("gpt2")
    optimizer = adamw(model)
    train(model, optimizer, Probe(model, tmp_path / "run", optimizer=optimizer, gram_every=1, metric_every=1))
    steps = load_trace(tmp_path / "run").steps
    assert (steps["law7_error"] <= 1e-10).all() and (steps["kappa_error"] > 0.1).all()


@pytest.mark.parametrize("room", [0.0, 20_000.0])
def test_totals_are_whole_where_copies_of_the_weights_do_not_fit(room, tmp_path, monkeypatch):
    """Rows whose step is taken apart get along with copies of a part of the weights; a total alone needs all."""
    monkeypatch.setattr("dyn_probe.metric.watch.free_room", lambda _: room)
    totals = {}
    for metric_every in (0, 1):
        model = make_model("llama")
        probe = Probe(
            model, tmp_path / str(metric_every), optimizer=adamw(model), update=True, metric_every=metric_every
        )
        trace = load_trace(train(model, probe.optimizer, probe).writer.path)
        totals[metric_every] = trace.pairs[["update_delta_chosen", "update_delta_rejected"]].to_numpy()
        if metric_every:
            share = trace.steps["law7_share"]
            assert (share > 0).all() and (share < 1).all()
    np.testing.assert_allclose(totals[0], totals[1], rtol=1e-9)
