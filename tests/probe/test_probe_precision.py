"""Numbers computed in half precision carry their error: one pair against float64, and what its gradients lose."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from attach_runs import trainer_of
from families import DROPOUT_ON, make_batch, make_model
from hand_written import Base
from reference.same_graph import gram_of
from tiny_runs import BARE, run
from torch import nn

from dyn_probe import Probe, load_trace, pair_gradients, sequence_logps
from dyn_probe.attach.trl import ProbeCallback
from dyn_probe.pairs import trimmed
from dyn_probe.probe import precision
from dyn_probe.probe.precision import AS_RECORDED, IN_EVAL_MODE

ERRORS = ("norm_error", "inner_error", "cosine_error", "logp_error")
SHARES = ("underflow_share", "overflow_share")
ARITHMETIC = {
    "bfloat16 weights": (torch.bfloat16, None),
    "bfloat16 autocast": (torch.float32, torch.bfloat16),
    "float16 autocast": (torch.float32, torch.float16),
}


def step_of(probe, step, batch, autocast=None, scale=1.0, inside=False):
    """Forward and scaled backward of a DPO-like loss; the log-probabilities."""
    probe.model.zero_grad(set_to_none=True)
    with probe.step(step, batch.ids):
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None and not inside):
            logps = sequence_logps(probe.model, batch)
        probe.pairs(logps, loss_scale=scale)
        half = batch.pairs
        (-F.logsigmoid(0.1 * (logps[:half] - logps[half:])).mean() * scale).backward()
    return logps.detach()


def measured(model, folder, autocast=None, scale=1.0, steps=1, **more):
    """The trace of some steps without an update, each of them followed by ``measure_precision``."""
    with Probe(model, folder / "run", force=True) as probe:
        for step in range(steps):
            batch = make_batch(seed=step)
            step_of(probe, step, batch, autocast, scale, **more)
            probe.measure_precision(step, batch)
    return load_trace(folder / "run")


def first_row(trace, batch):
    """The row of the batch's first pair."""
    return trace.pairs.set_index("pair_id").loc[batch.ids[0]]


def twin_numbers(model, batch):
    """``‖g_w‖, ‖g_l‖, ⟨g_w, g_l⟩, a, b`` of the first pair by plain autograd on a copy in float64."""
    twin, pair = copy.deepcopy(model).double(), batch.select([0])
    logps = sequence_logps(twin, pair)
    gram = gram_of(logps, twin)
    return torch.stack([gram[0, 0].sqrt(), gram[1, 1].sqrt(), gram[0, 1], *logps.detach().double()])


def entries(model, batch, coefficients, kinds, dtype):
    """(not 0, below the smallest normal number, above the largest) of the gradient of ``Σ c log π`` by the outputs of
    the modules of these kinds, by plain autograd in float64."""
    twin, pair, found = copy.deepcopy(model).double(), batch.select([0]), []
    for module in twin.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda m, a, output: output.register_hook(lambda g: found.append(g)) and None)
    (sequence_logps(twin, pair) * coefficients).sum().backward()
    size = torch.cat([g.abs().flatten() for g in found])
    limits = torch.finfo(dtype)
    kept = size[size > 0]
    return len(kept), int((kept < limits.smallest_normal).sum()), int((kept > limits.max).sum())


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("arithmetic", ARITHMETIC)
def test_errors_are_those_against_plain_autograd_in_float64(arithmetic, family, tmp_path):
    weights, autocast = ARITHMETIC[arithmetic]
    model, batch = make_model(family, weights, noise=0.05), make_batch(seed=0)
    wanted = twin_numbers(model, batch)
    trace = measured(model, tmp_path, autocast)
    row, step = first_row(trace, batch), trace.steps.iloc[0]
    names = ("grad_norm_chosen", "grad_norm_rejected", "grad_inner", "logp_chosen", "logp_rejected")
    got = torch.tensor([row[name] for name in names], dtype=torch.float64)
    scale = wanted[0] * wanted[1]
    errors = {
        "norm_error": (got[:2] / wanted[:2] - 1).abs().max(),
        "inner_error": (got[2] - wanted[2]).abs() / scale,
        "cosine_error": (row["grad_cosine"] - wanted[2] / scale).abs(),
        "logp_error": (got[3:] - wanted[3:]).abs().max(),
    }
    for name, error in errors.items():  # norms and angles of the twin are float32, in another order of sums
        assert step[name] == pytest.approx(float(error), abs=3e-6), name
        assert 1e-7 < step[name] < 0.1
    assert trace.about.precision.type == arithmetic.split()[0] and trace.about.precision.method == AS_RECORDED
    assert trace.about.precision.skipped is None


