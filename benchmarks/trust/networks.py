"""Random networks of blocks that no family composes in these ways: exact against plain autograd, or refused.

A network is an embedding, a few blocks, and a head; each block is a row of ``BLOCKS``. Some share parameters over
kinds of use, some use them where no module owns them, some mix the rows of a batch: a number may then be refused, never
wrong.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dyn_probe import PairBatch, Probe, pair_gradients, row_gram, sequence_logps
from dyn_probe.errors import DynProbeError
from trust.tally import Tally

VOCAB = 23
TOLERANCES = {"row_gram": 1e-9, "pair_gradients": 1e-9, "Probe": 1e-6}
"""Largest error of an inner product, relative to the product of the norms; models are float64, and what a run records
is rounded to float32 on its way."""


class Block(nn.Module):
    """``[rows, positions, width]`` in and out: some modules, and a function of them."""

    def __init__(self, run: Callable[[nn.ModuleDict, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.run, self.parts = run, nn.ModuleDict(modules)

    def forward(self, x: Tensor) -> Tensor:
        """The function, with a way around it."""
        return x + 0.5 * torch.tanh(self.run(self.parts, x))


class Own(nn.Module):
    """Parameters of a module of its own, and a function of them: what the generic rule is for."""

    def __init__(self, run: Callable[[Own, Tensor], Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.run = run
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape) / 3))

    def forward(self, x: Tensor) -> Tensor:
        """The function."""
        return self.run(self, x)


def _tied(bias: bool) -> Callable[[int], Block]:
    def make(d: int) -> Block:
        a, b = nn.Linear(d, d, bias=bias), nn.Linear(d, d, bias=bias)
        b.weight = a.weight
        return Block(lambda m, x: m["b"](m["a"](x).relu()), a=a, b=b)

    return make


def _bias_is_scale(d: int) -> Block:
    layer, norm = nn.Linear(d, d), nn.LayerNorm(d)
    norm.weight = layer.bias
    return Block(lambda m, x: m["norm"](m["layer"](x)), layer=layer, norm=norm)


def _table_is_weight(d: int) -> Block:
    table, layer = nn.Embedding(d, d), nn.Linear(d, d, bias=False)
    layer.weight = table.weight

    def run(m: nn.ModuleDict, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1]) % d
        return m["layer"](x) + m["table"](places)

    return Block(run, table=table, layer=layer)


def _frozen_with_adapter(d: int) -> Block:
    base = nn.Linear(d, d).requires_grad_(False)
    down, up = nn.Linear(d, 2, bias=False), nn.Linear(2, d, bias=False)
    return Block(lambda m, x: m["base"](x) + 2 * m["up"](m["down"](x)), base=base, down=down, up=up)


def _attention(first: bool) -> Callable[[int], Block]:
    def make(d: int) -> Block:
        attention = nn.MultiheadAttention(d, 2, batch_first=first, bias=first)

        def run(m: nn.ModuleDict, x: Tensor) -> Tensor:
            y = x if first else x.transpose(0, 1)
            out = m["attention"](y, y, y, need_weights=False)[0]
            return out if first else out.transpose(0, 1)

        return Block(run, attention=attention)

    return make


def _convolution(groups: int) -> Callable[[int], Block]:
    def make(d: int) -> Block:
        layer = nn.Conv1d(d, d, 3, groups=groups if d % groups == 0 else 1)
        return Block(lambda m, x: m["layer"](F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2), layer=layer)

    return make


def _experts(d: int) -> Block:
    def run(m: nn.ModuleDict, x: Tensor) -> Tensor:
        left = x.sum(-1) > 0
        out = torch.zeros_like(x)
        out[left], out[~left] = m["a"](x[left]), m["b"](x[~left])
        return out

    return Block(run, a=nn.Linear(d, d), b=nn.Linear(d, d))


def _outside(d: int) -> Block:
    return Block(lambda m, x: F.linear(m["a"](x), m["a"].weight), a=nn.Linear(d, d, bias=False))


def _linear(run: Callable[[nn.ModuleDict, Tensor], Tensor], bias: bool = True) -> Callable[[int], Block]:
    return lambda d: Block(run, a=nn.Linear(d, d, bias=bias))


def _own(run: Callable[[Own, Tensor], Tensor], **shapes: Callable[[int], tuple[int, ...]]) -> Callable[[int], Block]:
    return lambda d: Block(lambda m, x: m["own"](x), own=Own(run, **{name: of(d) for name, of in shapes.items()}))


def _module(make: Callable[[int], nn.Module]) -> Callable[[int], Block]:
    return lambda d: Block(lambda m, x: m["a"](x), a=make(d))


BLOCKS: dict[str, Callable[[int], Block]] = {
    "linear": _linear(lambda m, x: m["a"](x)),
    "linear without bias": _linear(lambda m, x: m["a"](x), bias=False),
    "linear used twice": _linear(lambda m, x: m["a"](m["a"](x).relu())),
    "linear used three times, once on one position": _linear(lambda m, x: m["a"](m["a"](x)) + m["a"](x[:, :1])),
    "linear on flattened rows": _linear(lambda m, x: m["a"](x.flatten(0, 1)).view_as(x)),
    "linear on transposed rows": _linear(lambda m, x: m["a"](x.transpose(0, 1)).transpose(0, 1)),
    "linear on a pooled row": _linear(lambda m, x: m["a"](x.mean(1))[:, None].expand_as(x)),
    "linear on four dimensions": _linear(lambda m, x: m["a"](x[:, :, None].expand(-1, -1, 2, -1)).sum(2)),
    "linear in a checkpoint": _linear(lambda m, x: checkpoint(m["a"], x, use_reentrant=False)),
    "linear, changed in place": _linear(lambda m, x: m["a"](x).add_(x).mul_(0.5)),
    "linear on reversed rows": _linear(lambda m, x: m["a"](x.flip(0)).flip(0)),
    "linear on rolled positions": _linear(lambda m, x: m["a"](x.roll(1, 1))),
    "linear on rows joined twice": _linear(lambda m, x: m["a"](torch.cat([x, x])).chunk(2)[0]),
    "linear with its parameter outside": _outside,
    "linear that mixes rows before": _linear(lambda m, x: m["a"](x - x.mean(0, keepdim=True))),
    "wide and narrow": lambda d: Block(
        lambda m, x: m["b"](m["a"](x).relu()), a=nn.Linear(d, 3 * d), b=nn.Linear(3 * d, d)
    ),
    "gated": lambda d: Block(
        lambda m, x: m["c"](m["a"](x).sigmoid() * m["b"](x)), a=nn.Linear(d, 5), b=nn.Linear(d, 5), c=nn.Linear(5, d)
    ),
    "two linears of one weight": _tied(bias=False),
    "two linears of one weight, own biases": _tied(bias=True),
    "a bias that is a norm's scale": _bias_is_scale,
    "an embedding that is a linear weight": _table_is_weight,
    "LoRA on a frozen linear": _frozen_with_adapter,
    "LoRA multiplied out": _own(lambda o, x: x @ (o.a @ o.b), a=lambda d: (d, 2), b=lambda d: (2, d)),
    "parameter used twice within": _own(lambda o, x: torch.tanh(x @ o.a) @ o.a.T, a=lambda d: (d, d)),
    "scale and shift of its own": _own(lambda o, x: x * o.a + o.b, a=lambda d: (d,), b=lambda d: (d,)),
    "scalar": _own(lambda o, x: x * o.a, a=lambda d: ()),
    "power": _own(lambda o, x: x.abs().clamp(min=1e-3) ** o.a.sigmoid(), a=lambda d: (d,)),
    "table of positions": _own(lambda o, x: x + o.a[: x.shape[1]], a=lambda d: (64, d)),
    "kernel over positions": _own(lambda o, x: torch.einsum("rtd,ds->rts", x.cumsum(1) / 9, o.a), a=lambda d: (d, d)),
    "own module that mixes rows": _own(lambda o, x: (x - x.mean(0)) @ o.a, a=lambda d: (d, d)),
    "own module on the first row alone": _own(lambda o, x: x + (x[:1] @ o.a), a=lambda d: (d, d)),
    "LayerNorm": _module(nn.LayerNorm),
    "LayerNorm without bias": _module(lambda d: nn.LayerNorm(d, bias=False)),
    "RMSNorm": _module(lambda d: nn.RMSNorm(d)),
    "PReLU": _module(lambda d: nn.PReLU()),
    "LayerNorm used twice": lambda d: Block(lambda m, x: m["a"](m["a"](x).sin()), a=nn.LayerNorm(d)),
    "GroupNorm": lambda d: Block(lambda m, x: m["a"](x.transpose(1, 2)).transpose(1, 2), a=nn.GroupNorm(1, d)),
    "BatchNorm": lambda d: Block(lambda m, x: m["a"](x.transpose(1, 2)).transpose(1, 2), a=nn.BatchNorm1d(d)),
    "Bilinear": lambda d: Block(lambda m, x: m["a"](x, x.roll(1, -1)), a=nn.Bilinear(d, d, d)),
    "convolution": _convolution(1),
    "grouped convolution": _convolution(2),
    "depthwise convolution": _convolution(10**9),
    "attention": _attention(True),
    "attention, positions first": _attention(False),
    "GRU": lambda d: Block(lambda m, x: m["a"](x)[0], a=nn.GRU(d, d, batch_first=True)),
    "weight norm": _module(lambda d: nn.utils.parametrizations.weight_norm(nn.Linear(d, d))),
    "experts by sign": _experts,
    "unused parameters": lambda d: Block(lambda m, x: m["a"](x), a=nn.Linear(d, d), b=nn.Linear(d, d)),
}


REFUSED = (
    "linear on transposed rows", "linear on reversed rows", "linear on rows joined twice",
    "linear with its parameter outside", "linear that mixes rows before", "own module that mixes rows",
    "own module on the first row alone", "BatchNorm", "attention", "attention, positions first", "GRU", "weight norm",
    "experts by sign",
)  # fmt: skip
"""Blocks that may be refused: rows that are mixed, moved or not in place, and parameters outside their module."""


class Network(nn.Module):
    """Embedding, blocks, head."""

    def __init__(self, draw: Random) -> None:
        super().__init__()
        width = draw.choice([4, 6, 8])
        weights = [0.2 if name in REFUSED else 1.0 for name in BLOCKS]
        self.names = draw.choices(list(BLOCKS), weights, k=draw.choice([1, 2, 2, 3]))
        self.embed = nn.Embedding(VOCAB, width)
        self.blocks = nn.ModuleList(BLOCKS[name](width) for name in self.names)
        if len(self.blocks) > 1 and draw.random() < 0.15:
            self.blocks.append(self.blocks[0])  # a whole block used twice
            self.names.append("the first again")
        self.head = nn.Linear(width, VOCAB, bias=draw.random() < 0.5)
        self.second = nn.Linear(width, VOCAB) if draw.random() < 0.2 else None
        if draw.random() < 0.4:
            self.head.weight = self.embed.weight
        self.double()
        trained = list(self.parameters())
        for parameter in trained if draw.random() < 0.25 else []:
            parameter.requires_grad_(parameter.requires_grad and draw.random() < 0.6)
        self.head.weight.requires_grad_(True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits ``[rows, positions, VOCAB]``."""
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        logits = self.head(x)
        return logits if self.second is None else logits + 0.1 * self.second(x.tanh())


