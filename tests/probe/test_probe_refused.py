"""A refusal of ``Probe`` leaves no state behind; and why ``batch_delta_*`` is empty is written down."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import make_batch, make_model

from dyn_probe import BadInput, Probe, load_trace, sequence_logps
from dyn_probe.probe import following
from dyn_probe.probe.following import Following
from dyn_probe.probe.run_rows import RunRows
from dyn_probe.probe.schedule import Schedule

WATCHED: tuple[dict[str, Any], ...] = ({}, {"metric_every": 1}, {"split_momentum": True}, {"update": True})


def hooks(optimizer: torch.optim.Optimizer) -> int:
    """On the optimizer's steps."""
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


@pytest.mark.parametrize("watched", WATCHED, ids=str)
@pytest.mark.parametrize(("rule", "metric"), [("Adafactor", "previous"), ("Rprop", "previous"), ("AdamW", "prevous")])
def test_a_refused_metric_leaves_no_hook_and_no_folder(tmp_path, watched, rule, metric):
    model = make_model("llama")
    optimizer = getattr(torch.optim, rule)(model.parameters())
    with pytest.raises(BadInput, match="metric"):
        Probe(model, tmp_path / "run", optimizer=optimizer, metric=metric, **watched)
    assert hooks(optimizer) == 0 and not (tmp_path / "run").exists()


def test_hooks_are_counted(tmp_path):
    model = make_model("llama")
    optimizer = torch.optim.AdamW(model.parameters())
    with Probe(model, tmp_path / "run", optimizer=optimizer, metric="previous", metric_every=1):
        assert hooks(optimizer) == 4
    assert hooks(optimizer) == 0


@pytest.mark.parametrize("rule", ["Adafactor", "Rprop"])
def test_following_refuses_before_it_hooks(rule):
    model = make_model("llama")
    optimizer = getattr(torch.optim, rule)(model.parameters())
    with pytest.raises(BadInput, match="write metric='applied'"):
        Following(
            model, optimizer, RunRows(None, 0), Schedule(metric_every=1), metric="previous", split=False, update=True,
            in_parts=False, averaged=1,
        )  # fmt: skip
    assert hooks(optimizer) == 0


def recorded(folder: Any, scale: float = 1.0, alone: bool = True, weighted: bool = False, every: int = 1) -> Any:
    """The trace of a step with the full Gram."""
    model, batch = make_model("llama"), make_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with Probe(model, folder, optimizer=optimizer, gram_every=every, certify=not weighted) as probe:
        for step in range(2):
            with probe.step(step, batch.ids):
                logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
                tokens = logits.log_softmax(-1).gather(2, batch.input_ids[:, 1:, None])[..., 0]
                mask = batch.response_mask[:, 1:]
                probe.pairs(tokens, mask=mask, loss_scale=scale, alone=alone)
                weights = torch.linspace(1, 2, mask.shape[1]) if weighted else torch.ones(mask.shape[1])
                logps = (tokens * mask * weights.to(tokens)).sum(1)
                (-scale * F.logsigmoid(0.1 * (logps[: batch.pairs] - logps[batch.pairs :])).mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
    return load_trace(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": 0.5, "alone": False}, following.OTHER_ROWS),
        ({"scale": 0.5}, following.SCALED.format(scale=0.5)),
        ({"weighted": True}, following.WEIGHTED),
    ],
    ids=["other rows", "scaled", "weighted tokens"],
)
def test_why_the_batch_s_prediction_is_empty_is_said(tmp_path, options, said):
    trace = recorded(tmp_path / "run", **options)
    assert trace.pairs["batch_delta_chosen"].isna().all() and trace.manifest["batch_delta"] == said


@pytest.mark.parametrize("every", [0, 1])
def test_nothing_is_said_where_it_is_there_or_was_not_wanted(tmp_path, every):
    trace = recorded(tmp_path / "run", every=every)
    assert trace.pairs["batch_delta_chosen"].notna().all() == bool(every)
    assert "batch_delta" not in trace.manifest


@pytest.mark.parametrize("tokens", [False, True], ids=["sums", "token by token"])
def test_a_leaf_that_wants_a_gradient_is_no_graph(tokens):
    """Loops that cache gradients cut the graph so; what stands behind it is then out of sight."""
    model, batch = make_model("llama"), make_batch()
    said = batch.response_mask[:, 1:]
    with pytest.raises(BadInput, match="detached"), Probe(model, certify=False).step(0, batch.ids) as probe:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
        found = logits.log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
        cut = (found if tokens else (found * said).sum(1)).detach().requires_grad_()
        probe.pairs(cut, mask=said if tokens else None)


def test_coefficients_of_other_terms_come_after_the_backward():
    model, batch = make_model("llama"), make_batch()
    with pytest.raises(BadInput, match="once that has run"), Probe(model).step(0, batch.ids) as probe:
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        probe.complete(coefficients=torch.ones(len(logps)))