@pytest.mark.parametrize(("scale", "wanted"), [(1e-5, (1, 0)), (1.0, None), (2.0**10, None), (2.0**24, None)])
def test_entries_that_float16_cannot_hold_are_counted(scale, wanted, tmp_path):
    """A loss scale that is too small makes all of them underflow; one that is too large makes some overflow."""
    model, batch = make_model("llama", torch.float32, noise=0.05), make_batch(seed=0)
    trace = measured(model, tmp_path, torch.float16, scale)
    pull = first_row(trace, batch)[["pull_chosen", "pull_rejected"]].astype(float)
    c = torch.tensor([-pull.iloc[0], pull.iloc[1]], dtype=torch.float64) * scale / batch.pairs
    total, below, above = entries(model, batch, c, nn.Linear, torch.float16)
    shares = trace.steps.iloc[0][list(SHARES)].astype(float)
    assert list(shares) == pytest.approx([below / total, above / total], abs=2e-4)
    assert wanted is None or tuple(shares) == wanted
    assert scale < 2.0**24 or 0 < shares.iloc[1] < 1


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_the_training_loses_as_many_as_are_counted(scale, tmp_path):
    """What arrives in float16 at the modules' outputs, 0 or subnormal where float64 has a number."""
    model, batch, seen = make_model("llama", torch.float32, noise=0.05), make_batch(pairs=1, seed=0), []
    probe = Probe(model, tmp_path / "run", certify=False)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, a, output: output.register_hook(lambda g: seen.append(g)) and None)
    with probe:
        with probe.step(0, batch.ids):
            with torch.autocast("cpu", torch.float16):
                logps = sequence_logps(model, batch)
            probe.pairs(logps, loss_scale=scale)
            del seen[:]  # rows are checked by a backward there
            (-F.logsigmoid(0.1 * (logps[0] - logps[1])) * scale).backward()
        half = torch.cat([g.abs().flatten() for g in seen])
        probe.measure_precision(0, batch)
    c = 0.1 * scale * float(torch.sigmoid(-0.1 * (logps.detach()[0] - logps.detach()[1]).double()))
    model.zero_grad()
    total, _, _ = entries(model, batch, torch.tensor([-c, c]).double(), nn.Linear, torch.float16)
    kept = int((half >= torch.finfo(torch.float16).smallest_normal).sum())
    counted = load_trace(tmp_path / "run").steps["underflow_share"].iloc[0]
    assert half.dtype == torch.float16 and 0.01 < counted < 0.99
    assert counted == pytest.approx(1 - kept / total, abs=0.01)


def test_a_gradient_that_overflows_has_no_error_and_is_counted(tmp_path):
    """Its row is counted as not finite; the next comparison, at a loss scale that fits, is made."""
    model = make_model("llama", torch.float32, noise=0.05)
    with Probe(model, tmp_path / "run") as probe:
        for step, scale in enumerate((2.0**24, 1.0)):
            step_of(probe, step, make_batch(seed=step), torch.float16, scale)
            probe.measure_precision(step, make_batch(seed=step))
    steps = load_trace(tmp_path / "run").steps
    assert steps.loc[0, list(ERRORS)].isna().all() and steps.loc[0, "overflow_share"] > 0
    assert steps.loc[0, "not_finite"] > 0 and steps.loc[1, list(ERRORS)].notna().all()
    assert steps["not_finite"].isna()[1] and steps.loc[1, "overflow_share"] == 0