def random_batch(draw: Random) -> PairBatch:
    """One to four pairs of random lengths, padded on either side."""
    pairs, right = draw.choice([1, 2, 3, 4]), draw.random() < 0.6
    rows = []
    for _ in range(2 * pairs):
        prompt, answer = draw.randrange(1, 4), draw.randrange(1, 8)
        rows.append(([draw.randrange(VOCAB) for _ in range(prompt + answer)], prompt))
    width = max(len(ids) for ids, _ in rows) + draw.choice([0, 0, 2])
    ids, mask, response = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    for row, (tokens, prompt) in enumerate(rows):
        start = 0 if right else width - len(tokens)
        ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        mask[row, start : start + len(tokens)] = 1
        response[row, start + prompt : start + len(tokens)] = 1
    return PairBatch(ids, mask, response)


def slow_gram(model: nn.Module, batch: PairBatch) -> Tensor:
    """``[2B, 2B]`` inner products of the rows' gradients: one backward a row, each gradient written out."""
    logits = model(batch.input_ids, batch.attention_mask)
    said = torch.log_softmax(logits[:, :-1], -1).gather(2, batch.input_ids[:, 1:, None])[..., 0]
    logps = (said * batch.response_mask[:, 1:]).sum(1)
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for logp in logps:
        grads = torch.autograd.grad(logp, trained, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([(p * 0 if g is None else g).flatten() for p, g in zip(trained, grads, strict=True)]))
    values = torch.stack(rows)
    return (values @ values.T).detach()


