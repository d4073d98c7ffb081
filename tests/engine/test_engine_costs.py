"""Which route is taken for what shape, at a device's rates."""

from __future__ import annotations

import json

import pytest
import torch
from families import make_batch, make_model

from dyn_probe import Probe, sequence_logps
from dyn_probe.engine import products
from dyn_probe.engine.factors import Outer
from dyn_probe.engine.layout import Span
from dyn_probe.engine.routes import costs, rates
from dyn_probe.engine.routes.blocks import by_blocks
from dyn_probe.engine.routes.rates import CPU, Rates

A_GPU = Rates(3.5e14, 1.1e12)


def linear(positions, p, q, pairs=8):
    """A use without numbers in it."""
    outputs, inputs = (torch.empty(2 * pairs, positions, n, dtype=torch.bfloat16, device="meta") for n in (p, q))
    return Outer(outputs, inputs)


@pytest.fixture
def gpu_rates(monkeypatch):
    monkeypatch.setattr(rates, "USED", {(torch.device("meta"), torch.bfloat16): A_GPU})


@pytest.mark.parametrize(
    ("pairs", "positions", "p", "q", "tokens"),
    [(8, 512, 8192, 2048, True), (8, 512, 512, 2048, False), (4, 128, 8192, 2048, False), (8, 4096, 8192, 2048, False)],
)
def test_short_rows_beside_a_large_weight_go_by_token_grams(pairs, positions, p, q, tokens, gpu_rates):
    assert costs.fused_is_dearer(linear(positions, p, q, pairs), pairs) is tokens


def test_rates_decide(gpu_rates, monkeypatch):
    use = linear(512, 8192, 2048)
    assert costs.cheaper_by_tokens(use, use, 8)
    monkeypatch.setitem(
        rates.USED, (torch.device("meta"), torch.bfloat16), Rates(3.5e14, 1e9)
    )  # moving numbers is very slow
    assert not costs.fused_is_dearer(use, 8)


def test_a_cpu_is_not_timed_so_that_a_run_takes_the_same_routes_again(monkeypatch):
    monkeypatch.setattr(rates, "USED", {})
    assert rates.rates_of(torch.zeros(1)) is CPU and round(CPU.entry) == 12


def on_cpu(positions, p, q, spans=()):
    """A use of four pairs."""
    outputs, inputs = (torch.empty(8, positions, n) for n in (q, p))
    return Outer(outputs, inputs, spans=spans)


def test_a_shared_prompt_and_padding_make_token_grams_cheaper():
    alone = on_cpu(512, 768, 3072)
    half, same = (on_cpu(512, 768, 3072, (span,) * 4) for span in (Span(0, 512, 0, 512, 256), Span(0, 512, 0, 512, 0)))
    padded = on_cpu(512, 768, 3072, (Span(256, 512, 256, 512, 0),) * 4)
    cost = [costs.tokens_cost(one, one, 4, CPU.entry) for one in (alone, same, half, padded)]
    assert cost[0] == cost[1] and cost[2] == pytest.approx(2 / 3 * cost[0]) and cost[3] == pytest.approx(cost[0] / 4)
    assert [costs.cheaper_by_tokens(one, one, 4) for one in (alone, half, padded)] == [False, True, True]


def test_where_the_sum_is_wanted_too_blocks_spare_its_product():
    short, long = (on_cpu(n, 768, 3072, (Span(0, n, 0, n, n // 2),) * 4) for n in (128, 512))
    assert costs.cheaper_by_tokens(short, short, 4) and costs.cheaper_by_tokens(long, long, 4)
    assert costs.cheaper_by_tokens(short, short, 4, True) and not costs.cheaper_by_tokens(long, long, 4, True)


def test_a_shared_prompt_makes_the_sum_beside_token_grams_cheaper():
    shared, alone = (on_cpu(192, 768, 3072, (Span(0, 192, 0, 192, s),) * 4) for s in (96, 0))
    products = 8 * 192 * 768 * 3072
    assert costs.sum_cost(alone) == costs.sum_cost(on_cpu(192, 768, 3072)) == products
    assert costs.sum_cost(shared) == 0.75 * (products + CPU.entry * 8 * 192 * (768 + 3072))
    assert costs.cheaper_by_tokens(shared, shared, 4, True) and not costs.cheaper_by_tokens(alone, alone, 4, True)


@pytest.mark.parametrize("given", [None, Rates(1.0, 1e12)], ids=["the usual ones", "others"])
def test_the_rates_that_routes_went_by_stand_in_the_run(given, tmp_path, monkeypatch):
    """Where moving numbers costs nothing, gradients of small weights are written down in place of token Grams."""
    here = (torch.device("cpu"), torch.float32)
    monkeypatch.setattr(rates, "USED", {} if given is None else {here: given})
    monkeypatch.setattr(costs, "LAUNCHED", {"cpu": 0})
    taken = []
    monkeypatch.setattr(
        products, "by_blocks", lambda *of, **named: (taken.append("blocks"), by_blocks(*of, **named))[1]
    )
    model, batch = make_model("llama", dtype=torch.float32), make_batch()
    with Probe(model, tmp_path / "run", certify=False) as probe, probe.step(0):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        logps.sum().backward()
    found = json.loads((tmp_path / "run" / "run.json").read_text())["rates"]
    assert found == {"cpu float32": {"products": (given or CPU).products, "entries": (given or CPU).entries}}
    assert bool(taken) is (given is not None)
