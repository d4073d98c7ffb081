"""What would be silently wrong is refused: layouts, tables, dropped parameters, outside uses, hooks of the user."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exactness import certified_error, error_of
from families import VOCAB, make_batch, make_model
from hand_written import Base
from reference.same_graph import gram_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from dyn_probe import (
    BadInput,
    CertificationError,
    PairBatch,
    Probe,
    UnsupportedUse,
    pair_gradients,
    row_gram,
    sequence_logps,
)
from dyn_probe.engine.certificate import compare

pytestmark = pytest.mark.usefixtures("double_everywhere")


class Positions(Base):
    def build(self):
        self.positions = nn.Embedding(64, 16)

    def body(self, x):
        return x + self.positions(torch.arange(x.shape[1]))


class AveragedPositions(Positions):
    """The table's output is used otherwise than by adding it to every row."""

    def body(self, x):
        return x + self.positions(torch.arange(x.shape[1])).mean(0)


class FirstOfPositions(Positions):
    def body(self, x):
        return x + self.positions(torch.arange(x.shape[1])[None])[0]


class TimeMajor(Base):
    """A layer on ``[positions, rows, d]``."""

    def build(self):
        self.layer = nn.Linear(16, 16)

    def body(self, x):
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class FlattenedTimeMajor(TimeMajor):
    def body(self, x):
        flat = x.transpose(0, 1).reshape(-1, 16)
        return self.layer(flat).reshape(x.shape[1], x.shape[0], 16).transpose(0, 1)


class PermutedTokens(TimeMajor):
    def body(self, x):
        order = torch.randperm(x.shape[0] * x.shape[1], generator=torch.Generator().manual_seed(0))
        out = torch.empty_like(x.reshape(-1, 16))
        out[order] = self.layer(x.reshape(-1, 16)[order])
        return out.reshape(x.shape)


class MixesWithoutParameters(TimeMajor):
    def body(self, x):
        x = self.layer(x)
        return x - 0.1 * x.mean(0, keepdim=True)


class OwnLora(Base):
    """A linear layer with further parameters of its own that do nothing yet."""

    class Layer(nn.Linear):
        def __init__(self):
            super().__init__(16, 16)
            self.lora_a, self.lora_b = nn.Parameter(torch.randn(2, 16)), nn.Parameter(torch.zeros(16, 2))

        def forward(self, x):
            return super().forward(x) + x @ self.lora_a.T @ self.lora_b.T

    def build(self):
        self.layer = self.Layer()

    def body(self, x):
        return self.layer(x)


class WeightNorm(Base):
    def build(self):
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))

    def body(self, x):
        return self.layer(x)


