"""The walk over the autograd graph: nodes with several outputs, which kernels that fuse two modules have."""

from __future__ import annotations

import pytest
import torch
from exactness import error_of
from families import make_batch
from hand_written import Base
from torch import nn

from dyn_probe import UnsupportedUse, pair_gradients
from dyn_probe.engine.graph import graph_behind

pytestmark = pytest.mark.usefixtures("double_everywhere")


class AddAndScale(torch.autograd.Function):
    """Two outputs of one node, as kernels that fuse a residual with a norm have them."""

    @staticmethod
    def forward(ctx, x, residual, weight):
        total = x + residual
        ctx.save_for_backward(total, weight)
        return total * weight, total.clone()

    @staticmethod
    def backward(ctx, scaled, passed):
        total, weight = ctx.saved_tensors
        flows = scaled * weight + passed
        return flows, flows, (scaled * total).sum((0, 1))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x, residual):
        if torch.is_grad_enabled() and torch._C._functorch.maybe_current_level() is None:
            return AddAndScale.apply(x, residual, self.gain)
        return (x + residual) * self.gain, x + residual


class TwoOutputs(Base):
    def build(self):
        self.fused = Fused()

    def body(self, x):
        scaled, passed = self.fused(x, x)
        return scaled + 0.1 * passed


class TwoOutputsAndOutside(TwoOutputs):
    """And its parameter a second time, behind the module's back."""

    def body(self, x):
        return super().body(x) * self.fused.gain


def test_outputs_of_one_node_are_one_root() -> None:
    weight, x = nn.Parameter(torch.rand(16)), torch.rand(2, 3, 16, requires_grad=True)
    both = graph_behind(*AddAndScale.apply(x, x, weight))
    assert both.used(weight) == 1 and both.used(x) == 2
    assert graph_behind(*weight.chunk(2)).used(weight) == 1 and graph_behind(weight * weight).used(weight) == 2


def test_a_module_with_two_outputs_of_one_node_is_exact():
    assert error_of(TwoOutputs(), make_batch()) <= 1e-9


def test_a_second_use_of_its_parameter_is_refused():
    with pytest.raises(UnsupportedUse, match=r"fused\.gain: used 2 times, 1 of them through its own module"):
        pair_gradients(TwoOutputsAndOutside(), make_batch())
