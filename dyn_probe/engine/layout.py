"""The one canonical layout, made at the door: ``[responses, positions, features]``.

A batch has ``rows`` of ``length`` positions. Mostly a row is one response with its prompt. A packed batch holds several
responses in a row, each in a segment that no other segment attends to; its tensors are taken apart here, so that
nothing behind this file knows of packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dyn_probe.errors import BadInput, UnsupportedUse

FEWER = (
    "one row, of fewer tokens than its rows have: either the model takes the padding out of its rows, and the recorder "
    "wants the language model inside that is called with the one row, with segments; or sharing of the prompt between "
    "chosen and rejected, which one backward cannot take apart, is on: turn it off while you record"
)


@dataclass(frozen=True)
class Span:
    """Where a pair's two rows have tokens, ``[start, end)``, and how many of the first tokens they share."""

    start_chosen: int
    end_chosen: int
    start_rejected: int
    end_rejected: int
    shared: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the responses of a batch are.

    Args:
        rows: rows of the batch that the model is called with.
        length: positions of a row.
        row_of: ``[responses]`` the row of each response; None where response i is row i.
        places: ``[responses, width]`` positions of each response in its row, -1 beyond its end.
        spans: one per pair, where they could be read; only a hint of where work can be saved.
    """

    rows: int
    length: int
    row_of: Tensor | None = None
    places: Tensor | None = None
    spans: tuple[Span, ...] = ()

    @staticmethod
    def of(shape: Sequence[int], inputs: Any, segments: Tensor | None = None) -> Layout:
        """The layout of a call.

        Args:
            shape: ``(rows, length, …)`` of the batch.
            inputs: the call's keyword arguments.
            segments: ``[rows, length]``: the response that a position belongs to, -1 for none; None where every row is
                one response.

        Raises:
            BadInput: a response without a position, or one that lies in two rows.
        """
        rows, length = shape[0], shape[1]
        if segments is None:
            return Layout(rows, length, spans=find_spans(inputs.get("input_ids"), inputs.get("attention_mask")))
        if tuple(segments.shape) != (rows, length):
            raise BadInput(f"wanted segments of the batch's shape [{rows}, {length}]; got {list(segments.shape)}")
        row_of, places = _places(segments.cpu())
        return Layout(rows, length, row_of.to(segments.device), places.to(segments.device))

    @property
    def responses(self) -> int:
        """Number of responses: the rows of every Gram."""
        return self.rows if self.row_of is None else len(self.row_of)

    def by_row(self, tensor: Tensor, features: int = 1) -> Tensor:
        """``tensor`` as ``[rows, positions, *features]`` without copying where strides allow it.

        Args:
            tensor: ``[rows, ..., d]``, or ``[rows * length, d]`` as models that flatten rows and positions have it.
            features: trailing dimensions that are one feature (1 for a vector).

        Raises:
            UnsupportedUse: the leading dimension is neither ``rows`` nor ``rows * length``.
        """
        if tensor.dim() == features + 2 and tensor.shape[0] == self.rows:
            return tensor
        tail = tensor.shape[tensor.dim() - features :]
        if tensor.dim() > features and tensor.shape[0] in (self.rows, self.rows * self.length):
            return tensor.reshape(self.rows, -1, *tail)
        alone = tensor.dim() > 2 and tensor.shape[0] == 1 and tensor.shape[1] <= self.rows * self.length
        raise UnsupportedUse(
            f"wanted a tensor whose first dimension is the {self.rows} rows of the batch (or {self.rows} x "
            f"{self.length} flattened); got {list(tensor.shape)}" + (f" ({FEWER})" if alone else "")
        )

    def by_response(self, tensor: Tensor, features: int = 1) -> Tensor:
        """``tensor`` as ``[responses, positions, *features]``; what lies beyond a response is 0.

        Fewer positions than ``length`` are the last ones (``logits_to_keep``).
        """
        wide = self.by_row(tensor, features)
        if self.places is None or self.row_of is None:
            return wide
        wide = self._by_position(tensor, features)
        at = self.places - (self.length - wide.shape[1])
        found = wide[self.row_of[:, None], at.clamp(min=0)]
        found = found.masked_fill((at < 0).reshape(*at.shape, *([1] * (found.dim() - 2))), 0)
        return found.reshape(self.responses, -1, *tensor.shape[tensor.dim() - features :])

    def _by_position(self, tensor: Tensor, features: int = 1) -> Tensor:
        """``[rows, positions, …]``: also where heads stand between rows and positions."""
        if tensor.shape[0] != self.rows:
            return tensor.unflatten(0, (self.rows, self.length))
        if tensor.dim() > features + 2 and self.length not in tensor.shape[1:2]:
            if self.length not in tensor.shape[2:3]:
                raise UnsupportedUse(f"packed rows: no dimension of {self.length} positions in {list(tensor.shape)}")
            return tensor.transpose(1, 2)
        return tensor

    def row_and_mask(self, response: int) -> tuple[int, Tensor | None]:
        """The row of a response, and which of its positions are the response's (None: all)."""
        if self.places is None or self.row_of is None:
            return response, None
        mask = torch.zeros(self.length, dtype=torch.bool, device=self.places.device)
        mask[self.places[response][self.places[response] >= 0]] = True
        return int(self.row_of[response]), mask

    def outside(self, tensor: Tensor, response: int) -> Tensor:
        """Whether ``tensor`` is nonzero anywhere but at ``response`` (0-d bool)."""
        row, mask = self.row_and_mask(response)
        flat = tensor.reshape(self.rows, -1)
        elsewhere = torch.cat([flat[:row], flat[row + 1 :]]).any()
        if mask is None:
            return elsewhere
        own = self._by_position(tensor)[row]
        return elsewhere | own[~mask[self.length - len(own) :]].any()