def test_it_is_measured_at_the_first_second_fourth_and_eighth_recorded_step(tmp_path):
    trace = measured(make_model("llama", torch.bfloat16, noise=0.05), tmp_path, steps=10)
    assert list(trace.steps["step"][trace.steps["cosine_error"].notna()]) == [0, 1, 3, 7]


def test_a_run_in_float32_is_not_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "measured", None)
    trace = measured(make_model("llama", torch.float32, noise=0.05), tmp_path, steps=2)
    assert trace.about.precision is None and trace.steps[list(ERRORS + SHARES)].isna().all().all()


def test_steps_that_are_not_recorded_are_not_compared(tmp_path):
    model = make_model("llama", torch.bfloat16, noise=0.05)
    with Probe(model, tmp_path / "run", every=2) as probe:
        for step in range(4):
            step_of(probe, step, make_batch(seed=step))
            probe.measure_precision(step, make_batch(seed=step))
    steps = load_trace(tmp_path / "run").steps.set_index("step")
    assert list(steps.index[steps["cosine_error"].notna()]) == [0, 2]


def test_where_training_draws_random_numbers_both_sides_are_computed_in_eval_mode(tmp_path):
    model, batch = make_model("gpt2", torch.float32, noise=0.05, **DROPOUT_ON["gpt2"]).train(), make_batch(seed=0)
    wanted = twin_numbers(model.eval(), batch)
    trace = measured(model.train(), tmp_path, torch.bfloat16)
    assert model.training and trace.about.precision.method == IN_EVAL_MODE
    with torch.autocast("cpu", torch.bfloat16):
        found = pair_gradients(model.eval(), trimmed(batch.select([0])))
    error = float((found.cosine[0] - wanted[2] / (wanted[0] * wanted[1])).abs())
    assert trace.steps["cosine_error"].iloc[0] == pytest.approx(error, abs=1e-6)
    dropped = abs(first_row(trace, batch)["grad_cosine"] - float(wanted[2] / (wanted[0] * wanted[1])))
    assert trace.steps["cosine_error"].iloc[0] < 0.1 * dropped


def test_autocast_that_the_forward_enters_itself_is_left_out_of_the_comparison(tmp_path):
    around = make_model("llama", torch.float32, noise=0.05)
    inside = copy.deepcopy(around)
    inside.forward = torch.autocast("cpu", torch.bfloat16)(inside.forward)
    first, second = measured(around, tmp_path, torch.bfloat16), measured(inside, tmp_path, torch.bfloat16, inside=True)
    columns = list(ERRORS + SHARES)
    assert list(first.steps[columns].iloc[0]) == list(second.steps[columns].iloc[0])


