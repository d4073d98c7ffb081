"""Where the two responses of a pair differ, and what each part of them is worth: columns of the table ``pairs``.

``n`` is the length of the longest response of a batch, in tokens; ``m`` a pair's first difference: the first response
token that is not the same on both sides (Yuan et al. 2024, Theorem 3). Where one response is the beginning of the
other, ``m`` is the first token that only the longer one has.
"""

from __future__ import annotations

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from dyn_probe.errors import BadInput
from dyn_probe.pairs import PairBatch

ABSENT = -1
"""Stands for a token where a response has ended; no token has this id."""


def response_tokens(values: Tensor, batch: PairBatch, absent: float) -> Tensor:
    """``[2B, n]`` the values ``[rows, L]`` at each response's tokens in order, ``absent`` behind its end."""
    rows, columns = batch.response_mask.nonzero(as_tuple=True)
    owner = rows if batch.segments is None else batch.segments[rows, columns]
    owner, order = owner.sort(stable=True)
    lengths = torch.bincount(owner, minlength=2 * batch.pairs)
    place = torch.arange(len(owner), device=owner.device) - (lengths.cumsum(0) - lengths)[owner]
    found = values.new_full((2 * batch.pairs, int(lengths.max())), absent)
    return found.index_put((owner, place), values[rows[order], columns[order]])


def difference_columns(tokens: Tensor, batch: PairBatch) -> dict[str, Tensor]:
    """Columns of the pairs, ``[B]`` each, without a further forward.

    Args:
        tokens: ``[rows, L]`` log-probabilities of the response tokens (nats), as ``token_logps`` gives them.

    Returns:
        ``logp_chosen_before``, ``_at`` and ``_after`` and the same of rejected (nats/sequence, together the response's
        log-probability), ``shared_prefix`` (tokens) and ``edit_distance`` (share).

    Raises:
        BadInput: ``tokens`` has another shape than the batch.
    """
    if tokens.shape != batch.input_ids.shape:
        raise BadInput(
            f"difference_columns needs token log-probabilities of the batch's shape {list(batch.input_ids.shape)}; got "
            f"{list(tokens.shape)}"
        )
    ids = response_tokens(batch.input_ids, batch, ABSENT)
    logps = response_tokens(tokens.detach().double(), batch, 0.0)
    chosen, rejected = ids.chunk(2)
    shared = ((chosen == rejected) & (chosen != ABSENT)).cumprod(1).sum(1)
    found = {"shared_prefix": shared, "edit_distance": edit_distances(ids)}
    place = torch.arange(ids.shape[1], device=ids.device) - shared[:, None]
    for side, values in zip(("chosen", "rejected"), logps.chunk(2), strict=True):
        for part, mine in (("before", place < 0), ("at", place == 0), ("after", place > 0)):
            found[f"logp_{side}_{part}"] = (values * mine).sum(1)
    return found


def edit_distances(ids: Tensor) -> Tensor:
    """``[B]`` Levenshtein distance of each pair's two responses over the longer length: 0 the same, 1 nothing shared.

    Args:
        ids: ``[2B, n]`` token ids, ABSENT behind a response's end.
    """
    rows = [[token for token in row if token != ABSENT] for row in ids.tolist()]
    half = len(rows) // 2
    sides = zip(rows[:half], rows[half:], strict=True)
    return torch.tensor([Levenshtein.normalized_distance(*pair) for pair in sides], dtype=torch.float64)
