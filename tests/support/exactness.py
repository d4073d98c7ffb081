"""How far a Gram is from that of the slow twin."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from families import make_batch, make_model
from reference.gradients import grams, row_gradients
from reference.same_graph import gram_of

from dyn_probe import Probe, pair_gradients, row_gram, sequence_logps
from dyn_probe.engine import products, together
from dyn_probe.engine.answer import pair_entries
from dyn_probe.engine.recording import Recording
from dyn_probe.engine.routes import costs

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest error of a Gram relative to the products of the norms; NaN is infinite."""
    norms = wanted.diagonal().clamp(min=1e-300).sqrt()
    error = (got.double().cpu() - wanted).abs() / (norms[:, None] * norms[None, :])
    return float(error.nan_to_num(float("inf")).max())


def true_gram(model, batch) -> torch.Tensor:
    """``[2B, 2B]`` by the slow twin, in float64 on a copy of the model."""
    twin = copy.deepcopy(model).double()
    return sum(grams(row_gradients(twin, batch.input_ids, batch.attention_mask, batch.response_mask)).values())


def record(model, batch, full: bool, autocast: bool = False):
    """Products of one DPO step."""
    model.zero_grad(set_to_none=True)
    with Recording(model, full=full) as recording:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logps = sequence_logps(model, batch)
            half = len(logps) // 2
            loss = -F.logsigmoid(0.1 * (logps[:half] - logps[half:])).mean()
        recording.watch(logps)
        loss.backward()
        return recording.result()


def frozen(model):
    """Every second parameter frozen, the embedding trained."""
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 2 == 0)
    return model


SETTINGS = {
    "tied": (lambda f: make_model(f, tie_word_embeddings=True), {}),
    "untied": (lambda f: make_model(f, tie_word_embeddings=False), {}),
    "left padding": (lambda f: make_model(f, tie_word_embeddings=True), {"side": "left", "extra": 3}),
    "some frozen": (lambda f: frozen(make_model(f, tie_word_embeddings=True)), {}),
    "padding token trained": (lambda f: make_model(f, tie_word_embeddings=True, pad_token_id=5), {"pad": 5}),
}


def take_alone(monkeypatch) -> None:
    """Every use is reduced when it comes, as those of large models are."""
    monkeypatch.setattr(together, "SMALL", {"cpu": together.Limits(0, 0)})
    monkeypatch.setattr(costs, "LAUNCHED", {"cpu": 0})
    monkeypatch.setitem(products.AT_ONCE, "cpu", 0)


def certified_error(model) -> float:
    """What the recorder's own check finds on its first step."""
    probe, batch = Probe(model), make_batch()
    with probe.step(0, batch.ids):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        logps.mean().backward()
    assert probe.certificate is not None
    return probe.certificate.max_relative_error


def error_of(model, batch) -> float:
    """Largest relative error of ``row_gram`` and ``pair_gradients`` against plain autograd."""
    got, wanted = row_gram(model, batch), gram_of(sequence_logps(model, batch), model)
    norms = wanted.diagonal().sqrt()
    full = float(((got - wanted).abs() / (norms[:, None] * norms[None])).nan_to_num(float("inf")).max())
    pairs, entries = pair_gradients(model, batch).totals, pair_entries(wanted)
    scale = torch.stack([entries[:, 0], entries[:, 1], (entries[:, 0] * entries[:, 1]).sqrt()], 1)
    return max(full, float(((pairs - entries).abs() / scale).nan_to_num(float("inf")).max()))
