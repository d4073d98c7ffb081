"""Pulls too small for the type that the gradient was computed in are not divided by, wherever that type comes from."""

from __future__ import annotations

import pytest
import torch
from families import make_batch, make_model
from hand_written import Base
from reference.same_graph import gram_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from dyn_probe import Probe, sequence_logps
from dyn_probe.engine.answer import pair_entries
from dyn_probe.engine.factors import Lookup, MetOuter, Outer, Vector
from dyn_probe.engine.graph import graph_behind
from dyn_probe.engine.heads.head_rows import HeadRows
from dyn_probe.engine.held import weighted_sum
from dyn_probe.engine.tap import Capture


class Island(Base):
    """One layer computes in float16: in the open, hidden by a reentrant checkpoint, or by a cast without a module."""

    def __init__(self, way="open", low=True):
        super().__init__()
        self.way, self.low = way, low

    def build(self):
        self.layer = nn.Linear(16, 16)

    def part(self, x):
        if self.way == "cast":
            return torch.tanh(x.half()).float() if self.low else torch.tanh(x)
        with torch.autocast("cpu", torch.float16, enabled=self.low):
            return torch.tanh(self.layer(x)).to(x.dtype)

    def body(self, x):
        return checkpoint(self.part, x, use_reentrant=True) if self.way == "hidden" and self.low else self.part(x)


def llama(dtype=torch.float32):
    return make_model("llama", dtype, noise=0.05)


def inside(model):
    """The forward in autocast, as accelerate does it."""
    model.forward = torch.autocast("cpu", torch.float16)(model.forward)
    return model


def checkpointed(model):
    model.gradient_checkpointing_enable({"use_reentrant": True})
    return model


WAYS = {
    "autocast around": (llama, llama, True),
    "autocast inside": (lambda: inside(llama()), llama, False),
    "autocast and reentrant checkpoints": (lambda: checkpointed(llama()), llama, True),
    "float16 weights": (lambda: llama(torch.float16), lambda: llama(torch.float16), False),
    **{
        f"one layer, {way}": (lambda w=way: Island(w).float(), lambda w=way: Island(w, low=False).float(), False)
        for way in ("open", "hidden", "cast")
    },
}
"""Name → the model, its twin without float16, and whether autocast stands around the forward."""


def rows_of(model, batch, pull, autocast=False, dtype=torch.float16, full=False):
    """What is recorded where the first pair is pulled by ``pull`` and the others by 1."""
    weights = torch.ones(2 * batch.pairs)
    weights[[0, batch.pairs]] = pull
    probe = Probe(model, certify=False, gram_every=int(full))
    with probe.step(0, batch.ids):
        with torch.autocast("cpu", dtype, enabled=autocast):
            logps = sequence_logps(model, batch)
        probe.pairs(logps)
        (logps * weights).sum().backward()
    return probe.fresh


def worst(rows, twin, batch):
    """Largest error of the squared norms and the inner products against plain autograd on the twin in float64,
    relative to the product of the norms."""
    twin = twin.double()
    entries = pair_entries(gram_of(sequence_logps(twin, batch), twin))
    found = [[row["grad_norm_chosen"] ** 2, row["grad_norm_rejected"] ** 2, row["grad_inner"]] for row in rows]
    scale = torch.stack([entries[:, 0], entries[:, 1], (entries[:, 0] * entries[:, 1]).sqrt()], 1)
    return float(((torch.tensor(found) - entries).abs() / scale).nan_to_num(float("inf")).max())


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pull", [1e-6, 1e-9, 1e-12, 1e-30])
@pytest.mark.parametrize("way", WAYS)
def test_small_pulls_in_float16_are_measured_apart(way, pull, full):
    make, twin, autocast = WAYS[way]
    batch = make_batch()
    rows = rows_of(make(), batch, pull, autocast, full=full)
    assert worst(rows, twin(), batch) <= 2e-2
    assert [row["separate_backward"] for row in rows] == [True, full, full]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 1e-2), (torch.bfloat16, 2e-2)])
