"""Small uses are reduced together: which of them wait for each other, and that all of them come out."""

from __future__ import annotations

import pytest
import torch
from exactness import error_of
from families import make_batch, make_model

from dyn_probe.engine import together
from dyn_probe.engine.assembly import Assembly
from dyn_probe.engine.coverage import backward_only, explained
from dyn_probe.engine.tap import Capture
from dyn_probe.pairs import sequence_logps

pytestmark = pytest.mark.usefixtures("double_everywhere")


@pytest.fixture
def stacks(monkeypatch):
    """The modules of every stack that is reduced."""
    found: list[list[torch.nn.Module]] = []
    honest = Assembly._take_stacked

    def taken(self, stacked, calls):
        found.append([call.module for call in calls])
        return honest(self, stacked, calls)

    monkeypatch.setattr(Assembly, "_take_stacked", taken)
    return found


def measure(model) -> None:
    batch = make_batch()
    with Capture(model, lambda *arrived: assembly.receive(*arrived)) as capture, torch.enable_grad():
        logps = sequence_logps(model, batch)
        graph = explained(capture, logps)
        assembly = Assembly(capture)
        backward_only(logps.sum(), capture, graph.reentrant)
    assembly.finish()


def test_uses_of_one_shape_are_one_stack(stacks):
    model = make_model("llama", tie_word_embeddings=False)
    measure(model)
    layers = len(model.model.layers)
    assert layers >= 2
    assert any(
        {type(m).__name__ for m in stack} == {"LlamaRMSNorm"} and len(stack) == 2 * layers + 1 for stack in stacks
    )
    down = [stack for stack in stacks if model.model.layers[0].mlp.down_proj in stack]
    assert len(down) == 1
    assert {layer.mlp.down_proj for layer in model.model.layers} <= set(down[0])


def test_norms_that_compute_otherwise_are_not(stacks):
    model = make_model("gpt2")
    model.transformer.ln_f.eps = 1e-2
    measure(model)
    assert [model.transformer.ln_f] in stacks
    assert error_of(model, make_batch()) <= 1e-9


def test_weights_stored_otherwise_are_not(stacks):
    model = make_model("gpt2", tie_word_embeddings=False)
    block = model.transformer.h[0].attn
    width = model.config.n_embd
    plain = torch.nn.Linear(width, width).double()
    with torch.no_grad():
        plain.weight.copy_(block.c_proj.weight.T)
        plain.bias.copy_(block.c_proj.bias)
    block.c_proj = plain
    measure(model)
    assert [plain] in stacks
    assert error_of(model, make_batch()) <= 1e-9


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma2"])
@pytest.mark.parametrize("waiting", [0, 10000])
def test_stacks_that_grow_too_large_are_reduced_early(family, waiting, monkeypatch, stacks):
    monkeypatch.setattr(together, "SMALL", {"cpu": together.Limits(1 << 19, waiting)})
    model = make_model(family)
    assert error_of(model, make_batch()) <= 1e-9
    assert (max(map(len, stacks)) == 1) == (waiting == 0)


def test_large_uses_do_not_wait(monkeypatch, stacks):
    monkeypatch.setattr(together, "SMALL", {"cpu": together.Limits(0, 1 << 22)})
    assert error_of(make_model("llama"), make_batch()) <= 1e-9
    assert not stacks


def test_rows_of_a_stack_that_are_mixed_up_would_be_caught(monkeypatch):
    honest = together._stacked

    def mixed(uses):
        call, saved, grads = honest(uses)
        return call, saved, [grad.flip(0) for grad in grads]

    monkeypatch.setattr(together, "_stacked", mixed)
    assert error_of(make_model("llama"), make_batch()) > 1e-3
