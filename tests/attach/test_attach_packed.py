"""Trainers that put several responses into one row: exactly the rows of the same training with a row for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import make_batch, make_model
from torch import Tensor, nn

from dyn_probe import BadInput, PairBatch, Probe, UnsupportedUse
from dyn_probe.attach.packed import packed_pairs, unpadded
from dyn_probe.pairs import sums_by_segment

pytestmark = pytest.mark.usefixtures("double_everywhere")
BETA, RATE = 0.1, 1e-2


def token_logps(logits: Tensor, ids: Tensor) -> Tensor:
    """``[rows, L-1]``, without a look at any mask: as trainers compute them."""
    return torch.log_softmax(logits[:, :-1], -1).gather(2, ids[:, 1:, None])[..., 0]


def loss_of(rows: Tensor) -> Tensor:
    """DPO without a reference, a loss for each pair."""
    chosen, rejected = rows.chunk(2)
    return -F.logsigmoid(BETA * (chosen - rejected))


def ends_of(batch: PairBatch) -> tuple[list[Tensor], list[Tensor]]:
    """Tokens and labels of each response, without padding."""
    kept = batch.attention_mask.bool()
    labels = batch.input_ids.masked_fill(batch.response_mask == 0, -100)
    return [i[k] for i, k in zip(batch.input_ids, kept, strict=True)], [i[k] for i, k in zip(labels, kept, strict=True)]


def padding_free(batch: PairBatch) -> dict[str, Tensor]:
    """``DataCollatorWithFlattening``'s: one row, chosen first; positions begin anew with each response. (With a
    cache the model would take no mask from them.)"""
    ids, labels = ends_of(batch)
    positions = torch.cat([torch.arange(len(one)) for one in ids])
    return {
        "input_ids": torch.cat(ids)[None],
        "labels": torch.cat(labels)[None],
        "position_ids": positions[None],
        "use_cache": False,
    }


def of_each_pair(batch: PairBatch) -> dict[str, Tensor]:
    """LLaMA-Factory's v1 (0.9.5): a row for each pair, padded on the right; ``token_type_ids`` 1 on the chosen and 2 on
    the rejected part, positions begin anew."""
    ids, labels = ends_of(batch)
    rows = [(i, i + batch.pairs) for i in range(batch.pairs)]
    columns = {
        "input_ids": [torch.cat([ids[i], ids[j]]) for i, j in rows],
        "labels": [torch.cat([labels[i], labels[j]]) for i, j in rows],
        "token_type_ids": [torch.cat([torch.full_like(ids[i], 1), torch.full_like(ids[j], 2)]) for i, j in rows],
        "position_ids": [torch.cat([torch.arange(len(ids[i])), torch.arange(len(ids[j]))]) for i, j in rows],
    }
    pad = nn.utils.rnn.pad_sequence
    return {name: pad(values, True, -100 if name == "labels" else 0) for name, values in columns.items()}


def mask_of(documents: Tensor) -> Tensor:
    """``[rows, 1, L, L]`` block-diagonal and causal."""
    same = (documents[:, :, None] == documents[:, None, :]).tril()
    return torch.zeros(same.shape, dtype=torch.float64).masked_fill(~same, torch.finfo(torch.float64).min)[:, None]


def as_it_is(batch: PairBatch) -> tuple[PairBatch, dict[str, Tensor]]:
    """A row for each response."""
    return batch, {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def by_positions(batch: PairBatch) -> tuple[PairBatch, dict[str, Tensor]]:
    """Padding-free; the model takes its mask from the positions."""
    found = padding_free(batch)
    labels = found.pop("labels")
    return packed_pairs(found["input_ids"], labels != -100, position_ids=found["position_ids"]), found


def by_bounds(batch: PairBatch) -> tuple[PairBatch, dict[str, Tensor]]:
    """The same with FlashAttention's bounds."""
    found = padding_free(batch)
    labels = found.pop("labels")
    lengths = batch.attention_mask.sum(1)
    bounds = F.pad(lengths.cumsum(0), (1, 0)).int()
    return packed_pairs(found["input_ids"], labels != -100, cu_seqlens=bounds), found