def trained(model, measure, autocast):
    """Weights, state of the generator and modes after three steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    probe = Probe(model, optimizer=optimizer, metric_every=1)
    torch.manual_seed(1)
    for step in range(3):
        batch = make_batch(seed=step)
        step_of(probe, step, batch, autocast)
        if measure:
            probe.measure_precision(step, batch)
        optimizer.step()
        probe.flush()
    return (
        [p.detach().clone() for p in model.parameters()],
        torch.get_rng_state(),
        [m.training for m in model.modules()],
    )


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("arithmetic", ["bfloat16 weights", "bfloat16 autocast"])
def test_training_is_bitwise_the_same(arithmetic, dropout):
    weights, autocast = ARITHMETIC[arithmetic]
    options = DROPOUT_ON["gpt2"] if dropout else {}
    models = [make_model("gpt2", weights, noise=0.05, **options).train() for _ in range(2)]
    before = [dict(m.named_parameters()) for m in models]
    (plain, state, modes), (seen, other, more) = (trained(model, on, autocast) for on, model in enumerate(models))
    assert all(map(torch.equal, plain, seen)) and torch.equal(state, other) and modes == more
    assert all(
        dict(m.named_parameters())[n] is p for m, named in zip(models, before, strict=True) for n, p in named.items()
    )


class Draws(Base):
    """Draws random numbers in eval mode too."""

    def body(self, x):
        return torch.tanh(x) + 0 * torch.rand(1, dtype=x.dtype)


def test_random_numbers_that_the_comparison_draws_are_given_back(tmp_path):
    batch = make_batch(seed=0)
    with Probe(Draws().to(torch.float32), tmp_path / "run") as probe:
        step_of(probe, 0, batch, torch.bfloat16)
        before = torch.get_rng_state()
        probe.measure_precision(0, batch)
        assert torch.equal(before, torch.get_rng_state())
    assert load_trace(tmp_path / "run").about.precision.method == IN_EVAL_MODE


class OneCast(Base):
    """One step of the forward is float16, whatever the weights are."""

    def body(self, x):
        return torch.tanh(x.half()).to(x.dtype)


class Refuses(Base):
    """No float64 in here."""

    def body(self, x):
        if x.dtype == torch.float64:
            raise RuntimeError("only fp16 and bf16 are supported\nmore")
        return torch.tanh(x)


class Quantised(Base):
    """Has a table of whole numbers."""

    def build(self):
        self.table = nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (OneCast, "parts of the model compute in torch.float16 whatever its weights are"),
        (Refuses, "RuntimeError: only fp16 and bf16 are supported"),
        (Quantised, "the weights are quantised"),
    ],
)
def test_what_cannot_be_compared_is_said(kind, words, tmp_path):
    model = kind().to(torch.float32)
    owned = dict(model.named_parameters())
    trace = measured(model, tmp_path, torch.bfloat16)
    assert trace.about.precision.skipped == words and trace.about.precision.method is None
    assert trace.steps[list(ERRORS)].isna().all().all()
    assert all(p is owned[name] and p.dtype != torch.float64 for name, p in model.named_parameters())


def test_a_copy_that_does_not_fit_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "free_memory", lambda device: 1000)
    monkeypatch.setattr(precision, "measured", None)
    trace = measured(make_model("llama", torch.bfloat16), tmp_path)
    assert trace.about.precision.skipped.startswith("a pair in float64 takes 0.0 GiB, and 0.0 GiB")


def test_rows_that_are_masked_are_not_compared(tmp_path):
    model, batch = make_model("llama", torch.bfloat16), make_batch(seed=0)
    with Probe(model, tmp_path / "run") as probe:
        with probe.step(0, batch.ids):
            logps = 0.5 * sequence_logps(model, batch)
            probe.pairs(logps, predict=False)
            logps.sum().backward()
        probe.measure_precision(0, batch)
    assert "not the responses' own" in load_trace(tmp_path / "run").about.precision.skipped


@pytest.mark.parametrize(("options", "kind"), [({"dtype": "autocast"}, "bfloat16"), ({"dtype": "float32"}, None)])
def test_the_reference_loop_measures_it(options, kind, tmp_path):
    about = run(tmp_path / "run", **BARE, **options)
    assert (about.about.precision and about.about.precision.type) == kind
    assert about.steps["cosine_error"].notna().all() == (kind is not None)


def test_a_recorded_trainer_measures_it(tmp_path):
    """accelerate puts autocast inside the model's forward."""
    trainer = trainer_of(tmp_path, callbacks=[ProbeCallback(tmp_path / "run")], bf16=True)
    trainer.train()
    trace = load_trace(tmp_path / "run")
    assert trace.about.precision.type == "bfloat16" and trace.about.precision.method == AS_RECORDED
    assert trace.steps["cosine_error"].notna().all() and (trace.steps["cosine_error"] < 0.05).all()
    assert (trace.steps["logp_error"] < 0.5).all() and (trace.steps["logp_error"] > 0).all()