def relative(got: Tensor, wanted: Tensor) -> float:
    """Largest error of a Gram, relative to the products of the norms; NaN counts as infinite."""
    norms = wanted.diagonal().sqrt().clamp(min=1e-150)
    return float(((got - wanted).abs() / (norms[:, None] * norms)).nan_to_num(float("inf")).max())


def by_gram(model: nn.Module, batch: PairBatch, wanted: Tensor) -> float:
    """Error of ``row_gram``."""
    return relative(row_gram(model, batch), wanted)


def by_pairs(model: nn.Module, batch: PairBatch, wanted: Tensor) -> float:
    """Error of ``pair_gradients``."""
    return _pair_error(pair_gradients(model, batch).totals, wanted)


def by_training(model: nn.Module, batch: PairBatch, wanted: Tensor) -> float:
    """Error of what ``Probe`` reads off the backward of a DPO step."""
    probe = Probe(model)
    with probe.step(0, batch.ids):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        half = batch.pairs
        (-F.logsigmoid(0.1 * (logps[:half] - logps[half:]))).mean().backward()
    probe.close()
    columns = ("grad_norm_chosen", "grad_norm_rejected", "grad_inner")
    norm_w, norm_l, inner = torch.tensor([[row[name] for name in columns] for row in probe.rows]).double().T
    return _pair_error(torch.stack([norm_w**2, norm_l**2, inner], 1), wanted)


