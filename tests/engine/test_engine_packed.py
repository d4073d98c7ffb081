"""Packed rows: several responses in one row under a block-diagonal mask, against the same pairs each in a row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, VOCAB, make_batch, make_model
from torch import nn

from dyn_probe import BadInput, PairBatch, UnsupportedUse, pair_gradients, row_gram, sequence_logps
from dyn_probe.engine.recording import Recording

pytestmark = pytest.mark.usefixtures("double_everywhere")

PACKABLE = [name for name in FAMILIES if name not in ("bloom", "falcon")]
"""Families that take positions; bloom does not, and falcon reads them off its mask."""


def packed(batch: PairBatch, rows: list[list[int]]) -> PairBatch:
    """The responses of ``batch`` (numbers 0 … 2B−1) laid end to end into ``rows``, padded on the right."""
    fields = {"ids": [], "mask": [], "response": [], "segments": []}
    for row in rows:
        kept = [(i, batch.attention_mask[i].bool()) for i in row]
        fields["ids"].append(torch.cat([batch.input_ids[i][k] for i, k in kept]))
        fields["mask"].append(torch.cat([batch.attention_mask[i][k] for i, k in kept]))
        fields["response"].append(torch.cat([batch.response_mask[i][k] for i, k in kept]))
        fields["segments"].append(torch.cat([torch.full((int(k.sum()),), i) for i, k in kept]))
    padded = {
        name: nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=-1 if name == "segments" else 0)
        for name, values in fields.items()
    }
    return PairBatch(*padded.values())


LAYOUTS = {
    "pairs together": [[0, 3], [1, 4], [2, 5]],
    "everything in one row": [[0, 3, 1, 4, 2, 5]],
    "uneven": [[5, 0, 2], [1], [4, 3]],
}


def close(got, wanted) -> bool:
    return bool(((got - wanted).abs() <= 1e-9 * wanted.abs().max()).all())


@pytest.mark.parametrize("rows", LAYOUTS)
@pytest.mark.parametrize("family", PACKABLE)
def test_packed_pairs_equal_unpacked_ones(family, rows):
    model, batch = make_model(family), make_batch()
    one = packed(batch, LAYOUTS[rows])
    assert one.ids == batch.ids and one.pairs == batch.pairs and one.lengths.tolist() == batch.lengths.tolist()
    assert close(sequence_logps(model, one), sequence_logps(model, batch))
    assert close(row_gram(model, one), row_gram(model, batch))
    found, wanted = pair_gradients(model, one), pair_gradients(model, batch)
    assert close(found.totals, wanted.totals)
    assert all(close(found.by_parameter[n], v) for n, v in wanted.by_parameter.items() if float(v.abs().max()) > 1e-12)


def test_a_training_backward_over_packed_rows():
    model, batch = make_model("llama"), make_batch()
    one = packed(batch, LAYOUTS["uneven"])
    wanted = row_gram(model, batch)
    with Recording(model, full=True, segments=one.segments, hold=True) as recording:
        logps = sequence_logps(model, one)
        recording.watch(logps)
        half = batch.pairs
        (-F.logsigmoid(0.1 * (logps[:half] - logps[half:]))).mean().backward()
        found = recording.result()
        held = recording.held()
        along = torch.stack([held.along(n, p.grad) for n, p in model.named_parameters()]).sum(0)
    assert close(found.gram, wanted)
    assert close(along, wanted @ found.coefficients)


class Gains(nn.Module):
    """A model whose middle layer only the generic rule explains."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.power = nn.Parameter(torch.randn(16, 16) / 4), nn.Parameter(torch.rand(16))

        def forward(self, x):
            return torch.tanh(x @ self.mix @ self.mix.T) * x.abs() ** self.power

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.odd, self.head = nn.Embedding(VOCAB, 16), self.Odd(), nn.Linear(16, VOCAB)
        self.positions = nn.Embedding(64, 16)
        self.double()

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        return self.head(self.odd(self.embed(input_ids) + self.positions(position_ids)))


def test_the_generic_rule_on_packed_rows():
    model, batch = Gains(), make_batch()
    assert close(row_gram(model, packed(batch, LAYOUTS["uneven"])), row_gram(model, batch))


def test_segments_that_are_not_independent_are_refused():
    """The same rows under a plain mask: a response sees what stands before it in its row."""
    model, batch = make_model("llama"), make_batch()
    one = packed(batch, LAYOUTS["everything in one row"])

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids, attention_mask, position_ids):
            return self.inner(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits

    with pytest.raises(UnsupportedUse, match=r"not (apart|independent)"):
        row_gram(Leaky(), one)


def test_what_is_wrong_with_a_packed_batch_is_said():
    batch = make_batch()
    one = packed(batch, LAYOUTS["uneven"])
    fields = (one.input_ids, one.attention_mask, one.response_mask)
    with pytest.raises(BadInput, match="2B responses"):
        PairBatch(*fields, one.segments.clamp(max=4))
    with pytest.raises(BadInput, match="one shape"):
        PairBatch(*fields, one.segments[:, 1:])
    with pytest.raises(BadInput, match="empty response"):
        PairBatch(one.input_ids, one.attention_mask, torch.where(one.segments == 2, 0, one.response_mask), one.segments)
    with pytest.raises(BadInput, match="position_ids"):
        row_gram(make_model("bloom"), one)
