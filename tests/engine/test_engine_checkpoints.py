"""Gradient checkpointing hides nothing: what is refused without it is refused with it, what is exact stays exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from families import make_batch
from hand_written import Base
from reference.same_graph import gram_of
from torch import nn
from torch.utils import checkpoint as torch_checkpoint

from dyn_probe import Probe, UnsupportedUse, pair_gradients, row_gram, sequence_logps, token_gram

pytestmark = pytest.mark.usefixtures("double_everywhere")


class CheckpointFunction(torch.autograd.Function):
    """A reentrant checkpoint as other libraries have it."""

    @staticmethod
    def forward(ctx, run_function, x):
        ctx.run_function = run_function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return run_function(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.run_function(x)
        torch.autograd.backward(out, grad)
        return None, x.grad


def reentrant(part, x):
    return torch_checkpoint.checkpoint(part, x, use_reentrant=True)


WAYS = {
    "none": lambda part, x: part(x),
    "non-reentrant": lambda part, x: torch_checkpoint.checkpoint(part, x, use_reentrant=False),
    "reentrant": reentrant,
    "reentrant in reentrant": lambda part, x: reentrant(lambda y: reentrant(part, y) * 1.0, x),
    "non-reentrant in reentrant": lambda part, x: reentrant(lambda y: WAYS["non-reentrant"](part, y), x),
    "of another library": CheckpointFunction.apply,
}
"""How a part of the model is checkpointed."""


class Parted(Base):
    """A model with a part of it under a checkpoint; subclasses say what the part is."""

    def __init__(self, way="none"):
        super().__init__()
        self.way = way

    def build(self):
        self.layer, self.other = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)

    def part(self, x):
        raise NotImplementedError

    def body(self, x):
        return x + WAYS[self.way](self.part, x)


class SecondUse(Parted):
    def part(self, x):
        return F.linear(self.layer(x).tanh(), self.layer.weight)


class SmallSecondUse(Parted):
    """A use that moves the numbers little."""

    def part(self, x):
        return self.layer(x).tanh() + 0.01 * F.linear(x, self.layer.weight)


class NeverCalled(Parted):
    def part(self, x):
        return self.layer(x).tanh() + F.linear(x, self.other.weight)


class DeadCall(Parted):
    def part(self, x):
        self.layer(x.detach())
        return F.linear(self.layer(x).tanh(), self.layer.weight)


class CalledElsewhere(Parted):
    """The module is called in the open, its weight used under the checkpoint."""

    def part(self, x):
        return F.linear(x, self.layer.weight).tanh()

    def body(self, x):
        return self.layer(super().body(x))


class OwnParameter(Parted):
    """A hand-written module used well, and its weight once more."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 16) / 4)

        def forward(self, x):
            return torch.tanh(x @ self.weight @ self.weight.T)

    def build(self):
        self.layer = self.Table()

    def part(self, x):
        return F.linear(self.layer(x), self.layer.weight)


WRONG = {
    SecondUse: "layer.weight",
    SmallSecondUse: "layer.weight",
    NeverCalled: "other.weight",
    DeadCall: "layer.weight",
    CalledElsewhere: "layer.weight",
    OwnParameter: "layer.weight",
}
"""Model → the parameter that is used outside its module."""


class Twice(Parted):
    """The same module twice in one segment and once outside."""

    def part(self, x):
        return self.layer(self.layer(x).tanh())

    def body(self, x):
        return self.layer(super().body(x))


class TwoSegments(Parted):
    """The same block twice, as models that share layers do."""

    def part(self, x):
        return self.other(self.layer(x).tanh())

    def body(self, x):
        return super().body(super().body(x))


class Tied(Parted):
    """Two modules with one weight in one segment."""

    def build(self):
        super().build()
        self.other.weight = self.layer.weight

    def part(self, x):
        return self.other(self.layer(x).tanh())


class WellUsed(OwnParameter):
    def part(self, x):
        return self.layer(x)


def recorded(model, batch):
    """``[2B, 2B]`` from a training backward."""
    model.zero_grad(set_to_none=True)
    with Probe(model, certify=False).step(0, batch.ids) as probe:
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        logps.mean().backward()
    return probe


DOORS = {
    "pair_gradients": pair_gradients,
    "row_gram": row_gram,
    "token_gram": token_gram,
    "Probe": recorded,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", WRONG)
def test_a_use_outside_its_module_is_refused_under_every_checkpoint(kind, way, door):
    model, batch = kind(way), make_batch()
    for _ in range(2):
        with pytest.raises(UnsupportedUse, match=f"(?s)outside the module that owns them.*{WRONG[kind]}: used"):
            DOORS[door](model, batch)
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("kind", [k for k in WRONG if k is not CalledElsewhere])
def test_the_words_are_those_without_a_checkpoint(kind):
    said = []
    for way in ("none", "reentrant", "reentrant in reentrant"):
        with pytest.raises(UnsupportedUse) as caught:
            row_gram(kind(way), make_batch())
        said.append(str(caught.value))
    assert len(set(said)) == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [Twice, TwoSegments, Tied, WellUsed])
def test_modules_that_are_used_well_stay_exact(kind, way):
    batch = make_batch()
    plain = kind("none")
    wanted = gram_of(sequence_logps(plain, batch), plain)
    model = kind(way)
    norms = wanted.diagonal().sqrt()
    assert float(((row_gram(model, batch) - wanted).abs() / (norms[:, None] * norms[None])).max()) <= 1e-9
    found = recorded(model, batch).fresh
    for i, row in enumerate(found):
        assert row["grad_inner"] == pytest.approx(float(wanted[i, i + 3]), abs=1e-9 * float(norms[i] * norms[i + 3]))


def test_a_refusal_leaves_the_gradients_alone_and_the_model_as_it_was():
    model, batch = SecondUse("reentrant"), make_batch()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    with pytest.raises(UnsupportedUse):
        pair_gradients(model, batch)
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert model.layer.weight.grad is None


def test_a_checkpoint_that_cannot_be_looked_into_is_refused():
    class CheckpointFunctionOfOurs(CheckpointFunction):
        @staticmethod
        def forward(ctx, run_function, x):
            ctx.ours = run_function
            ctx.save_for_backward(x)
            with torch.no_grad():
                return run_function(x)

    class Opaque(WellUsed):
        def body(self, x):
            return CheckpointFunctionOfOurs.apply(self.part, x)

    with pytest.raises(UnsupportedUse, match=r"cannot see them; write gradient_checkpointing_kwargs.*use_reentrant"):
        row_gram(Opaque(), make_batch())