def by_documents(batch: PairBatch) -> tuple[PairBatch, dict[str, Tensor]]:
    """A row for each pair, under a block-diagonal mask."""
    found = of_each_pair(batch)
    labels, documents = found.pop("labels"), found.pop("token_type_ids")
    one = packed_pairs(found["input_ids"], labels != -100, documents=documents, order="pairs together")
    return one, {**found, "attention_mask": mask_of(documents)}


LAYOUTS = {"padding-free": by_positions, "cu_seqlens": by_bounds, "a row for each pair": by_documents}


def trained(layout: Any, tokens: bool = True, steps: int = 2, **options: Any) -> tuple[list[dict[str, Any]], nn.Module]:
    """The rows of a training whose batches have this layout, and the model."""
    model = make_model("llama").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    settings = dict(gram_every=1, metric_every=1, update=True) | options
    probe = Probe(model, optimizer=optimizer if settings["metric_every"] else None, **settings)
    for step in range(steps):
        batch, inputs = layout(make_batch(seed=3 + step))
        with probe.step(step, batch.ids, RATE, segments=batch.segments, responses=batch.response_mask):
            found = token_logps(model(**inputs).logits, inputs["input_ids"])
            said = batch.response_mask[:, 1:]
            rows = sums_by_segment(found * said, batch.segments)
            told = dict(lengths=batch.lengths, losses=loss_of(rows).detach())
            probe.pairs(found, mask=said, **told) if tokens else probe.pairs(rows, **told)
            loss_of(rows).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return list(probe.rows), model


@pytest.mark.parametrize("tokens", [True, False], ids=["token by token", "in sums"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_pairs_are_recorded_like_unpacked_ones(layout, tokens):
    expected, plain = trained(as_it_is)
    found, model = trained(LAYOUTS[layout], tokens)
    assert len(found) == len(expected) == 6
    for one, other in zip(found, expected, strict=True):
        assert one["pair_id"] == other["pair_id"] and not one["separate_backward"] and one.keys() == other.keys()
        for name in one.keys() - {"pair_id"}:
            assert np.allclose(one[name], other[name], rtol=1e-8, atol=1e-10, equal_nan=True), name
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_pairs_equal_plain_autograd_and_training_is_the_same(layout):
    found, model = trained(LAYOUTS[layout], steps=1)
    fresh = make_model("llama").train()
    parameters = list(fresh.parameters())
    batch, inputs = LAYOUTS[layout](make_batch(seed=3))
    tokens = token_logps(fresh(**inputs).logits, inputs["input_ids"])
    rows = sums_by_segment(tokens * batch.response_mask[:, 1:], batch.segments)
    flat = [torch.autograd.grad(row, parameters, retain_graph=True) for row in rows]
    rows_of = torch.stack([torch.cat([g.flatten() for g in one]) for one in flat])
    gram = rows_of @ rows_of.T
    for i, row in enumerate(found):
        assert np.isclose(row["grad_norm_chosen"], float(gram[i, i].sqrt()), rtol=1e-9)
        assert np.isclose(row["grad_norm_rejected"], float(gram[i + 3, i + 3].sqrt()), rtol=1e-9)
        assert np.isclose(row["grad_inner"], float(gram[i, i + 3]), rtol=1e-8, atol=1e-10 * float(gram.max()))
    pulls = torch.tensor([-row["pull_chosen"] for row in found] + [row["pull_rejected"] for row in found]) / 3
    loss_of(rows).mean().backward()
    whole = torch.cat([p.grad.flatten() for p in parameters])
    assert torch.allclose(pulls @ rows_of, whole, rtol=1e-6, atol=1e-10)
    torch.optim.SGD(parameters, lr=RATE, momentum=0.9).step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), parameters, strict=True))