def _pair_error(got: Tensor, wanted: Tensor) -> float:
    half = len(wanted) // 2
    squares = wanted.diagonal()
    entries = torch.stack([squares[:half], squares[half:], wanted[:half, half:].diagonal()], 1)
    scale = torch.stack([entries[:, 0], entries[:, 1], (entries[:, 0] * entries[:, 1]).sqrt()], 1).clamp(min=1e-300)
    return float(((got - entries).abs() / scale).nan_to_num(float("inf")).max())


MEASURES: dict[str, Callable[[nn.Module, PairBatch, Tensor], float]] = {
    "row_gram": by_gram,
    "pair_gradients": by_pairs,
    "Probe": by_training,
}


ZERO = ("wrong numbers", "refused without need", "tracebacks")


def try_networks(count: int, seed: int = 0) -> Tally:
    """Random networks and batches, each by all of ``MEASURES``."""
    tally = Tally("random architectures against plain autograd", zero=dict.fromkeys(ZERO, 0))
    worst, refused, exact, seen = dict.fromkeys(MEASURES, 0.0), 0, 0, Counter[str]()
    for number in range(count):
        draw = Random(f"{seed} {number}")
        torch.manual_seed(draw.randrange(2**31))
        model, batch = Network(draw), random_batch(draw)
        seen.update(model.names)
        wanted, answered = slow_gram(model, batch), True
        what = f"case {number} of seed {seed} ({', '.join(model.names)})"
        for name, measure in MEASURES.items():
            model.zero_grad(set_to_none=True)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    error = measure(model, batch, wanted)
            except DynProbeError as error:
                answered = False
                if not set(model.names) & set(REFUSED):
                    tally.fail("refused without need", f"{what}, {name}: {str(error)[:150]!r}")
                continue
            except Exception as error:
                tally.fail("tracebacks", f"{what}, {name}: {type(error).__name__}: {str(error)[:150]}")
                continue
            worst[name] = max(worst[name], error)
            if error > TOLERANCES[name]:
                tally.fail("wrong numbers", f"{what}, {name}: error {error:.2g}")
        tally.tried += 1
        exact, refused = exact + answered, refused + (not answered)
    tally.facts |= {"exact": str(exact), "refused": str(refused)}
    tally.facts |= {f"worst error of {name}": f"{error:.1e}" for name, error in worst.items()}
    tally.facts["kinds of block"] = f"{len(set(seen) & set(BLOCKS))} of {len(BLOCKS)}"
    return tally
