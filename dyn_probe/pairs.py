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
        segments: for packed rows, of which each holds several prompts with their responses: ``[rows, L]`` the number
            of the response that a position belongs to (``0 … B−1`` chosen, ``B … 2B−1`` rejected), -1 on padding.
            All tensors are then ``[rows, L]``, and no segment attends to another.

    Raises:
        BadInput: shapes differ, the number of rows is odd, a response lies on padding, is empty, or has no
            token before it.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    segments: Tensor | None = None

    def __post_init__(self) -> None:
        if self.segments is not None:
            self._check_segments(self.segments)
            return
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

    def _check_segments(self, segments: Tensor) -> None:
        shapes = [tuple(t.shape) for t in (self.input_ids, self.attention_mask, self.response_mask, segments)]
        if self.input_ids.dim() != 2 or len(set(shapes)) != 1:
            raise BadInput(
                "a packed PairBatch needs input_ids, attention_mask, response_mask, segments of one shape [rows, L]; "
                f"got {shapes}"
            )
        count = int(segments.max()) + 1
        if count < 2 or count % 2:
            raise BadInput(f"a packed PairBatch needs 2B responses, numbered 0 to 2B-1 in segments; got {count}")
        self.unpacked()  # holds each response to what a row of its own has to be

    def unpacked(self, pad_id: int = 0) -> PairBatch:
        """The same pairs, each response in a row; the batch itself where it is not packed."""
        if self.segments is None:
            return self
        fields = (self.input_ids, self.attention_mask, self.response_mask)
        rows = [[t[self.segments == i] for t in fields] for i in range(int(self.segments.max()) + 1)]
        padded = [torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True) for column in zip(*rows, strict=True)]
        return PairBatch(padded[0].masked_fill(padded[1] == 0, pad_id), padded[1], padded[2])

    @cached_property
    def pairs(self) -> int:
        """Number of pairs ``B``."""
        return (self.input_ids.shape[0] if self.segments is None else int(self.segments.max()) + 1) // 2

    @property
    def lengths(self) -> Tensor:
        """``[2B]`` response lengths ``n`` in tokens."""
        return per_response(self.response_mask, self)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """One ``pair_id`` per pair: a hash of prompt and response token ids, free of padding and order."""
        if self.segments is not None:
            return self.unpacked().ids
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
        segments = None if self.segments is None else self.segments.to(device)
        return PairBatch(
            self.input_ids.to(device), self.attention_mask.to(device), self.response_mask.to(device), segments
        )

    def select(self, pairs: Sequence[int]) -> PairBatch:
        """The batch of the named pairs, in that order, at the same padding (packed ones unpacked)."""
        if self.segments is not None:
            return self.unpacked().select(pairs)
        rows = torch.tensor([*pairs, *(p + self.pairs for p in pairs)], device=self.input_ids.device)
        return PairBatch(self.input_ids[rows], self.attention_mask[rows], self.response_mask[rows])


def trimmed(batch: PairBatch) -> PairBatch:
    """The batch without positions that are padding in all rows."""
    used = batch.attention_mask.bool().any(0).nonzero().flatten()
    keep = slice(int(used[0]), int(used[-1]) + 1)
    return PairBatch(batch.input_ids[:, keep], batch.attention_mask[:, keep], batch.response_mask[:, keep])


def pair_id(chosen: tuple[list[int], list[bool]], rejected: tuple[list[int], list[bool]]) -> str:
    """16 hex digits that name a pair by its tokens; each side is (token ids, response flags) without padding."""
    digest = hashlib.sha256()
    for tokens, flags in (chosen, rejected):
        digest.update(("|".join(f"{t}{'r' if f else 'p'}" for t, f in zip(tokens, flags, strict=True)) + "#").encode())
    return digest.hexdigest()[:16]


