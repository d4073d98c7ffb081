"""Models written by hand, with uses of parameters that no library has: to be explained exactly, or refused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from families import VOCAB
from torch import nn


class Base(nn.Module):
    """Embedding, a body, a head; subclasses say what the body is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCAB, 16)
        self.head = nn.Linear(16, VOCAB)
        self.build()
        self.double()

    def build(self) -> None: ...

    def body(self, x):
        return x

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        return self.head(torch.cumsum(self.body(x), 1) / 8)


class OnlyGeneric(Base):
    """A module that no known kind explains: parameters used twice and multiplied together."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Parameter(torch.randn(16, 16) / 4)
            self.power = nn.Parameter(torch.rand(16))

        def forward(self, x, twice=True):
            y = torch.tanh(x @ self.mix @ self.mix.T) * x.abs() ** self.power
            return {"y": y * 2 if twice else y, "unused": x.shape}

    def build(self) -> None:
        self.odd = self.Odd()

    def body(self, x):
        return self.odd(x, twice=True)["y"]


class TopLevelParameter(Base):
    """nanoGPT's way: a position table without a batch dimension, and a parameter on the model itself."""

    def build(self) -> None:
        self.positions = nn.Embedding(64, 16)
        self.gain = nn.Parameter(torch.rand(16))

    def body(self, x):
        return (x + self.positions(torch.arange(x.shape[1]))) * self.gain


class Shared(Base):
    """One linear layer and one norm used twice."""

    def build(self) -> None:
        self.layer, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)

    def body(self, x):
        for _ in range(2):
            x = x + self.layer(self.norm(x).tanh())
        return x


class TransposedTie(Base):
    """A weight shared by two linear layers of different modules, one after the other."""

    def build(self) -> None:
        self.up, self.down = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.down.weight = self.up.weight

    def body(self, x):
        return self.down(self.up(x).relu())


class InPlace(Base):
    """Outputs that are changed in place right after the layer."""

    def build(self) -> None:
        self.layer = nn.Linear(16, 16)

    def body(self, x):
        y = self.layer(x)
        y += x
        return y.relu_()


class Outside(Base):
    """A parameter used outside the module that owns it."""

    def build(self) -> None:
        self.layer = nn.Linear(16, 16, bias=False)

    def body(self, x):
        return F.linear(self.layer(x).tanh(), self.layer.weight)


class MixesRows(Base):
    """A module with parameters that mixes the rows of the batch."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.rand(16, 16))

        def forward(self, x):
            return (x - x.mean(0, keepdim=True)) @ self.shift

    def build(self) -> None:
        self.norm = self.Norm()

    def body(self, x):
        return self.norm(x)


class OwnExtraUse(Base):
    """A hand-written module that is right, and its parameters used once more outside: by itself, or among others."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.randn(16, 16) / 4), nn.Parameter(torch.rand(16))

        def forward(self, x):
            return torch.tanh(x @ self.weight) * self.scale

    extra = True

    def build(self):
        self.table = self.Table()

    def body(self, x):
        x = self.table(x)
        return F.linear(x, self.table.weight) * self.table.scale if self.extra else x


class Undecided(Base):
    """Vectors at the values where many formulas agree: a rule that looks at the module's own value alone is misled."""

    class Near(nn.Module):
        def __init__(self, start, use) -> None:
            super().__init__()
            self.vector, self.use = nn.Parameter(torch.full((16,), start)), use

        def forward(self, x):
            return self.use(x, self.vector)

    def build(self) -> None:
        self.zero, self.one = self.Near(0.0, lambda x, c: x * (1 + c)), self.Near(1.0, lambda x, c: x + c - 1)

    def body(self, x):
        return self.one(self.zero(x)).tanh()


HAND_WRITTEN = (OnlyGeneric, TopLevelParameter, Shared, TransposedTie, InPlace, Undecided)
"""Those that are to be exact, in every test of such models. A rule for a kind of use that no family has owes one."""
