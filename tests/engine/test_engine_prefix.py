"""Shared prompts: the shorter way through a pair's products is exact, and is taken only where the data allow it."""

from __future__ import annotations

import pytest
import torch
from exactness import take_alone
from families import VOCAB, make_model
from reference.gradients import row_gradients
from reference.same_graph import gram_of

from dyn_probe import PairBatch, pair_gradients, sequence_logps
from dyn_probe.engine import products
from dyn_probe.engine.answer import pair_entries
from dyn_probe.engine.layout import Span, find_spans
from dyn_probe.engine.recording import Recording
from dyn_probe.engine.routes import prefix
from dyn_probe.engine.routes.prefix import hull, work

pytestmark = pytest.mark.usefixtures("double_everywhere")


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
    take_alone(monkeypatch)
    monkeypatch.setattr(products, "cheaper_by_tokens", lambda *_: True)
    assert error_of(make_model(family), long_prompts(side)) <= 1e-9


@pytest.fixture
def taken(monkeypatch):
    """``(pairs in one product, shared positions)`` of every product."""
    take_alone(monkeypatch)
    monkeypatch.setattr(products, "cheaper_by_tokens", lambda *_: True)
    seen, honest = [], prefix._agreed

    def agreed(chosen, *rest):
        seen.append((len(chosen), honest(chosen, *rest)))
        return seen[-1][1]

    monkeypatch.setattr(prefix, "_agreed", agreed)
    return seen


def test_the_shorter_way_is_taken_and_would_be_caught(taken, monkeypatch):
    honest = prefix._squared
    monkeypatch.setattr(prefix, "_squared", lambda a, b, square: honest(a, b, square * 1.01))
    assert error_of(make_model("llama"), long_prompts()) > 1e-4
    assert (3, 20) in taken


@pytest.mark.parametrize("together", [0.0, float("inf")])
def test_pairs_one_by_one_and_all_together_are_exact(taken, together, monkeypatch):
    monkeypatch.setattr(prefix, "TOGETHER", together)
    assert error_of(make_model("gpt2"), long_prompts()) <= 1e-9
    assert set(taken) == ({(3, 20)} if together else {(1, 20), (1, 22), (1, 24)})


def test_pairs_of_very_unequal_lengths_go_one_by_one():
    short, long = Span(0, 20, 0, 24, 8), Span(0, 200, 0, 180, 100)
    assert hull([short, long]) == Span(0, 200, 0, 180, 8)
    assert hull([Span(3, 9, 3, 8, 4), Span(1, 9, 1, 9, 5)]) == Span(1, 9, 1, 9, 5)
    assert hull([Span(3, 9, 3, 8, 4), Span(1, 9, 2, 9, 0)]).shared == 0
    assert 4 * work(hull([short] * 3 + [long])) > prefix.TOGETHER * (3 * work(short) + work(long))


def test_dropout_makes_prompts_differ(taken):
    """Under dropout the two rows see other inputs at the same tokens; the shared way must not be taken."""
    pair_gradients(make_model("gpt2", embd_pdrop=0.3), long_prompts())
    assert {shared for _, shared in taken} == {0}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "falcon"])
def test_a_direction_meets_a_shared_prompt_once(family, side, monkeypatch):
    """The inputs of the prompt are multiplied for one of the two rows, and the answer is full gradients'."""
    positions, flat = [], prefix._flat_dot
    monkeypatch.setattr(prefix, "_flat_dot", lambda a, b: (positions.append(a.shape[1]), flat(a, b))[1])
    model, batch = make_model(family), long_prompts(side)
    rows = row_gradients(model, batch.input_ids, batch.attention_mask, batch.response_mask)
    with Recording(model, hold=True) as recording:
        logps = sequence_logps(model, batch)
        recording.watch(logps)
        logps.sum().backward()
        recording.result()
        held = recording.held()
    g = torch.Generator().manual_seed(9)
    for name, values in rows.items():
        direction = torch.randn(model.get_parameter(name).shape, generator=g, dtype=torch.float64)
        wanted = values @ direction.flatten()
        assert float((held.along(name, direction) - wanted).abs().max()) <= 1e-9 * float(wanted.abs().max() + 1e-30)
    assert (20 in positions) == (side == "right")  # left padding: the prompts of the three pairs begin apart


def test_spans():
    batch = long_prompts("left", pairs=1)
    (span,) = find_spans(batch.input_ids, batch.attention_mask)
    lengths = batch.attention_mask.sum(1).tolist()
    assert (span.end_chosen - span.start_chosen, span.end_rejected - span.start_rejected) == tuple(lengths)
    (span,) = find_spans(*(long_prompts("right", pairs=1).input_ids, long_prompts("right", pairs=1).attention_mask))
    assert span.shared == 20 and span.start_chosen == 0
    assert find_spans(None, None) == () and find_spans(torch.rand(2, 3, 4), None) == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool])
def test_spans_are_those_of_the_mask_in_every_type(dtype):
    batch = long_prompts("left")
    wanted = find_spans(batch.input_ids, batch.attention_mask)
    assert wanted and find_spans(batch.input_ids, batch.attention_mask.to(dtype)) == wanted
    small = batch.input_ids % 50
    assert find_spans(small.bfloat16(), batch.attention_mask) == find_spans(small, batch.attention_mask)
