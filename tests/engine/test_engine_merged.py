"""The sum of all rows from fewer positions: shared prompts once, no padding, and only where the tensors allow it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from exactness import take_alone
from families import make_model
from test_engine_one_pass import autograd, error, one_pass
from test_engine_prefix import long_prompts
from transformers import LlamaConfig, LlamaForCausalLM

from dyn_probe import PairBatch, sequence_logps
from dyn_probe.engine import factors, products
from dyn_probe.engine.factors import Outer
from dyn_probe.engine.layout import Span
from dyn_probe.engine.recording import Recording
from dyn_probe.engine.routes import merged
from dyn_probe.engine.routes.rates import Rates

pytestmark = pytest.mark.usefixtures("double_everywhere")
SPANS = (Span(0, 9, 0, 12, 5), Span(2, 12, 2, 7, 3), Span(1, 12, 0, 12, 0))
"""Padding on the right, on both sides, on the left; the last pair shares nothing."""


@pytest.fixture
def gathering_costs_nothing(monkeypatch):
    monkeypatch.setattr(merged, "CPU", Rates(1.0, 1e12))


def use(transposed=False) -> Outer:
    """Three pairs of 12 positions, with gradients where ``SPANS`` has tokens."""
    g = torch.Generator().manual_seed(4)
    inputs, outputs = (torch.randn(6, 12, width, generator=g, dtype=torch.float64) for width in (7, 5))
    for i, span in enumerate(SPANS):
        shared = slice(span.start_chosen, span.start_chosen + span.shared)
        inputs[i + 3, shared] = inputs[i, shared]
        for row, start, end in (
            (i, span.start_chosen, span.end_chosen),
            (i + 3, span.start_rejected, span.end_rejected),
        ):
            outputs[row, :start] = 0
            outputs[row, end:] = 0
    return Outer(outputs, inputs, transposed, SPANS)


def plain(one: Outer, weights=None) -> torch.Tensor:
    weights = torch.ones(one.rows, dtype=torch.float64) if weights is None else weights
    total = torch.einsum("r,rtq,rtp->qp", weights, one.grads, one.inputs)
    return total.T if one.transposed else total


@pytest.mark.parametrize("transposed", [False, True])
def test_the_sum_is_that_of_every_position(transposed, gathering_costs_nothing):
    one = use(transposed)
    inputs, outputs = merged.merged(one.inputs, one.grads, one.spans)
    assert len(inputs) == len(outputs) == sum((9 + 12 - 5, 10 + 5 - 3, 11 + 12))
    torch.testing.assert_close(one.product(one.grads), plain(one), rtol=1e-13, atol=1e-13)
    weights = torch.linspace(-2, 3, 6, dtype=torch.float64)
    shape = plain(one).shape
    torch.testing.assert_close(one.weighted(weights, None, shape), plain(one, weights), rtol=1e-13, atol=1e-13)
    assert merged.fewer(SPANS, 12, 7, 5) == len(inputs)


def test_the_shorter_sum_would_be_caught(gathering_costs_nothing, monkeypatch):
    one = use()
    honest = merged.positions(SPANS, 12)
    monkeypatch.setattr(merged, "positions", lambda *_: replace(honest, at=honest.at + 1))
    assert float((one.product(one.grads) - plain(one)).norm() / plain(one).norm()) > 5e-3


@pytest.mark.parametrize("other", ["a prompt's inputs", "a gradient in the padding", "an infinite input there"])
def test_every_position_is_taken_where_the_tensors_are_not_as_the_spans_say(other, gathering_costs_nothing):
    one = use()
    if other == "a prompt's inputs":
        one.inputs[3, 4] += 1e-9
    elif other == "a gradient in the padding":
        one.grads[0, 10] = 1e-9
    else:
        one.inputs[0, 10, 2] = float("inf")
    assert merged.merged(one.inputs, one.grads, one.spans) is None
    found = one.product(one.grads)
    assert bool(found.isfinite().all()) == (other != "an infinite input there")
    torch.testing.assert_close(found, plain(one), rtol=1e-13, atol=1e-13, equal_nan=True)


def test_where_gathering_costs_more_than_it_saves_every_position_is_taken():
    """An adapter's few columns; rows that share nothing and have no padding."""
    half, nothing = (Span(0, 128, 0, 128, 64),) * 4, (Span(0, 128, 0, 128, 0),) * 4
    assert merged.fewer(half, 128, 768, 3072) == 4 * 192
    assert merged.fewer(half, 128, 768, 16) == merged.fewer(nothing, 128, 768, 3072) == 8 * 128
    a, b = torch.zeros(8, 128, 768), torch.zeros(8, 128, 16)
    assert merged.merged(a, b, half) is None


