"""Shared prompts: the shorter way through a pair's products is exact, and is taken only where the data allow it."""

from __future__ import annotations

import pytest
import torch
from families import VOCAB, double_throughout, make_model
from reference.same_graph import gram_of

from dyn_probe import PairBatch, pair_gradients, sequence_logps
from dyn_probe.capture.spans import find_spans
from dyn_probe.gram import linear, prefix
from dyn_probe.recording import pair_entries


@pytest.fixture(autouse=True)
def really_double():
    with double_throughout():
        yield


def long_prompts(side="right", pairs=3, width=44):
    """Prompts of 20 to 24 tokens, responses of 5 to 12."""
    g = torch.Generator().manual_seed(3)
    ids = torch.zeros(2 * pairs, width, dtype=torch.long)
    mask, response = torch.zeros_like(ids), torch.zeros_like(ids)
    for i in range(pairs):
        prompt = torch.randint(0, VOCAB, (20 + 2 * i,), generator=g)
        for row in (i, i + pairs):
            answer = torch.randint(0, VOCAB, (int(torch.randint(5, 13, (1,), generator=g)),), generator=g)
            tokens = torch.cat([prompt, answer])
            start = 0 if side == "right" else width - len(tokens)
            ids[row, start : start + len(tokens)] = tokens
            mask[row, start : start + len(tokens)] = 1
            response[row, start + len(prompt) : start + len(tokens)] = 1
    return PairBatch(ids, mask, response)


def error_of(model, batch) -> float:
    wanted = pair_entries(gram_of(sequence_logps(model, batch), model))
    got = torch.stack(list(pair_gradients(model, batch).by_parameter.values())).sum(0)
    scale = torch.stack([wanted[:, 0], wanted[:, 1], (wanted[:, 0] * wanted[:, 1]).sqrt()], 1)
    return float(((got - wanted).abs() / scale).nan_to_num(float("inf")).max())


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "falcon"])
def test_shared_prompts_are_exact(family, side, monkeypatch):
    monkeypatch.setattr(linear, "cheaper_by_tokens", lambda *_: True)
    assert error_of(make_model(family), long_prompts(side)) <= 1e-9


def test_the_shorter_way_is_taken_and_would_be_caught(monkeypatch):
    monkeypatch.setattr(linear, "cheaper_by_tokens", lambda *_: True)
    seen = []
    honest = prefix._products

    def wrong(*arguments):
        seen.append(arguments[-1])
        ww, ll, wl = honest(*arguments)
        return (ww * 1.01 if arguments[-1] else ww), ll, wl

    monkeypatch.setattr(prefix, "_products", wrong)
    assert error_of(make_model("llama"), long_prompts()) > 1e-4
    assert 20 in seen


def test_dropout_makes_prompts_differ(monkeypatch):
    """Under dropout the two rows see other inputs at the same tokens; the shared way must not be taken."""
    monkeypatch.setattr(linear, "cheaper_by_tokens", lambda *_: True)
    seen = []
    honest = prefix._products
    monkeypatch.setattr(prefix, "_products", lambda *a: seen.append(a[-1]) or honest(*a))
    pair_gradients(make_model("gpt2", embd_pdrop=0.3), long_prompts())
    assert set(seen) == {0}


def test_spans():
    batch = long_prompts("left", pairs=1)
    (span,) = find_spans(batch.input_ids, batch.attention_mask)
    lengths = batch.attention_mask.sum(1).tolist()
    assert (span.end_chosen - span.start_chosen, span.end_rejected - span.start_rejected) == tuple(lengths)
    (span,) = find_spans(*(long_prompts("right", pairs=1).input_ids, long_prompts("right", pairs=1).attention_mask))
    assert span.shared == 20 and span.start_chosen == 0
    assert find_spans(None, None) == () and find_spans(torch.rand(2, 3, 4), None) == ()
