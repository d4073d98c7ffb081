"""Random architectures against plain autograd, in the size of CI; ``make trust NIGHTLY=1`` tries ten times as many."""

from __future__ import annotations

from random import Random

import pytest
import torch
from trust import networks

from dyn_probe import row_gram


def test_random_architectures_are_exact_or_refused() -> None:
    tally = networks.try_networks(30, seed=3)
    assert tally.holds, tally.failures
    assert int(tally.facts["exact"]) > 15


def test_a_wrong_number_and_a_needless_refusal_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(model: torch.nn.Module, batch: networks.PairBatch, wanted: torch.Tensor) -> float:
        got = row_gram(model, batch)
        got[0, 0] *= 1 + 1e-6
        return networks.relative(got, wanted)

    monkeypatch.setattr(networks, "MEASURES", {"row_gram": off})
    monkeypatch.setattr(networks, "REFUSED", ())
    tally = networks.try_networks(30, seed=3)
    assert tally.zero["wrong numbers"] > 10 and tally.zero["refused without need"] > 0


@pytest.mark.parametrize("name", ["scalar", "a bias that is a norm's scale", "an embedding that is a linear weight"])
def test_a_block_alone_is_exact(name: str) -> None:
    torch.manual_seed(0)
    model = networks.Network(Random(1))
    model.requires_grad_(True)
    model.blocks = torch.nn.ModuleList([networks.BLOCKS[name](model.embed.embedding_dim)]).double()
    batch = networks.random_batch(Random(2))
    wanted = networks.slow_gram(model, batch)
    for measure, run in networks.MEASURES.items():
        assert run(model, batch, wanted) <= networks.TOLERANCES[measure], measure