def model_inputs(model: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
    """Keyword arguments of ``model`` for ``batch``: ids, mask, and positions counted from the first real token.

    Explicit positions make the result independent of the padding side also for models with absolute positions.

    Raises:
        BadInput: rows are padded on the left, and whether positions reach the model cannot be known.
    """
    if batch.segments is not None:
        return _packed_inputs(model, batch, batch.segments)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    names, known = _forward_parameters(model)
    if "position_ids" in names:
        inputs["position_ids"] = (batch.attention_mask.long().cumsum(1) - 1).clamp(min=0)
    elif not known and bool((~batch.attention_mask.bool()).cummax(1).values.logical_and(batch.attention_mask).any()):
        raise BadInput(
            f"left padding needs position_ids, and the forward of {type(model).__name__} does not say whether it takes "
            "them; pad on the right, or give that forward an argument position_ids and hand it on to the model"
        )
    return inputs


def _packed_inputs(model: nn.Module, batch: PairBatch, segments: Tensor) -> dict[str, Tensor]:
    """The same for packed rows: positions that begin anew in every segment, and a mask ``[rows, 1, L, L]`` that lets no
    segment attend to another. Models with sliding windows make that mask themselves, from the positions.

    Raises:
        BadInput: the model takes no positions.
    """
    if "position_ids" not in _forward_parameters(model)[0]:
        raise BadInput(f"packed rows want a model that takes position_ids; {type(model).__name__} does not")
    columns = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    starts = torch.where(begins, columns, 0).cummax(1).values
    inputs = {"input_ids": batch.input_ids, "position_ids": columns - starts}
    if getattr(getattr(model, "config", None), "sliding_window", None) is None:
        seen = (starts[:, :, None] == starts[:, None, :]).tril()
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        bias = torch.zeros(seen.shape, dtype=dtype, device=segments.device)
        inputs["attention_mask"] = bias.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
    return inputs


def per_response(values: Tensor, batch: PairBatch) -> Tensor:
    """``[2B]`` sums over each response's positions of ``values [rows, L]``."""
    return sums_by_segment(values, batch.segments)


def sums_by_segment(values: Tensor, segments: Tensor | None) -> Tensor:
    """``[2B]`` sums over each response's positions; of rows without segments each is a response.

    Args:
        values: ``[rows, L']`` at the last ``L'`` of ``L`` positions.
        segments: ``[rows, L]``, as for ``PairBatch``.
    """
    if segments is None:
        return values.sum(1)
    owner = segments[:, segments.shape[1] - values.shape[1] :]
    inside = owner >= 0
    # Added up one by one: in half precision that stagnates, and in float32 it rounds more than a sum over a row does.
    exact = torch.float32 if values.device.type == "mps" else torch.float64
    wide = torch.promote_types(values.dtype, exact) if values.is_floating_point() else values.dtype
    total = values.new_zeros(int(segments.max()) + 1, dtype=wide)
    return total.index_add(0, owner[inside], values[inside].to(wide)).to(values.dtype)


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
    parameters, _ = _forward_parameters(model)
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
    parameters, _ = _forward_parameters(model)
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
    return per_response(token_logps(batch_logits(model, batch), batch), batch)


_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "module")
"""Where a wrapper that hands its arguments on keeps the model: torch.compile, checkpoint wrappers, DDP and FSDP."""


def _forward_parameters(model: nn.Module) -> tuple[set[str], bool]:
    """``(names, known)``: the arguments that reach the model, seen through wrappers that hand theirs on, and whether
    these are all of them."""
    parameters = inspect.signature(model.forward).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters) or ("input_ids" in names and _of_transformers(model)):
        return names, True
    inner = _wrapped(model)
    more, known = _forward_parameters(inner) if inner is not None else (set(), False)
    return names | more, known and "input_ids" in more


def _wrapped(model: nn.Module) -> nn.Module | None:
    """The model inside a wrapper, PEFT's too; None where there is none."""
    base: Any = getattr(model, "get_base_model", None)
    inner = None if base is None else base()
    for name in _WRAPPED:
        inner = getattr(model, name, None) if inner is None else inner
    return inner if isinstance(inner, nn.Module) and inner is not model else None


def _of_transformers(model: nn.Module) -> bool:
    """Whether it is a model of transformers, whose forwards name every argument that concerns positions."""
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)