def test_pulls_that_the_type_can_hold_cost_no_further_backward(dtype, limit):
    batch, smallest = make_batch(), 1e-2 if dtype == torch.float16 else 1e-15
    rows = rows_of(llama(), batch, smallest, autocast=True, dtype=dtype)
    assert worst(rows, llama(), batch) <= limit and not any(row["separate_backward"] for row in rows)


def test_norms_in_float32_inside_a_float64_model_set_the_limit():
    """transformers computes norms in float32 whatever the weights are; what underflows there is lost."""

    class Single(Base):
        def body(self, x):
            return torch.tanh(x.type(torch.float32)).type(x.dtype)

    batch = make_batch()
    rows = rows_of(Single(), batch, 1e-60)
    assert rows[0]["separate_backward"] and worst(rows, Single(), batch) <= 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_no_type_of_the_graph_is_overlooked(way):
    """The walk asks only operations that may change the type; here all of them are asked."""
    make, _, autocast = WAYS[way]
    model, batch = make(), make_batch()
    with Capture(model, lambda *_: None) as capture, torch.autocast("cpu", torch.float16, enabled=autocast):
        logps = sequence_logps(model, batch)
    nodes, every = [logps.grad_fn], {}
    while nodes:
        if (node := nodes.pop()) is not None and node not in every:
            every[node] = {output.dtype for output in node._input_metadata}
            nodes += [following for following, _ in node.next_functions]
    parameters = {p.dtype for p in model.parameters()}
    assert set().union(*every.values()) <= {*graph_behind(logps).dtypes, *capture.dtypes, *parameters}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6])
def test_weighted_sums_in_half_precision_keep_their_range(dtype, size, transposed):
    """As a training rounds them: no coefficient overflows the type, and those that are small beside others vanish."""
    generator = torch.Generator().manual_seed(0)
    grads, inputs = (torch.randn(6, 40, n, generator=generator).to(dtype) for n in (5, 7))
    coefficients = size * torch.tensor([1.0, -0.3, 2.7, 1e-12, 0.0, -1.9], dtype=torch.float64)
    found = Outer(grads, inputs, transposed).trained(coefficients, None, torch.Size()).double()
    wanted = torch.einsum("r,rtp,rtq->pq", coefficients, grads.double(), inputs.double())
    wanted = wanted.T if transposed else wanted
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 2 * torch.finfo(dtype).eps * wanted.abs().max()
    assert not Outer(grads, inputs, transposed).trained(torch.zeros(6).double(), None, torch.Size()).any()


def test_a_sum_is_rounded_by_the_factors_whose_gradients_a_training_rounds():
    """An outer product rounds as its training does; what is made from others keeps the precision of its sum."""
    generator, dtype = torch.Generator().manual_seed(0), torch.bfloat16
    grads, inputs = (torch.randn(6, 9, n, generator=generator).to(dtype) for n in (5, 7))
    coefficients = torch.linspace(-1.3, 1.7, 6, dtype=torch.float64)
    outer, shape = Outer(grads, inputs), torch.Size((5, 7))
    table = Lookup(grads, torch.arange(9).expand(6, -1), 9)
    for factor, like, rounds in (
        (outer, shape, True),
        (MetOuter(grads, inputs, kept=grads, where=table.ids), shape, False),
        (table, torch.Size((9, 5)), False),
        (Vector(grads[:, 0]), torch.Size((5,)), False),
    ):
        trained, total = factor.trained(coefficients, None, like), torch.ones(like)
        assert bool((trained != factor.weighted(coefficients, None, like)).any()) == rounds
        assert torch.equal(factor.trained(coefficients, total, like), total)
        torch.testing.assert_close(total, 1 + trained)
        for rounded in (False, True):
            wanted = trained if rounded else factor.weighted(coefficients, None, like)
            assert torch.equal(weighted_sum([factor], coefficients, like, rounded=rounded), wanted)
    assert HeadRows.trained is MetOuter.trained is not Outer.trained
