"""The held-out pairs: evaluated now and then during training, never trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dyn_probe.data.collating import collate
from dyn_probe.data.encoding import EncodedPair
from dyn_probe.pairs import PairBatch, batch_logits, token_logps
from dyn_probe.train.run import Run

COLUMNS = (
    "eval_logp_chosen", "eval_logp_rejected", "eval_margin", "eval_accuracy", "eval_log_ratio_margin",
    "eval_log_ratio_accuracy",
)  # fmt: skip
KL = "eval_kl_ref"
KL_NUMBERS = 1 << 24
"""Log-probabilities of one model that the KL holds at once, in float64: 128 MiB."""


@torch.no_grad()
def evaluate(run: Run) -> dict[str, float]:
    """Means over the held-out pairs, in eval mode: columns ``eval_*`` of the ``steps`` table.

    Margin and accuracy are those of the objective's own score, and beside them those of log-ratios, which every
    objective can be measured by: against the reference; without one, against the first evaluation of the run.
    """
    setup, size = run.setup, 2 * run.config.batch_size
    was = setup.model.training
    run.module.eval()
    names = COLUMNS if run.start_model is None else (*COLUMNS, KL)
    sums = torch.zeros(len(names), dtype=torch.float64, device=setup.device)
    for k in range(0, len(setup.held_out), size):
        part = setup.held_out[k : k + size]
        own = part[setup.processes.rank :: setup.processes.count]
        values = _measured(run, own or part[:1]).sum(1)  # every process must call a sharded model
        sums += values if own else 0.0 * values
    run.module.train(was)
    means = setup.processes.summed(sums) / len(setup.held_out)
    found = dict(zip(names, means.tolist(), strict=True))
    if run.reference is None and run.held_out_start is None:
        found = {name: value for name, value in found.items() if "log_ratio" not in name}
    return found


def _measured(run: Run, pairs: Sequence[EncodedPair]) -> Tensor:
    """``[6, B]`` values of COLUMNS for each of these pairs, and KL where the policy's start is known."""
    setup = run.setup
    batch = collate(pairs, setup.pad_id).to(setup.device)
    with setup.autocast():
        logits = batch_logits(run.module, batch)
        logps = token_logps(logits, batch).sum(1).double()
        kl = [] if run.start_model is None else [kl_per_token(logits, batch_logits(run.start_model, batch), batch)]
    reference = None if run.reference is None else run.reference.rows(batch).double()
    score = setup.method.score.of(logps, batch.lengths, reference)
    ratio = logps - (_first(run, pairs, logps) if reference is None else reference)
    margin, log_ratio = (won - lost for won, lost in (score.chunk(2), ratio.chunk(2)))
    return torch.stack([*logps.chunk(2), margin, (margin > 0).double(), log_ratio, (log_ratio > 0).double(), *kl])


def kl_per_token(logits: Tensor, other: Tensor, batch: PairBatch) -> Tensor:
    """``[B]`` exact KL(π‖π_ref) of the next token (nats/token), a mean over all response positions of each pair.

    Args:
        logits: ``[2B, L', V]`` of the policy, the last positions of the batch; ``other`` of the reference.
    """
    offset = batch.input_ids.shape[1] - logits.shape[1]
    rows, columns = batch.response_mask.nonzero(as_tuple=True)
    size = max(1, KL_NUMBERS // logits.shape[2])
    sums = torch.zeros(batch.pairs, dtype=torch.float64, device=logits.device)
    for row, column in zip(rows.split(size), columns.split(size), strict=True):
        mine, theirs = (one[row, column - 1 - offset].double().log_softmax(1) for one in (logits, other))
        sums.index_add_(0, row % batch.pairs, (mine.exp() * (mine - theirs)).sum(1))
    return sums / batch.lengths.view(2, -1).sum(0)


def _first(run: Run, pairs: Sequence[EncodedPair], logps: Tensor) -> Tensor:
    """``[2B]`` log-probabilities of these pairs at the run's first evaluation; ``logps`` where this is it, and where
    the checkpoint of an older version does not know them."""
    if run.held_out_start is None:
        return logps
    chosen, rejected = logps.chunk(2)
    for i, pair in enumerate(pairs):
        run.held_out_start.setdefault(pair.pair_id, (float(chosen[i]), float(rejected[i])))
    start = [run.held_out_start[pair.pair_id] for pair in pairs]
    return logps.new_tensor([*(won for won, _ in start), *(lost for _, lost in start)])
