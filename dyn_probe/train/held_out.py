"""The held-out pairs: evaluated now and then during training, never trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dyn_probe.data.collating import collate
from dyn_probe.data.encoding import EncodedPair
from dyn_probe.pairs import batch_logits, token_logps
from dyn_probe.train.run import Run

COLUMNS = (
    "eval_logp_chosen", "eval_logp_rejected", "eval_margin", "eval_accuracy", "eval_log_ratio_margin",
    "eval_log_ratio_accuracy",
)  # fmt: skip


@torch.no_grad()
def evaluate(run: Run) -> dict[str, float]:
    """Means over the held-out pairs, in eval mode: columns ``eval_*`` of the ``steps`` table.

    Margin and accuracy are those of the objective's own score, and beside them those of log-ratios, which every
    objective can be measured by: against the reference; without one, against the first evaluation of the run.
    """
    setup, size = run.setup, 2 * run.config.batch_size
    was = setup.model.training
    run.module.eval()
    sums = torch.zeros(len(COLUMNS), dtype=torch.float64, device=setup.device)
    for k in range(0, len(setup.held_out), size):
        part = setup.held_out[k : k + size]
        own = part[setup.processes.rank :: setup.processes.count]
        values = _measured(run, own or part[:1]).sum(1)  # every process must call a sharded model
        sums += values if own else 0.0 * values
    run.module.train(was)
    means = setup.processes.summed(sums) / len(setup.held_out)
    known = COLUMNS if run.reference is not None or run.held_out_start is not None else COLUMNS[:-2]
    return dict(zip(known, means.tolist(), strict=False))


def _measured(run: Run, pairs: Sequence[EncodedPair]) -> Tensor:
    """``[6, B]`` values of COLUMNS for each of these pairs."""
    setup = run.setup
    batch = collate(pairs, setup.pad_id).to(setup.device)
    with setup.autocast():
        logps = token_logps(batch_logits(run.module, batch), batch).sum(1).double()
    reference = None if run.reference is None else run.reference.rows(batch).double()
    score = setup.method.score.of(logps, batch.lengths, reference)
    ratio = logps - (_first(run, pairs, logps) if reference is None else reference)
    margin, log_ratio = (won - lost for won, lost in (score.chunk(2), ratio.chunk(2)))
    return torch.stack([*logps.chunk(2), margin, (margin > 0).double(), log_ratio, (log_ratio > 0).double()])


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
