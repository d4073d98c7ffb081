"""Positions of probe responses whose full next-token distribution is kept, and the rows of their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyn_probe.mass.probe_tokens import TokenProbes, TokenResponse

Floats = NDArray[np.float64]

KINDS_SHOWN = ("chosen", "rejected")
TOP = 10
"""Number of most probable tokens of a distribution that a row lists."""


class KeptPosition(NamedTuple):
    """One position of a probe response: the index of its next token, from 0."""

    prompt_id: str
    kind: str
    position: int


def choose_places(probes: TokenProbes, prompts: int = 4) -> dict[KeptPosition, int]:
    """First, middle and last token of chosen and rejected of the first ``prompts`` prompts → target token id."""
    first = list(dict.fromkeys(one.prompt_id for one in probes.responses))[:prompts]
    found = {}
    for one in probes.responses:
        if one.prompt_id in first and one.kind in KINDS_SHOWN:
            said = one.ids[one.start :]
            for at in sorted({0, len(said) // 2, len(said) - 1}):
                found[KeptPosition(one.prompt_id, one.kind, at)] = said[at]
    return found


@dataclass
class Watch:
    """Keeps the distributions ``[V]`` at some positions while a measurement reads logits chunk by chunk."""

    places: Mapping[KeptPosition, int]
    seen: dict[KeptPosition, Floats] = field(default_factory=dict)

    def look(self, batch: Sequence[TokenResponse], rows: Sequence[int], at: int, logits: Tensor) -> None:
        """Keep the wanted distributions of one chunk.

        Args:
            batch: responses of the forward.
            rows: ``[n]`` whose row of the batch each position belongs to.
            at: predicted positions of the batch that came before this chunk.
            logits: ``[n, V]``.
        """
        lengths = [len(one.ids) - one.start for one in batch]
        for k, row in enumerate(rows):
            place = KeptPosition(batch[row].prompt_id, batch[row].kind, at + k - sum(lengths[:row]))
            if place in self.places:
                self.seen[place] = torch.softmax(logits[k].cpu().double(), 0).numpy()


def place_rows(
    step: int, watch: Watch, first: Mapping[KeptPosition, Floats], first_step: int, names: Any
) -> list[dict[str, Any]]:
    """Rows of the ``distributions`` table.

    Args:
        step: step of this measurement.
        first: the distributions of the first measurement; a place it lacks has null in the columns ``first_…``.
        first_step: step of the first measurement.
        names: token ids → token strings.
    """
    rows = []
    for place, target in watch.places.items():  # in the order of the probe set; responses are measured longest first
        if place not in watch.seen:
            continue
        before, now = first.get(place), watch.seen[place]
        ids = _named(now, before, target)
        known = before is not None
        rows.append(
            {
                "step": step, "first_step": first_step if known else None, **place._asdict(),
                "tokens": names(ids), "target": ids.index(target),
                "probabilities": now[ids].tolist(), "rest": _rest(now, ids),
                "first_probabilities": before[ids].tolist() if before is not None else None,
                "first_rest": _rest(before, ids) if before is not None else None,
            }
        )  # fmt: skip
    return rows


def _named(now: Floats, before: Floats | None, target: int) -> list[int]:
    """Ids that a row names, the most probable now first: the target and the top of both distributions."""
    found = {target}
    for probabilities in (now, now if before is None else before):
        found |= set(np.argsort(-probabilities, kind="stable")[:TOP].tolist())
    return sorted(found, key=lambda i: (-now[i], i))


def _rest(probabilities: Floats, ids: Sequence[int]) -> float:
    """Sum over all other tokens: without the cancellation of 1 − their sum."""
    return float(np.delete(probabilities, ids).sum())
