"""A shielded probe: whatever goes wrong in its hooks, the training goes on bitwise as without it."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from families import make_batch, make_model

from dyn_probe import Probe, sequence_logps
from dyn_probe.engine import tap
from dyn_probe.engine.kinds import linear
from dyn_probe.engine.recording import Recording
from dyn_probe.metric import watch


def broken(*args, **kwargs):
    raise RuntimeError("broken on purpose")


def one_step(probe):
    """The weights after a step in which the probe may fail."""
    model, batch = probe.model, make_batch(seed=2)
    with suppress(RuntimeError), probe.step(0, pair_ids=batch.ids):
        logps = sequence_logps(model, batch)
        with suppress(RuntimeError):
            probe.pairs(logps)
        half = batch.pairs
        (logps[half:] - logps[:half]).mean().backward()
    probe.optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def probe_of(checkpointing="none", **options):
    model = make_model("llama").train()
    if checkpointing != "none":
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Probe(model, optimizer=optimizer, metric_every=1, certify=False, shielded=True, **options)


PLACES = {
    "forward": (tap, "explain"),
    "backward": (linear, "live"),
    "gradient": (Recording, "_unusable"),
    "step begins": (watch.StepWatch, "begin"),
    "step ends": (watch.StepWatch, "_ends"),
}


@pytest.mark.parametrize("checkpointing", ["none", "plain", "reentrant"])
@pytest.mark.parametrize("place", PLACES)
def test_training_goes_on_where_a_hook_fails(place, checkpointing, monkeypatch):
    expected = one_step(probe_of(checkpointing))
    if place == "backward":
        monkeypatch.setattr(linear, "WIDE", 1)
    monkeypatch.setattr(*PLACES[place], broken)
    probe = probe_of(checkpointing)
    found = one_step(probe)
    assert "broken on purpose" in str(probe.failure)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_a_shield_the_error_comes_through(monkeypatch):
    monkeypatch.setattr("dyn_probe.engine.tap.explain", broken)
    model, batch = make_model("llama"), make_batch(seed=2)
    with pytest.raises(RuntimeError, match="on purpose"), Probe(model).step(0):
        sequence_logps(model, batch)
