"""The held-out pairs: evaluated now and then during training, never trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dyn_probe.data.collating import collate
from dyn_probe.data.encoding import EncodedPair
from dyn_probe.mass.start_kl import BatchKL, response_key
from dyn_probe.pairs import PairBatch, batch_logits, token_logps
from dyn_probe.train.run import Run

COLUMNS = (
    "eval_logp_chosen", "eval_logp_rejected", "eval_margin", "eval_accuracy", "eval_log_ratio_margin",
    "eval_log_ratio_accuracy",
)  # fmt: skip
KL = "eval_"
"""What the columns of the KL to the start are called here: eval_kl_ref, eval_kl_ref_sampled."""
KL_NUMBERS = 1 << 24
"""Log-probabilities of one model that the KL holds at once, in float64: 128 MiB."""


@torch.no_grad()
def evaluate(run: Run, step: int) -> dict[str, float]:
    """Means over the held-out pairs, in eval mode: columns ``eval_*`` of the ``steps`` table.

    Margin and accuracy are those of the objective's own score, and beside them those of log-ratios, which every
    objective can be measured by: against the reference; without one, against the first evaluation of the run. The KL
    is that to the policy at the start, where anything is known of it.
    """
    setup, size = run.setup, 2 * run.config.batch_size
    was = setup.model.training
    run.module.eval()
    sums = torch.zeros(len(COLUMNS) + 1, dtype=torch.float64, device=setup.device)
    name = ""
    for k in range(0, len(setup.held_out), size):
        part = setup.held_out[k : k + size]
        own = part[setup.processes.rank :: setup.processes.count]
        values, name = _measured(run, own or part[:1], step)  # every process must call a sharded model
        sums += values.sum(1) if own else 0.0 * values.sum(1)
    run.module.train(was)
    means = setup.processes.summed(sums) / len(setup.held_out)
    found = dict(zip((*COLUMNS, KL + name), means.tolist(), strict=True))
    if not name:
        found.pop(KL)
    if run.reference is None and run.held_out_start is None:
        found = {name: value for name, value in found.items() if "log_ratio" not in name}
    return found


def _measured(run: Run, pairs: Sequence[EncodedPair], step: int) -> tuple[Tensor, str]:
    """``[7, B]`` values of COLUMNS for each of these pairs and the KL to the start, and what column the KL is for; ""
    where nothing is known of the start."""
    setup = run.setup
    batch = collate(pairs, setup.pad_id).to(setup.device)
    with setup.autocast():
        logits = batch_logits(run.module, batch)
        logps = token_logps(logits, batch).sum(1).double()
        reference = None if run.reference is None else run.reference.rows(batch).double()
        kl, column = _kl(run, pairs, batch, logits, step)
    score = setup.method.score.of(logps, batch.lengths, reference)
    ratio = logps - (_first(run, pairs, logps) if reference is None else reference)
    margin, log_ratio = (won - lost for won, lost in (score.chunk(2), ratio.chunk(2)))
    values = [*logps.chunk(2), margin, (margin > 0).double(), log_ratio, (log_ratio > 0).double(), kl]
    return torch.stack(values), column


def _kl(run: Run, pairs: Sequence[EncodedPair], batch: PairBatch, logits: Tensor, step: int) -> tuple[Tensor, str]:
    """``[B]`` KL to the start (nats/token), a mean over all response positions of each pair; and its column."""
    rows = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
    named = [response_key(row.ids, row.start) for row in rows], batch.lengths.int().tolist()

    def asked(model: nn.Module) -> Iterator[Tensor]:
        return (part for _, part in positions_of(batch_logits(model, batch), batch))

    known = run.start_policy.begin(*named) if step == 0 else run.start_policy.batch(*named, asked)
    if known is None:
        return torch.zeros(batch.pairs, dtype=torch.float64, device=logits.device), ""
    return mean_kl(known, logits, batch), known.column


def mean_kl(known: BatchKL, logits: Tensor, batch: PairBatch) -> Tensor:
    """``[B]`` mean over the response positions of each pair, both sides together (nats/token).

    Args:
        logits: ``[2B, L', V]`` of the policy, the last positions of the batch.
    """
    sums = torch.zeros(batch.pairs, dtype=torch.float64, device=logits.device)
    for rows, part in positions_of(logits, batch):
        sums.index_add_(0, rows % batch.pairs, known.of(part))
    return sums / batch.lengths.view(2, -1).sum(0)


def positions_of(logits: Tensor, batch: PairBatch) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows ``[n]`` and logits ``[n, V]`` of the response positions, row by row, KL_NUMBERS at a time."""
    offset = batch.input_ids.shape[1] - logits.shape[1]
    rows, columns = batch.response_mask.nonzero(as_tuple=True)
    size = max(1, KL_NUMBERS // logits.shape[2])
    for row, column in zip(rows.split(size), columns.split(size), strict=True):
        yield row, logits[row, column - 1 - offset]


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
