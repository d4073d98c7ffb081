"""A loop may say things in its own order, and rows reach the writer all the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from families import make_batch, make_model
from torch import nn

from dyn_probe import Probe, UnsupportedUse, load_trace, sequence_logps


def step(probe: Probe, model, batch, number: int) -> None:
    with probe.step(number, batch.ids, learning_rate=1.0):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        logps.mean().backward()


def test_what_is_logged_before_a_step_holds_nothing_back(tmp_path):
    model, batch = make_model("gpt2", dtype=torch.float32), make_batch()
    with Probe(model, tmp_path / "run", certify=False) as probe:
        for number in range(30):
            probe.log(number, loss=float(number))
            step(probe, model, batch, number)
            assert len(probe.fresh) == batch.pairs
    trace = load_trace(tmp_path / "run")
    assert list(trace.steps["step"]) == list(range(30)) and list(trace.steps["loss"]) == list(range(30))
    assert len(trace.pairs) == 30 * batch.pairs


class Outside(nn.Module):
    """Uses its head's weight outside the head once it is told to."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model, self.outside = model, False

    def forward(self, *args, **kwargs):
        out = self.model(*args, **kwargs)
        if self.outside:
            wide = self.model.transformer.wte.weight
            out.logits = out.logits + F.linear(self.model.transformer.wte(kwargs["input_ids"]), wide)
        return out


def test_a_use_that_begins_later_is_refused_where_it_begins():
    """Every recorded graph is looked at, not the first one alone."""
    model, batch = Outside(make_model("gpt2", dtype=torch.float32, tie_word_embeddings=True)), make_batch()
    probe = Probe(model, certify=False)
    step(probe, model, batch, 0)
    model.outside = True
    with pytest.raises(UnsupportedUse, match=r"used 3 times, 2 of them|outside"):
        step(probe, model, batch, 1)
