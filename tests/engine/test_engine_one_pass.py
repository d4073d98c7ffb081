"""Training in one pass: the weights' gradients from the recorded uses, beside those of autograd."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from exactness import SETTINGS, take_alone
from families import FAMILIES, make_batch, make_model

from dyn_probe import BadInput, Probe, UnsupportedUse, sequence_logps
from dyn_probe.engine import products

pytestmark = pytest.mark.usefixtures("double_everywhere")


def loss_of(logps, scale=1.0):
    chosen, rejected = logps.chunk(2)
    return -F.logsigmoid(0.1 * (chosen - rejected)).mean() * scale - 0.03 * scale * chosen.mean()


def autograd(model, batch, scale=1.0) -> dict[str, torch.Tensor | None]:
    """Gradients of a copy that nobody records."""
    twin = copy.deepcopy(model)
    loss_of(sequence_logps(twin, batch), scale).backward()
    return {name: p.grad for name, p in twin.named_parameters()}


def one_pass(model, batch, scale=1.0, **options) -> tuple[dict[str, torch.Tensor | None], list[dict]]:
    probe = Probe(model, certify=False, **options)
    with probe.step(0, batch.ids, learning_rate=1.0):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        probe.one_pass(loss_of(logps, scale))
    return {name: p.grad for name, p in model.named_parameters()}, [dict(row) for row in probe.fresh]


def error(found, wanted) -> float:
    """Largest error of a parameter's gradient, relative to the whole gradient."""
    assert [name for name, grad in found.items() if grad is None] == [n for n, grad in wanted.items() if grad is None]
    there = [name for name, grad in wanted.items() if grad is not None]
    whole = torch.stack([wanted[name].norm() for name in there]).norm()
    return float(torch.stack([(found[name] - wanted[name]).norm() for name in there]).max() / whole)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_autograd(family, setting):
    make, options = SETTINGS[setting]
    model, batch = make(family), make_batch(**options)
    wanted = autograd(model, batch)
    assert error(one_pass(model, batch)[0], wanted) <= 1e-12


def numbers(row) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, float)}


ROUTES = {"stacked": None, "blocks": False, "token Grams": True}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("options", [{}, {"gram_every": 1}], ids=["pairs", "full Gram"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_by_every_route_and_the_rows_are_those_of_exact_training(family, options, route, monkeypatch):
    model, batch = make_model(family, tie_word_embeddings=True), make_batch()
    if ROUTES[route] is not None:
        take_alone(monkeypatch)
        monkeypatch.setattr(products, "cheaper_by_tokens", lambda *_: ROUTES[route])
    wanted = autograd(model, batch)
    found, rows = one_pass(model, batch, **options)
    assert error(found, wanted) <= 1e-12
    model.zero_grad()
    probe = Probe(model, certify=False, **options)
    with probe.step(0, batch.ids, learning_rate=1.0):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        loss_of(logps).backward()
    for row, exact in zip(rows, probe.fresh, strict=True):
        assert numbers(row) == pytest.approx(numbers(exact), rel=1e-10, nan_ok=True)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_coefficients_that_are_divided_out_early_do_not_reach_the_gradient(scale):
    model, batch = make_model("llama"), make_batch()
    wanted = autograd(model, batch, scale)
    assert error(one_pass(model, batch, scale)[0], wanted) <= 1e-12


def test_steps_that_keep_their_factors():
    model, batch = make_model("gpt2", tie_word_embeddings=True), make_batch()
    wanted = autograd(model, batch)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    assert error(one_pass(model, batch, optimizer=optimizer, metric_every=1)[0], wanted) <= 1e-12


def test_adapters():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(make_model("llama"), config).double()
    wanted = autograd(model, make_batch())
    assert error(one_pass(model, make_batch())[0], wanted) <= 1e-12


def test_gradients_add_up_over_micro_batches():
    model, batch = make_model("llama"), make_batch()
    wanted = autograd(model, batch)
    one_pass(model, batch, micro_batches=2)
    found, _ = one_pass(model, batch, micro_batches=2)
    assert error(found, {name: None if grad is None else 2 * grad for name, grad in wanted.items()}) <= 1e-12


def test_a_step_that_is_not_recorded_is_autograds():
    model, batch = make_model("llama"), make_batch()
    wanted = autograd(model, batch)
    probe = Probe(model, every=2)
    with probe.step(1, batch.ids):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        probe.one_pass(loss_of(logps))
    assert not probe.rows
    assert error({name: p.grad for name, p in model.named_parameters()}, wanted) == 0


def test_what_cannot_be_done_is_said():
    model, batch = make_model("llama"), make_batch()
    probe = Probe(model)
    with pytest.raises(BadInput, match=r"needs probe\.pairs before it"), probe.step(0, batch.ids):
        probe.one_pass(sequence_logps(model, batch).sum())
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(UnsupportedUse, match=r"'use_reentrant': False"), Probe(model).step(0, batch.ids) as probe:
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        probe.one_pass(loss_of(logps))
