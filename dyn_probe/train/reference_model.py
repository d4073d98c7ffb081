"""The reference policy: evaluated once before training, or kept and evaluated in every step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.data.collating import collate
from dyn_probe.data.encoding import EncodedPair
from dyn_probe.pairs import PairBatch, batch_logits, token_logps
from dyn_probe.train.parallel import Processes

Autocast = Callable[[], Any]


class Reference:
    """``r_w, r_l`` of any pair.

    Args:
        table: pair id → ``(r_w, r_l)``, where the reference was evaluated before training.
        model: a frozen copy, where it is evaluated in every step.
        autocast: the context of the policy's own forward.
    """

    def __init__(self, table: dict[str, tuple[float, float]], model: nn.Module | None, autocast: Autocast) -> None:
        self.table, self.model, self.autocast = table, model, autocast

    def rows(self, batch: PairBatch) -> Tensor:
        """``[2B]`` reference log-probabilities (nats)."""
        if self.model is not None:
            return self.tokens(batch).sum(1)
        found = [self.table[pair] for pair in batch.ids]
        values = torch.tensor([*(w for w, _ in found), *(l for _, l in found)], dtype=torch.float64)  # noqa: E741
        return values.to(device=batch.input_ids.device)

    @torch.no_grad()
    def tokens(self, batch: PairBatch) -> Tensor:
        """``[2B, L]`` per-token reference log-probabilities (nats); needs the live model."""
        assert self.model is not None, "a precomputed reference has no per-token values"
        with self.autocast():
            return token_logps(batch_logits(self.model, batch), batch)


def live_reference(model: nn.Module, autocast: Autocast) -> Reference:
    """A frozen copy of the policy as it is now."""
    return Reference({}, frozen_copy(model), autocast)


def frozen_copy(model: nn.Module, share: bool = False) -> nn.Module:
    """A copy of the model as it is now, for evaluation.

    Args:
        share: whether parameters that are not trained are those of the model itself, so that adapters alone are copied.
    """
    shared = {id(p): p for p in model.parameters() if share and not p.requires_grad}
    return copy.deepcopy(model, dict(shared)).eval().requires_grad_(False)


@torch.no_grad()
def evaluate_pairs(
    model: nn.Module,
    pairs: Sequence[EncodedPair],
    pad_id: int,
    batch_size: int,
    device: torch.device,
    autocast: Autocast,
    progress: Callable[[int], None],
    processes: Processes,
) -> dict[str, tuple[float, float]]:
    """Pair id → log-probabilities ``(a, b)`` (nats) of all pairs in eval mode, in batches of similar length.

    The processes take turns; where parameters are split over them, all of them run every batch.

    Args:
        progress: called with the number of pairs done in each batch.
    """
    table: dict[str, tuple[float, float]] = {}
    training = model.training
    model.eval()
    ordered = sorted(pairs, key=lambda pair: len(pair.chosen.ids) + len(pair.rejected.ids))
    for turn, start in enumerate(range(0, len(ordered), batch_size)):
        part = ordered[start : start + batch_size]
        progress(len(part))
        if not processes.sharded and turn % processes.count != processes.rank:
            continue
        batch = collate(part, pad_id).to(device)
        with autocast():
            values = token_logps(batch_logits(model, batch), batch).sum(1).double().tolist()
        for i, pair in enumerate(part):
            table[pair.pair_id] = (values[i], values[i + len(part)])
    model.train(training)
    return {name: values for part in processes.gathered(table) for name, values in part.items()}
