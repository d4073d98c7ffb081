"""What is known of a model is read again where the model has changed, and only there."""

from __future__ import annotations

import pytest
import torch
from families import make_model
from torch import nn

from dyn_probe.engine import survey
from dyn_probe.engine.survey import Survey


@pytest.fixture
def known() -> Survey:
    return Survey(make_model("llama", tie_word_embeddings=False))


def names(known: Survey) -> set[str]:
    """Trained parameters, as the uses have them."""
    return {name for use in known.uses for name in use.parameters.values()}


def test_nothing_is_read_twice(known, monkeypatch):
    before = known.uses
    monkeypatch.setattr(survey, "find_uses", pytest.fail)
    known.renew()
    with torch.no_grad():
        for p in known.model.parameters():
            p.add_(1)
    known.renew()
    assert known.uses is before


def test_frozen_and_unfrozen_parameters_are_noticed(known):
    everything = names(known)
    known.model.lm_head.weight.requires_grad_(False)
    known.renew()
    assert names(known) == set(known.trained) == everything - {"lm_head.weight"}
    known.model.lm_head.weight.requires_grad_(True)
    known.renew()
    assert names(known) == everything


def test_another_module_and_another_parameter_are_noticed(known):
    known.model.lm_head = nn.Linear(32, 7, bias=True).double()
    known.renew()
    assert "lm_head.bias" in known.trained and known.model.lm_head in [use.module for use in known.uses]
    other = nn.Parameter(torch.zeros_like(known.model.lm_head.weight))
    known.model.lm_head.weight = other
    known.renew()
    assert known.trained["lm_head.weight"] is other


def test_a_module_that_is_added_deep_inside_is_noticed(known):
    known.model.model.layers[1].mlp.extra = nn.Linear(3, 3)
    known.renew()
    assert "model.layers.1.mlp.extra.weight" in known.trained