class GenericAndOutside(Base):
    """A hand-written table that is used again outside."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 16) / 4)

        def forward(self, x):
            return torch.tanh(x @ self.weight)

    def build(self):
        self.table = self.Table()

    def body(self, x):
        return F.linear(self.table(x), self.table.weight)


class DeadCall(Base):
    def build(self):
        self.layer = nn.Linear(16, 16, bias=False)

    def body(self, x):
        self.layer(x.detach())
        return F.linear(self.layer(x).tanh(), self.layer.weight)


class SecondName(Base):
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(16, 16) / 4)
            self.ws = [self.w]

        def forward(self, x):
            return torch.tanh(x @ self.ws[0])

    def build(self):
        self.hidden = self.Hidden()

    def double(self):
        super().double()
        self.hidden.ws[0] = self.hidden.w
        return self

    def body(self, x):
        return self.hidden(x)


class ExponentialScale(Base):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(16))

        def forward(self, x):
            return x * torch.exp(self.weight)

    def build(self):
        self.scale = self.Scale()

    def body(self, x):
        return self.scale(x)


def square():
    """As many positions as rows: every guess by shape is in doubt."""
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(0, VOCAB, (6, 6), generator=g)
    response = torch.zeros_like(ids)
    response[:, 3:] = 1
    return PairBatch(ids, torch.ones_like(ids), response)


def exact_or_refused(model, batch) -> bool:
    """True if exact, False if refused; anything else fails."""
    try:
        error = error_of(model, batch)
    except UnsupportedUse:
        return False
    assert error <= 1e-9, error
    return True


WRONG = [AveragedPositions, FirstOfPositions, FlattenedTimeMajor, PermutedTokens, MixesWithoutParameters]
WRONG += [GenericAndOutside, DeadCall, SecondName]


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("batch", [make_batch(), square()], ids=["plain", "square"])
def test_silent_wrongs_are_refused(kind, batch):
    with pytest.raises(UnsupportedUse):
        pair_gradients(kind(), batch)
    with pytest.raises(UnsupportedUse):
        row_gram(kind(), batch)


EXACT = {
    Positions: (True, False),
    TimeMajor: (False, False),
    OwnLora: (True, True),
    WeightNorm: (False, False),
    ExponentialScale: (True, True),
}
"""Modules beyond the listed families: whether they are exact, or else refused, on a plain and on a square batch."""


@pytest.mark.parametrize("kind", EXACT)
def test_others_are_exact_or_refused(kind):
    assert (exact_or_refused(kind(), make_batch()), exact_or_refused(kind(), square())) == EXACT[kind]


def test_hooks_of_the_user_that_change_outputs():
    model = make_model("llama")
    for module in (model.model.layers[0].mlp.up_proj, model.model.embed_tokens, model.model.norm):
        module.register_forward_hook(lambda _, args, output: output * 3)
    assert error_of(model, make_batch()) <= 1e-9


def test_two_parameters_of_one_plain_name():
    class Clash(Base):
        def build(self):
            self.outer = nn.Module()
            self.outer.weight = nn.Parameter(torch.rand(1))
            self.outer.module = nn.Linear(16, 16)

        def body(self, x):
            return self.outer.module(x)

    assert error_of(Clash(), make_batch()) <= 1e-9


class Checkpointed(Base):
    def build(self):
        self.layer, self.dead = nn.Linear(16, 16), nn.Linear(16, 16)

    def part(self, x):
        return F.linear(torch.tanh(self.layer(x)), self.layer.weight) + F.linear(x, self.dead.weight)

    def body(self, x):
        return checkpoint(self.part, x, use_reentrant=True)


def test_uses_hidden_by_reentrant_checkpoints_are_caught():
    model, batch = Checkpointed(), make_batch()
    with (
        pytest.raises((UnsupportedUse, CertificationError), match=r"layer|dead"),
        Probe(model).step(0, batch.ids) as probe,
    ):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        logps.mean().backward()


def test_reentrant_checkpoints_are_certified():
    model = make_model("llama")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    assert certified_error(model) <= 1e-9


def test_the_recorder_runs_no_side_effects_of_modules():
    class Counting(Base):
        class Counter(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.rand(16))
                self.register_buffer("n", torch.zeros(()))

            def forward(self, x):
                self.n += 1
                return torch.sin(x * self.w)

        def build(self):
            self.counter = self.Counter()

        def body(self, x):
            return self.counter(x)

    model = Counting()
    row_gram(model, make_batch())
    assert float(model.counter.n) == 1


def test_a_module_that_cannot_run_on_one_row_is_refused_by_name():
    class Picky(Base):
        class Layer(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.rand(16))

            def forward(self, x):
                if x.shape[0] != 6:
                    raise ValueError("six rows or none")
                return torch.sin(x * self.w)

        def build(self):
            self.picky = self.Layer()

        def body(self, x):
            return self.picky(x)

    with pytest.raises(UnsupportedUse, match=r"picky.*six rows"):
        row_gram(Picky(), make_batch())


def test_the_certificate_sees_small_parameters():
    plain = {"big": torch.tensor([1.0, 1.0, 0.5]).double(), "small": torch.tensor([2e-5, 2e-5, 1e-5]).double()}
    assert not compare(plain, plain, 1e-4).wrong
    lost = plain | {"small": torch.zeros(3, dtype=torch.float64)}
    assert [name for name, _ in compare(lost, plain, 1e-4).wrong] == ["small"]


def test_a_response_behind_a_hole_in_the_mask_is_refused():
    ids = torch.ones(2, 5, dtype=torch.long)
    mask = torch.tensor([[1, 1, 0, 1, 1]] * 2)
    with pytest.raises(BadInput, match="right before"):
        PairBatch(ids, mask, torch.tensor([[0, 0, 0, 1, 1]] * 2))


def test_after_update_belongs_to_its_own_step():
    model, batch = make_model("llama"), make_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    probe = Probe(model, optimizer=optimizer, every=2)
    seen = []
    for step in range(2):
        optimizer.zero_grad()
        with probe.step(step, batch.ids):
            logps = sequence_logps(model, batch)
            probe.pairs(logps)
            logps.mean().backward()
        optimizer.step()
        probe.after_update(batch)
        seen.append(probe.fresh[0]["realised_delta_chosen"])
    assert seen[0] == seen[1]


def test_equal_pairs_in_two_micro_batches_both_get_their_change():
    model, batch = make_model("llama"), make_batch()
    probe = Probe(model)
    for _ in range(2):
        with probe.step(0, batch.ids):
            logps = sequence_logps(model, batch)
            probe.pairs(logps, loss_scale=0.5)
            (0.5 * logps.mean()).backward()
    for _ in range(2):
        probe.after_update(batch)
    assert all("realised_delta_chosen" in row for row in probe.fresh) and len(probe.fresh) == 2 * batch.pairs


def test_slow_twin_of_these_tests_is_itself_right():
    model, batch = Positions(), make_batch()
    gram = gram_of(sequence_logps(model, batch), model)
    assert bool((gram.diagonal() > 0).all())
