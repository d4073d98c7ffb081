"""Batches that hold several responses in a row, without padding between them: which position is whose.

Letters as in docs/notation.md: ``B`` pairs, ``2B`` responses; ``[rows, L]`` is the batch that the model is called with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dyn_probe.errors import BadInput
from dyn_probe.pairs import PairBatch

ORDERS = ("chosen first", "pairs together")
"""Order of the responses, row after row: all chosen and then all rejected; or chosen and rejected in turns."""
SHARED = (
    "the chosen and the rejected response share their prompt's tokens in one computation, and what one backward leaves "
    "at these tokens belongs to both: it cannot be taken apart. Train with a prompt for each response (without "
    "prefix sharing) while you record"
)


def packed_pairs(
    input_ids: Tensor,
    response_mask: Tensor,
    *,
    position_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    documents: Tensor | None = None,
    padding_mask: Tensor | None = None,
    order: str = "chosen first",
) -> PairBatch:
    """The pairs of a packed batch, from one of three ways to say where a response begins.

    Args:
        input_ids: ``[rows, L]`` tokens, as the model is called with them.
        response_mask: ``[rows, L]``, 1 on response tokens (``labels != -100``).
        position_ids: ``[rows, L]``: a response begins, with its prompt, where they do not go on by 1 (padding-free
            collators; the model masks by them).
        cu_seqlens: ``[2B + 1]`` where each begins in the one row, 0 and L included (FlashAttention's).
        documents: ``[rows, L]``: a number for each response of a row, the same at all its positions, 0 on padding
            (block-diagonal masks; LLaMA-Factory's ``token_type_ids``).
        padding_mask: ``[rows, L]``, 1 on real tokens; where ``documents`` do not say it.
        order: one of ``ORDERS``.

    Returns:
        A batch with segments, for ``Probe.step(…, batch.ids, segments=batch.segments)``.

    Raises:
        BadInput: not one of the three ways, an unknown order, an odd number of responses, or prompts that are shared.
    """
    given = {"position_ids": position_ids, "cu_seqlens": cu_seqlens, "documents": documents}
    ways = [name for name, value in given.items() if value is not None]
    if len(ways) != 1:
        raise BadInput(f"packed_pairs wants one of {', '.join(given)}; got {', '.join(ways) or 'none'}")
    if order not in ORDERS:
        raise BadInput(f"wanted order={' or '.join(map(repr, ORDERS))}; got {order!r}")
    kept = torch.ones_like(input_ids) if padding_mask is None else padding_mask
    if documents is not None:
        kept, numbers = kept * (documents != 0), _counted(_steps(documents) != 0)
    elif position_ids is not None:
        _refuse_shared(position_ids.expand_as(input_ids), kept)
        numbers = _counted(_steps(position_ids.expand_as(input_ids)) != 1)
    else:
        numbers = _counted(_starts(cu_seqlens, input_ids))  # type: ignore[arg-type]
    segments = _renumbered(numbers, kept.bool(), order)
    return PairBatch(input_ids, kept, response_mask * kept, segments)


def unpadded(batch: PairBatch) -> PairBatch:
    """The same pairs end to end in one row, as a model sees them that takes the padding out inside its forward
    (``packing_samples`` of OpenRLHF, FlashAttention's ``unpad_input``).

    Args:
        batch: one response a row.
    """
    kept = batch.attention_mask.bool()
    owner = torch.arange(len(kept), device=kept.device)[:, None].expand_as(kept)
    ids, response, segments = (t[kept][None] for t in (batch.input_ids, batch.response_mask, owner))
    return PairBatch(ids, torch.ones_like(ids), response, segments)


def _steps(values: Tensor) -> Tensor:
    """``[rows, L]`` what each position has more than the one before it; a number at the first that no position has."""
    values = values.long()
    return torch.cat([torch.full_like(values[:, :1], -(2**40)), values[:, 1:] - values[:, :-1]], 1)


def _counted(begins: Tensor) -> Tensor:
    """``[rows, L]`` the number of the response that a position belongs to, counted through all rows."""
    return (begins.flatten().long().cumsum(0) - 1).view(begins.shape)


def _starts(bounds: Tensor, input_ids: Tensor) -> Tensor:
    rows, length = input_ids.shape
    whole = (
        bounds.dim() == 1
        and bool((bounds[1:] > bounds[:-1]).all())
        and (int(bounds[0]), int(bounds[-1]))
        == (
            0,
            length,
        )
    )
    if rows != 1 or not whole:
        raise BadInput(
            f"wanted cu_seqlens that rise from 0 to {length} over one row; got {bounds.tolist()}, {rows} rows"
        )
    begins = torch.zeros_like(input_ids, dtype=torch.bool)
    begins[0, bounds[:-1].long()] = True
    return begins


def _refuse_shared(position_ids: Tensor, kept: Tensor) -> None:
    """A response that begins anywhere but at its row's first position goes on from a prompt that stands before it."""
    begins = (_steps(position_ids) != 1) & kept.bool()
    if bool((begins & (position_ids > position_ids[:, :1])).any()):
        raise BadInput(f"position_ids begin anew in the middle of a prompt: {SHARED}")


def _renumbered(numbers: Tensor, kept: Tensor, order: str) -> Tensor:
    """``[rows, L]`` 0 … B−1 chosen, B … 2B−1 rejected, -1 on padding; pieces of nothing but padding count nowhere."""
    found, numbers = torch.unique(numbers[kept]), numbers.masked_fill(~kept, -1)
    count = len(found)
    if count < 2 or count % 2:
        raise BadInput(f"a packed batch wants 2B responses, a chosen and a rejected one for each pair; got {count}")
    place = torch.arange(count, device=found.device)
    if order == "pairs together":
        place = place // 2 + (place % 2) * (count // 2)
    segments = torch.full_like(numbers, -1)
    for number, own in zip(found.tolist(), place.tolist(), strict=True):
        segments[numbers == number] = own
    return segments
