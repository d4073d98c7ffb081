"""What a recorded step does not keep and does not copy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from families import make_batch, make_model
from torch.multiprocessing.reductions import StorageWeakRef

from dyn_probe import Probe
from dyn_probe.engine import products
from dyn_probe.engine.factors import Outer
from dyn_probe.engine.products import gram
from dyn_probe.engine.routes import costs


def test_logits_are_gone_before_the_backward():
    """GPT-2's positions are read once for the whole batch, so its output is kept to be checked, and no longer."""
    model, batch = make_model("gpt2"), make_batch()
    probe = Probe(model, certify=False)
    for step in range(2):
        with probe.step(step, batch.ids):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            memory = StorageWeakRef(logits.untyped_storage())
            tokens = torch.log_softmax(logits[:, :-1], -1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
            del logits
            logps = (tokens * batch.response_mask[:, 1:]).sum(1)
            probe.pairs(logps)
            assert memory.expired()
            chosen, rejected = logps.chunk(2)
            (-F.logsigmoid(chosen - rejected)).mean().backward()
    assert len(probe.fresh) == batch.pairs


@pytest.mark.parametrize(
    ("copied", "dtype"), [(0, torch.float32), (1 << 30, torch.float32), (0, torch.bfloat16)],
    ids=["large", "small", "large, in half precision"],
)  # fmt: skip
def test_large_rows_of_pairs_stay_where_they_are(copied, dtype, monkeypatch):
    """Three products of a pair's rows where they lie; small ones are brought together for one, and so is what is
    turned into float32 in any case."""
    monkeypatch.setattr(products, "COPIED", copied)
    monkeypatch.setattr(costs, "LAUNCHED", {"cpu": 0})
    monkeypatch.setattr(products, "cheaper_by_tokens", lambda *_: True)
    g = torch.Generator().manual_seed(0)
    one = Outer(torch.randn(6, 9, 5, generator=g).to(dtype), torch.randn(6, 9, 7, generator=g).to(dtype))
    there = {one.grads.untyped_storage().data_ptr(), one.inputs.untyped_storage().data_ptr()}
    calls, shared, honest = [], [], products.matmul32

    def multiplied(left, right):
        found = {t.untyped_storage().data_ptr() for t in (left, right)}
        calls.append(found <= there)
        shared.append(len(found) == 1)
        return honest(left, right)

    monkeypatch.setattr(products, "matmul32", multiplied)
    found = gram(one, 3)
    assert calls == ([True] * 6 if not copied and dtype == torch.float32 else [False] * 2)
    assert all(shared)  # rows with themselves: what is copied is copied once for both sides
    rows = torch.einsum("rtq,rtp->rqp", one.grads.double(), one.inputs.double()).flatten(1).unflatten(0, (2, 3))
    torch.testing.assert_close(found, torch.einsum("ngk,mgk->gnm", rows, rows), rtol=1e-5, atol=1e-4)