def test_half_precision_is_added_in_float32(gathering_costs_nothing):
    """Two gradients on a shared prompt are not rounded to eight bits when they are added."""
    one = use()
    half = replace(one, grads=one.grads.bfloat16(), inputs=one.inputs.bfloat16())
    wanted = plain(replace(one, grads=half.grads.double(), inputs=half.inputs.double()))
    found = half.product(half.grads)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_rows_that_are_no_pairs_are_left_alone(gathering_costs_nothing):
    """The tokens of a response as rows, with the inputs of one."""
    one = use()
    assert merged.merged(one.inputs[:1], one.grads, one.spans) is None
    assert merged.merged(one.inputs[:4], one.grads[:4], one.spans) is None


@pytest.fixture
def lengths(gathering_costs_nothing, monkeypatch):
    """Positions of every sum; None where all were taken."""
    take_alone(monkeypatch)
    monkeypatch.setattr(products, "cheaper_by_tokens", lambda *_: True)
    seen, honest = [], merged.merged

    def counted(inputs, outputs, spans):
        found = honest(inputs, outputs, spans)
        seen.append(None if found is None else len(found[0]))
        return found

    monkeypatch.setattr(factors, "merged", counted)
    return seen


def needed(side="right") -> int:
    """Tokens of ``long_prompts``, prompts once where a pair's begin at one position."""
    tokens, prompts = int(long_prompts(side).attention_mask.sum()), 20 + 22 + 24
    return tokens - (prompts if side == "right" else 0)


@pytest.mark.parametrize("options", [{}, {"gram_every": 1}], ids=["pairs", "full Gram"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_training_in_one_pass_takes_it(family, side, options, lengths):
    model, batch = make_model(family), long_prompts(side)
    wanted = autograd(model, batch)
    assert error(one_pass(model, batch, **options)[0], wanted) <= 1e-12
    assert lengths.count(needed(side)) > 5


def test_dropout_makes_prompts_differ(lengths):
    """Each row has inputs of its own then, and padding that is dropped out all the same adds nothing."""
    torch.manual_seed(0)
    one_pass(make_model("gpt2", embd_pdrop=0.3), long_prompts())
    assert lengths and set(lengths) == {None}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weighted_sums_of_measured_rows_take_it(family, lengths):
    """What a pairwise-normalised update adds up, against plain autograd of the same weighted loss."""
    model, batch = make_model(family), long_prompts()
    weights = torch.linspace(-1, 2, 6, dtype=torch.float64)
    twin = copy.deepcopy(model)
    (sequence_logps(twin, batch) * weights).sum().backward()
    with Recording(model) as recording:
        recording.watch(sequence_logps(model, batch))
        recording.measure()
        recording.reweight(weights)
    found, wanted = ({name: p.grad for name, p in m.named_parameters()} for m in (model, twin))
    assert error(found, wanted) <= 1e-12
    assert lengths.count(needed()) > 5


def test_a_step_of_usual_size_chooses_it_by_its_cost(monkeypatch):
    """Nothing is forced here: prompts of 48 tokens and answers of 16, a width of 384."""
    seen, honest = [], merged.merged
    monkeypatch.setattr(factors, "merged", lambda *given: seen.append(honest(*given)) or seen[-1])
    torch.manual_seed(0)
    sizes = dict(hidden_size=384, intermediate_size=768, num_attention_heads=4, num_key_value_heads=4)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=96, num_hidden_layers=2, **sizes)).float()
    ids = torch.randint(5, 90, (8, 64))
    ids[4:, :48] = ids[:4, :48]
    response = torch.zeros_like(ids)
    response[:, 48:] = 1
    batch = PairBatch(ids, torch.ones_like(ids), response)
    wanted = autograd(model, batch)
    assert error(one_pass(model, batch)[0], wanted) <= 1e-5
    assert [len(one[0]) for one in seen if one is not None].count(4 * (48 + 16 + 16)) > 3
