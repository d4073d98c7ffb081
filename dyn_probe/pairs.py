"""Preference batches and their log-probabilities. Shift and mask happen here and nowhere else.

Letters (docs/notation.md): ``B`` pairs, ``R = 2B`` rows ordered ``[chosen; rejected]``, ``L`` positions,
``V`` vocabulary. A token's log-probability is at the token's own position: column ``t`` holds
``log p(x_t | x_<t)``.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyn_probe.errors import BadInput


@dataclass(frozen=True, eq=False)
class PairBatch:
    """``B`` preference pairs as ``2B`` token rows: the chosen rows first, then the rejected rows.

    Args:
        input_ids: ``[2B, L]`` token ids, padded on either side.
        attention_mask: ``[2B, L]``, 1 on real tokens.
        response_mask: ``[2B, L]``, 1 on the response tokens (the ones whose log-probability counts).

    Raises:
        BadInput: shapes differ, the number of rows is odd, a response lies on padding, is empty, or has no
            token before it.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(t.shape) for t in (self.input_ids, self.attention_mask, self.response_mask)]
        if self.input_ids.dim() != 2 or len(set(shapes)) != 1:
            raise BadInput(
                f"PairBatch needs input_ids, attention_mask and response_mask of one shape [2B, L]; got {shapes}"
            )
        if shapes[0][0] == 0 or shapes[0][0] % 2:
            raise BadInput(f"PairBatch needs 2B rows, B chosen and then B rejected; got {shapes[0][0]} rows")
        attended, response = self.attention_mask.bool(), self.response_mask.bool()
        behind = torch.nn.functional.pad(attended, (1, 0))[:, :-1]
        for wrong, complaint in (
            ((response & ~attended).any(1), "a response token on padding"),
            (~response.any(1), "an empty response"),
            ((response & ~behind).any(1), "a response token with no token right before it to predict it"),
        ):
            if bool(wrong.any()):
                raise BadInput(f"PairBatch rows {wrong.nonzero().flatten().tolist()} have {complaint}")

    @property
    def pairs(self) -> int:
        """Number of pairs ``B``."""
        return self.input_ids.shape[0] // 2

    @property
    def lengths(self) -> Tensor:
        """``[2B]`` response lengths ``n`` in tokens."""
        return self.response_mask.sum(1)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """One ``pair_id`` per pair: a hash of prompt and response token ids, free of padding and order."""
        rows = [
            (row[keep].tolist(), said[keep].tolist())
            for row, keep, said in zip(
                self.input_ids.cpu(),
                self.attention_mask.bool().cpu(),
                self.response_mask.bool().cpu(),
                strict=True,
            )
        ]
        return tuple(pair_id(rows[i], rows[i + self.pairs]) for i in range(self.pairs))

    def to(self, device: torch.device | str) -> PairBatch:
        """The same batch on ``device``."""
        return PairBatch(self.input_ids.to(device), self.attention_mask.to(device), self.response_mask.to(device))

    def select(self, pairs: Sequence[int]) -> PairBatch:
        """The batch of the named pairs, in that order, at the same padding."""
        rows = torch.tensor([*pairs, *(p + self.pairs for p in pairs)], device=self.input_ids.device)
        return PairBatch(self.input_ids[rows], self.attention_mask[rows], self.response_mask[rows])


def pair_id(chosen: tuple[list[int], list[bool]], rejected: tuple[list[int], list[bool]]) -> str:
    """16 hex digits that name a pair by its tokens; each side is (token ids, response flags) without padding."""
    digest = hashlib.sha256()
    for tokens, flags in (chosen, rejected):
        digest.update(("|".join(f"{t}{'r' if f else 'p'}" for t, f in zip(tokens, flags, strict=True)) + "#").encode())
    return digest.hexdigest()[:16]


def model_inputs(model: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
    """Keyword arguments of ``model`` for ``batch``: ids, mask, and positions counted from the first real token.

    Explicit positions make the result independent of the padding side also for models with absolute positions.
    """
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if "position_ids" in _forward_parameters(model):
        inputs["position_ids"] = (batch.attention_mask.long().cumsum(1) - 1).clamp(min=0)
    return inputs


def token_logps(logits: Tensor, batch: PairBatch) -> Tensor:
    """``[2B, L]`` log-probabilities (nats) of the response tokens, 0 elsewhere, in float32 or better.

    Args:
        logits: ``[2B, L', V]`` with ``L' <= L``: the logits of the last ``L'`` positions.
    """
    offset = batch.input_ids.shape[1] - logits.shape[1]
    rows, columns = batch.response_mask.nonzero(as_tuple=True)
    if bool((columns - 1 < offset).any()):
        raise BadInput(f"token_logps needs logits for every response token; the first {offset} positions are missing")
    wanted = logits[rows, columns - 1 - offset]
    wanted = wanted.float() if wanted.dtype in (torch.bfloat16, torch.float16) else wanted
    values = -F.cross_entropy(wanted, batch.input_ids[rows, columns], reduction="none")
    return values.new_zeros(batch.input_ids.shape).index_put((rows, columns), values)


def batch_logits(model: nn.Module, batch: PairBatch) -> Tensor:
    """``[2B, L', V]`` logits from the position before the first response token on (all of them where the model
    cannot leave positions out)."""
    inputs: dict[str, Any] = dict(model_inputs(model, batch))
    parameters = _forward_parameters(model)
    if "logits_to_keep" in parameters:
        first = int(batch.response_mask.any(0).nonzero()[0])
        inputs["logits_to_keep"] = batch.input_ids.shape[1] - first + 1
    if "use_cache" in parameters:
        inputs["use_cache"] = False
    output = model(**inputs)
    return output if isinstance(output, Tensor) else output.logits


def logps_of_tokens(model: nn.Module, ids: Tensor, positions: Tensor) -> Tensor:
    """``[n]`` log-probabilities of the tokens at ``positions`` of one sequence ``ids [L]``, each from a separate row.

    Row i is the sequence up to the last wanted token, so that each token's gradient is separate in the batch.
    """
    n, length = len(positions), int(positions.max()) + 1
    rows = ids[:length].expand(n, length).contiguous()
    inputs: dict[str, Any] = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
    parameters = _forward_parameters(model)
    if "position_ids" in parameters:
        inputs["position_ids"] = torch.arange(length, device=ids.device).expand(n, length)
    keep = length - int(positions.min()) + 1
    if "logits_to_keep" in parameters:
        inputs["logits_to_keep"] = keep
    if "use_cache" in parameters:
        inputs["use_cache"] = False
    output = model(**inputs)
    logits = output if isinstance(output, Tensor) else output.logits
    wanted = logits[torch.arange(n, device=ids.device), positions - 1 - (length - logits.shape[1])]
    wanted = wanted.float() if wanted.dtype in (torch.bfloat16, torch.float16) else wanted
    return -F.cross_entropy(wanted, ids[positions], reduction="none")


def sequence_logps(model: nn.Module, batch: PairBatch) -> Tensor:
    """``[2B]`` log-probabilities of the responses (nats, summed over response tokens): ``a`` and then ``b``."""
    return token_logps(batch_logits(model, batch), batch).sum(1)


def _forward_parameters(model: nn.Module) -> set[str]:
    """Names of the arguments of ``model.forward``, seen through the wrappers of DDP and PEFT."""
    inner: Any = model
    while True:
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        else:
            return set(inspect.signature(inner.forward).parameters)