class Unpadding(nn.Module):
    """A policy that takes the padding out inside its forward (OpenRLHF's ``packing_samples``): the language model is
    called with one row of all tokens, and its log-probabilities are put back to where they were."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, attention: Tensor) -> Tensor:
        kept = attention.bool()
        positions = (attention.cumsum(1) - 1)[kept][None]
        flat = ids[kept][None]
        next_tokens = torch.roll(ids, -1, 1)[kept][None]
        logits = self.model(input_ids=flat, position_ids=positions, use_cache=False).logits
        found = torch.log_softmax(logits, -1).gather(2, next_tokens[..., None])[0, :, 0]
        return found.new_zeros(ids.shape).masked_scatter(kept, found)[:, :-1]


def test_a_policy_that_takes_the_padding_out_itself():
    expected, _ = trained(as_it_is, steps=1, metric_every=0, update=False)
    batch = make_batch(seed=3)
    policy = Unpadding(make_model("llama").train())
    probe, one = Probe(policy.model, gram_every=1), unpadded(batch)
    assert one.ids == batch.ids and one.input_ids.shape == (1, int(batch.attention_mask.sum()))
    with probe.step(0, batch.ids, RATE, segments=one.segments, responses=one.response_mask):
        rows = (policy(batch.input_ids, batch.attention_mask) * batch.response_mask[:, 1:]).sum(1)
        probe.pairs(rows, lengths=batch.lengths, losses=loss_of(rows))
        loss_of(rows).mean().backward()
    for mine, theirs in zip(probe.rows, expected, strict=True):
        for name in theirs.keys() - {"pair_id", "rank"}:
            assert np.allclose(mine[name], theirs[name], rtol=1e-8, atol=1e-10, equal_nan=True), name


def test_tokens_of_packed_responses_that_are_pulled_differently_have_no_pull():
    batch, inputs = by_positions(make_batch(seed=3))
    model, expected = make_model("llama").train(), trained(as_it_is, steps=1)[0]
    probe, said = Probe(model), batch.response_mask[:, 1:]
    with probe.step(0, batch.ids, RATE, segments=batch.segments):
        found = token_logps(model(**inputs).logits, inputs["input_ids"])
        probe.pairs(found, mask=said)
        weights = torch.linspace(0.5, 1.5, said.shape[1])
        loss_of(sums_by_segment(found * said * weights, batch.segments)).mean().backward()
    for one, other in zip(probe.rows, expected, strict=True):
        assert one["separate_backward"] and "pull_chosen" not in one
        assert np.isclose(one["grad_inner"], other["grad_inner"], rtol=1e-9)


class PrefixSharing(nn.Module):
    """A language model that computes the prompt of both responses once, in the manner of flash-preference: inside, one
    row of prompt, chosen and rejected; outside, a row for each response."""

    def __init__(self, model: nn.Module, shared: int) -> None:
        super().__init__()
        self.inner, self.shared = model, shared

    def forward(self, input_ids: Tensor) -> Tensor:
        n, (chosen, rejected) = self.shared, input_ids
        flat = torch.cat([chosen, rejected[n:]])[None]
        positions = torch.cat([torch.arange(len(chosen)), torch.arange(n, len(rejected))])[None]
        side = torch.cat([torch.zeros(n), torch.ones(len(chosen) - n), torch.full((len(rejected) - n,), 2.0)])
        seen = ((side[:, None] == side) | (side == 0)).tril()
        mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)[
            None, None
        ]
        logits = self.inner(input_ids=flat, position_ids=positions, attention_mask=mask).logits[0]
        return torch.stack([logits[: len(chosen)], torch.cat([logits[:n], logits[len(chosen) :]])])


def pair_of_rows() -> tuple[Tensor, Tensor]:
    """A prompt of three tokens with two responses of five."""
    torch.manual_seed(4)
    chosen, rejected = torch.randint(3, 60, (2, 8))
    rejected[:3] = chosen[:3]
    mask = torch.zeros(2, 8)
    mask[:, 3:] = 1
    return torch.stack([chosen, rejected]), mask


def test_a_model_that_shares_the_prompt_is_refused_in_words():
    ids, mask = pair_of_rows()
    model = PrefixSharing(make_model("llama").train(), 3)
    with (
        pytest.raises(UnsupportedUse, match=r"fewer tokens than its rows have.*sharing of the prompt"),
        Probe(model).step(0) as probe,
    ):
        probe.pairs(token_logps(model(ids), ids), mask=mask[:, 1:])


def test_a_shared_prompt_is_seen_in_the_layout():
    ids, mask = pair_of_rows()
    flat, said = torch.cat([ids[0], ids[1, 3:]])[None], torch.cat([mask[0], mask[1, 3:]])[None]
    positions = torch.cat([torch.arange(8), torch.arange(3, 8)])[None]
    with pytest.raises(BadInput, match="share their prompt's tokens in one computation"):
        packed_pairs(flat, said, position_ids=positions)
    documents = torch.tensor([[1] * 3 + [2] * 5 + [3] * 5])
    with pytest.raises(BadInput, match="2B responses"):
        packed_pairs(flat, said, documents=documents)
    documents = torch.tensor([[1] * 8 + [2] * 5])
    with pytest.raises(BadInput, match="no token right before it"):
        packed_pairs(flat, said, documents=documents)


def test_what_is_wrong_with_a_packed_layout_is_said():
    found = padding_free(make_batch(seed=3))
    ids, said, positions = found["input_ids"], found["labels"] != -100, found["position_ids"]
    length = ids.shape[1]
    with pytest.raises(BadInput, match="wants one of position_ids, cu_seqlens, documents; got none"):
        packed_pairs(ids, said)
    with pytest.raises(BadInput, match="got position_ids, documents"):
        packed_pairs(ids, said, position_ids=positions, documents=ids)
    with pytest.raises(BadInput, match="'chosen first' or 'pairs together'; got 'rejected first'"):
        packed_pairs(ids, said, position_ids=positions, order="rejected first")
    with pytest.raises(BadInput, match=rf"rise from 0 to {length}"):
        packed_pairs(ids, said, cu_seqlens=torch.tensor([0, 5]))
    end = length - 1 - int(positions[0, -1])  # without the last response
    with pytest.raises(BadInput, match="got 5"):
        packed_pairs(ids[:, :end], said[:, :end], position_ids=positions[:, :end])


def test_padding_belongs_to_no_response():
    found = padding_free(make_batch(seed=3))
    del found["use_cache"]
    padded = {name: F.pad(values, (0, 3), value=-100 if name == "labels" else 0) for name, values in found.items()}
    kept = F.pad(torch.ones_like(found["input_ids"]), (0, 3))
    one = packed_pairs(
        padded["input_ids"], padded["labels"] != -100, position_ids=padded["position_ids"], padding_mask=kept
    )
    assert one.ids == make_batch(seed=3).ids and one.segments[0, -3:].tolist() == [-1] * 3


def test_the_order_of_the_sides():
    batch = make_batch(seed=3)
    found = of_each_pair(batch)
    arguments = dict(documents=found["token_type_ids"], padding_mask=None)
    together = packed_pairs(found["input_ids"], found["labels"] != -100, **arguments, order="pairs together")
    assert together.ids == batch.ids
    assert packed_pairs(found["input_ids"], found["labels"] != -100, **arguments).ids != batch.ids


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_long_response_adds_up_as_a_row_of_its_own_does(dtype: torch.dtype) -> None:
    """Half precision stops growing where a sum is kept in it: -0.7 added 600 times is -256 in bfloat16."""
    tokens = torch.full((1, 1200), -0.7, dtype=dtype)
    segments = torch.arange(2).repeat_interleave(600)[None]
    found = sums_by_segment(tokens, segments)
    torch.testing.assert_close(found, tokens.view(2, 600).sum(1))


@pytest.mark.parametrize("name", ["position_ids", "documents"])
def test_counts_of_32_bits_are_read_like_others(name: str) -> None:
    found = padding_free(make_batch(seed=3)) if name == "position_ids" else of_each_pair(make_batch(seed=3))
    counts = found["position_ids" if name == "position_ids" else "token_type_ids"]
    wide, narrow = (
        packed_pairs(found["input_ids"], found["labels"] != -100, **{name: counts.to(kind)})
        for kind in (torch.int64, torch.int32)
    )
    assert wide.ids == narrow.ids and torch.equal(wide.segments, narrow.segments)
