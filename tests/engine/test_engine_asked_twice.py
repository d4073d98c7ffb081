"""A refusal leaves no state behind: whoever asks twice is refused twice, in the same words, at every door."""

from __future__ import annotations

import pytest
import torch
from families import make_batch, make_model
from hand_written import Base, MixesRows, Outside, OwnExtraUse
from reference.same_graph import gram_of
from test_engine_refusals import WRONG, Checkpointed
from torch import nn

from dyn_probe import (
    BadInput,
    CertificationError,
    DynProbeError,
    Probe,
    UnsupportedUse,
    pair_gradients,
    row_gram,
    sequence_logps,
    token_gram,
    token_logps,
)

pytestmark = pytest.mark.usefixtures("double_everywhere")


class Picky(Base):
    """A module that does not run on one row."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.rand(16))

        def forward(self, x):
            if x.shape[0] == 1:
                raise ValueError("never alone")
            return torch.sin(x * self.w)

    def build(self):
        self.picky = self.Layer()

    def body(self, x):
        return self.picky(x)


class Random(Picky):
    """A hand-written module that draws random numbers."""

    class Layer(Picky.Layer):
        def forward(self, x):
            return torch.sin(x * self.w * torch.rand_like(x))


class Renormalised(Base):
    def build(self):
        self.embed = nn.Embedding(97, 16, max_norm=1.0)


class CalledTwiceUsedThrice(OwnExtraUse):
    def body(self, x):
        return super().body(self.table(x))


REFUSED = [*WRONG, Outside, MixesRows, Checkpointed, Picky, Random, Renormalised, OwnExtraUse, CalledTwiceUsedThrice]


def recorded(model, batch, probe=None):
    with (probe or Probe(model)).step(0, batch.ids) as probe:
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        logps.mean().backward()


DOORS = {"pair_gradients": pair_gradients, "row_gram": row_gram, "token_gram": token_gram, "Probe": recorded}


def refusal(ask, *arguments) -> str:
    with pytest.raises(DynProbeError) as caught:
        ask(*arguments)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize("first", DOORS)
@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_is_refused_once_is_refused_again_at_every_door(kind, first):
    model, batch = kind().train(), make_batch()
    said = [refusal(DOORS[first], model, batch) for _ in range(2)]
    assert said[0] == said[1] and said[0].startswith("UnsupportedUse")
    for door in DOORS.values():
        assert refusal(door, model, batch).startswith("UnsupportedUse")
    assert all(p.grad is None for p in model.parameters())
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("kind", [OwnExtraUse, CalledTwiceUsedThrice])
def test_a_model_that_is_put_right_is_measured(kind):
    model, batch = kind(), make_batch()
    refusal(row_gram, model, batch)
    model.extra = False
    wanted = gram_of(sequence_logps(model, batch), model)
    norms = wanted.diagonal().sqrt()
    for _ in range(2):
        assert float(((row_gram(model, batch) - wanted).abs() / (norms[:, None] * norms[None])).max()) <= 1e-9
    model.extra = True
    for _ in range(2):
        assert "table.weight: used" in refusal(row_gram, model, batch)


def test_a_module_whose_uses_depend_on_its_input_is_counted_every_time():
    """Experts that are met by no token are not used; what the last call met says nothing about the next."""

    class Experts(Base):
        class Layer(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.randn(4, 16, 16) / 4)

            def forward(self, x, ids):
                out = torch.zeros_like(x)
                for expert in torch.unique(ids % 4).tolist():
                    out = out + (ids % 4 == expert)[..., None] * torch.tanh(x @ self.w[expert])
                return out

        outside = False

        def build(self):
            self.experts = self.Layer()

        def forward(self, input_ids, attention_mask=None):
            x = self.embed(input_ids)
            y = self.experts(x, input_ids)
            return self.head(torch.cumsum(y + x @ self.experts.w[0] if self.outside else y, 1))

    model, few, many = Experts(), make_batch(seed=2), make_batch(seed=1)
    few.input_ids.copy_(few.input_ids // 4 * 4)
    for batch in (few, many, few):
        wanted = gram_of(sequence_logps(model, batch), model)
        assert float((row_gram(model, batch) - wanted).abs().max()) <= 1e-9 * float(wanted.abs().max())
    model.outside = True
    for batch in (few, many, few):
        assert "experts.w: used" in refusal(row_gram, model, batch)


def around(model, batch, probe):
    """A loss that reaches the model by another way than the recorded log-probabilities."""
    with probe.step(0, batch.ids):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        logps = token_logps(logits, batch).sum(1)
        probe.pairs(logps)
        (logps.mean() + logits.square().mean()).backward()


def given(change, **more):
    def ask(model, batch, probe):
        with probe.step(0, batch.ids):
            logps = sequence_logps(model, batch)
            probe.pairs(change(logps), **more)
            logps.mean().backward()

    return ask


def without_pairs(model, batch, probe):
    with probe.step(0, batch.ids):
        sequence_logps(model, batch).mean().backward()


def two_forwards(model, batch, probe):
    with probe.step(0, batch.ids):
        sequence_logps(model, batch)
        sequence_logps(model, batch)


def no_backward(model, batch, probe):
    with probe.step(0, batch.ids):
        probe.pairs(sequence_logps(model, batch))


def wrong_ids(model, batch, probe):
    with probe.step(0, batch.ids[:1]):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        logps.mean().backward()


def two_backwards(model, batch, probe):
    with probe.step(0, batch.ids):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        logps.mean().backward(retain_graph=True)
        logps.mean().backward()


STEPS = {
    "a loss around": (around, CertificationError),
    "detached": (given(lambda logps: logps.detach()), BadInput),
    "too few rows": (given(lambda logps: logps[:2]), BadInput),
    "reference of another shape": (given(lambda logps: logps, reference=torch.zeros(3)), BadInput),
    "no pairs": (without_pairs, BadInput),
    "two forwards": (two_forwards, BadInput),
    "no backward": (no_backward, BadInput),
    "two backwards": (two_backwards, BadInput),
    "too few ids": (wrong_ids, BadInput),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_is_refused_is_refused_again_and_leaves_no_row(name):
    ask, error = STEPS[name]
    model, batch = make_model("llama"), make_batch()
    probe = Probe(model, gram_every=1)
    said = [refusal(ask, model, batch, probe) for _ in range(2)]
    assert said[0] == said[1] and said[0].startswith(error.__name__)
    assert probe.fresh == [] and not probe.recording
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    model.zero_grad()
    recorded(model, batch, probe)
    assert len(probe.fresh) == batch.pairs and probe.certificate.max_relative_error <= 1e-9


def test_the_count_in_a_refusal_is_that_of_this_call():
    model, batch = OwnExtraUse(), make_batch()
    for _ in range(2):
        with pytest.raises(UnsupportedUse, match=r"table.weight: used 2 times, 1 of them"):
            row_gram(model, batch)
