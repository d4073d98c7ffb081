"""Model × setting × relative error against the float64 slow twin, over every family.

Errors of norms are relative to the norm squared, errors of inner products to the product of the two norms; the largest
over the batch's full Gram is asserted. The table is printed at the end.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exactness import LIMITS, SETTINGS, certified_error, record, relative_error, take_alone, true_gram
from families import DROPOUT_ON, FAMILIES, make_batch, make_model
from reference.same_graph import gram_of

from dyn_probe import pair_gradients, row_gram, sequence_logps
from dyn_probe.engine import products
from dyn_probe.engine.answer import pair_entries
from dyn_probe.engine.kinds import linear
from dyn_probe.engine.recording import Recording

TABLE: list[tuple[str, str, float]] = []


pytestmark = pytest.mark.usefixtures("double_everywhere")


def check(family: str, setting: str, model, batch, dtype=torch.float64, autocast: bool = False) -> None:
    """The full Gram and the pair entries, from a training backward, against the slow twin."""
    wanted = true_gram(model, batch)
    full = relative_error(record(model, batch, True, autocast).gram, wanted)
    pairs = record(model, batch, False, autocast).values.sum(0)
    entries = pair_entries(wanted)
    scale = torch.stack([entries[:, 0], entries[:, 1], (entries[:, 0] * entries[:, 1]).sqrt()], 1)
    error = max(full, float(((pairs - entries).abs() / scale).nan_to_num(float("inf")).max()))
    TABLE.append((family, setting, error))
    assert error <= LIMITS[torch.bfloat16 if autocast else dtype], (family, setting, error)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_float64(family, setting):
    make, batch = SETTINGS[setting]
    check(family, f"float64, {setting}", make(family), make_batch(**batch))


ROUTES = {
    "token Grams": dict(tokens=True, spans=False, wide=False),
    "blocks": dict(tokens=False, spans=True, wide=False),
    "shared prompts": dict(tokens=True, spans=True, wide=False),
    "wide head": dict(tokens=True, spans=True, wide=True),
    "few launches": dict(tokens=False, spans=True, wide=False, together=True),
}
"""The last one is how models as small as these are reduced; the others are forced to be taken use by use."""


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_every_route_is_exact(family, tie, route, monkeypatch):
    chosen = ROUTES[route]
    monkeypatch.setattr(products, "cheaper_by_tokens", lambda *_: chosen["tokens"])
    if not chosen.get("together"):
        take_alone(monkeypatch)
    if not chosen["spans"]:
        monkeypatch.setattr("dyn_probe.engine.layout.find_spans", lambda *_: ())
    if chosen["wide"]:
        monkeypatch.setattr(linear, "WIDE", 64)
    check(family, f"float64, {route}", make_model(family, tie_word_embeddings=tie), make_batch())


@pytest.mark.parametrize("family", FAMILIES)
def test_float32(family):
    check(
        family,
        "float32",
        make_model(family, torch.float32, tie_word_embeddings=True),
        make_batch(),
        torch.float32,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(family):
    """At most 2e-2 from the float64 twin, and about as far from it as plain autograd in bfloat16 is."""
    model, batch = make_model(family, torch.bfloat16, noise=0.05, tie_word_embeddings=True), make_batch()
    check(family, "bfloat16", model, batch, torch.bfloat16)
    plain = relative_error(gram_of(sequence_logps(model, batch), model), true_gram(model, batch))
    assert TABLE[-1][2] <= 1.5 * plain + 5e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_autocast(family):
    model = make_model(family, torch.float32, tie_word_embeddings=True)
    check(family, "float32 under bfloat16 autocast", model, make_batch(), torch.float32, autocast=True)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing(family, reentrant):
    model, batch = make_model(family, tie_word_embeddings=True), make_batch()
    wanted = true_gram(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    error = relative_error(record(model, batch, True).gram, wanted)
    alone = relative_error(row_gram(model, batch), wanted)
    TABLE.append((family, f"float64, {'' if reentrant else 'non-'}reentrant checkpointing", max(error, alone)))
    assert max(error, alone) <= 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_training_loop(family):
    model, batch = make_model(family, tie_word_embeddings=True), make_batch()
    wanted = true_gram(model, batch)
    found, entries = pair_gradients(model, batch), pair_entries(wanted)
    assert all(p.grad is None for p in model.parameters())
    product = entries[:, 0].sqrt() * entries[:, 1].sqrt()
    assert relative_error(row_gram(model, batch), wanted) <= 1e-9
    assert ((found.norm_chosen - entries[:, 0].sqrt()).abs() / entries[:, 0].sqrt()).max() <= 1e-9
    assert ((found.inner - entries[:, 2]).abs() / product).max() <= 1e-9
    assert ((found.cosine - entries[:, 2] / product).abs()).max() <= 1e-9


@pytest.mark.parametrize("family", DROPOUT_ON)
def test_dropout_on(family):
    model, batch = make_model(family, **DROPOUT_ON[family]), make_batch()
    with Recording(model, full=True) as recording:
        logps = sequence_logps(model, batch)
        recording.watch(logps)
        with recording.quiet():
            wanted = gram_of(logps, model)
        half = len(logps) // 2
        (-F.logsigmoid(0.1 * (logps[:half] - logps[half:]))).mean().backward()
        error = relative_error(recording.result().gram, wanted)
    TABLE.append((family, "float64, dropout on", error))
    assert error <= 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recorder_certifies_itself(family):
    assert certified_error(make_model(family, tie_word_embeddings=True)) <= 1e-9


def test_the_table_is_printed(capsys):
    assert TABLE, "run the whole module: the table collects what the other tests measured"
    with capsys.disabled():
        print("\n\nmodel        setting                                  relative error")
        for family, setting, error in TABLE:
            print(f"{family:<12} {setting:<40} {error:.1e}")