def _places(segments: Tensor) -> tuple[Tensor, Tensor]:
    """``row_of [responses]`` and ``places [responses, width]``."""
    found = [(segments == i).nonzero() for i in range(int(segments.max()) + 1)]
    rows = [where[:, 0].unique() for where in found]
    for i, own in enumerate(rows):
        if len(own) != 1:
            raise BadInput(f"wanted every response in one row; response {i} is in {len(own)}")
    places = torch.nn.utils.rnn.pad_sequence([w[:, 1] for w in found], batch_first=True, padding_value=-1)
    return torch.cat(rows), places


def find_spans(ids: Any, mask: Any) -> tuple[Span, ...]:
    """One ``Span`` per pair of ``ids [2B, L]``, rows ``[chosen; rejected]``; none where there are no ids to read.

    A span is only a hint of where work can be saved: what is skipped is checked to be zero, what is shared to be equal.
    """
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[0] % 2 or ids.device.type != "cpu":
        return ()
    readable = isinstance(mask, Tensor) and mask.shape == ids.shape and mask.device.type == "cpu"
    tokens = (ids.float() if ids.is_floating_point() else ids).detach().numpy()
    kept = mask.detach().bool().numpy() if readable else np.ones(tokens.shape, dtype=bool)
    half, length = len(tokens) // 2, tokens.shape[1]
    positions = np.arange(length)
    starts = np.where(kept, positions, length).min(1)
    ends = np.where(kept, positions, -1).max(1) + 1
    first_end = np.minimum(ends[:half], ends[half:])
    differs = (tokens[:half] != tokens[half:]) | (positions >= first_end[:, None])
    first = np.where(differs & (positions >= starts[:half, None]), positions, length).min(1)
    shared = np.where(starts[:half] != starts[half:], 0, first - starts[:half]).clip(min=0)
    columns = (starts[:half], ends[:half], starts[half:], ends[half:], shared)
    return tuple(Span(*span) for span in zip(*(c.tolist() for c in columns), strict=True))
