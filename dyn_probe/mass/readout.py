"""Logits of response positions, a chunk at a time: the full ``[positions, vocabulary]`` table never exists.

The base model runs once and its hidden states are kept. Then the model's own ``forward`` runs again for
every chunk of positions, on a shallow copy of the model in which a relay takes the base model's
place and answers with the kept hidden states. So whatever a family does after its base model (head bias,
soft-capping, logit scaling) is done by the family's own code, and nothing is attached to the user's
model. Before its first use the route is compared with a plain forward on a few tokens; a model for which
the two differ is read row by row, with a warning.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

from dyn_probe.errors import BadInput, UnsupportedUse
from dyn_probe.mass.observed_model import observing, plain_logits, unwrapped, vocabulary_size

TABLE_ELEMENTS = {"cpu": 2**22}
"""Default size of one chunk's logits in numbers, by device type: 16 MiB of float32. With a vocabulary of 128k, chunks
four times as large took twice as long on a CPU."""

TABLE_ELEMENTS_ELSEWHERE = 2**25
"""The same on any other device: 128 MiB of float32."""

ROUNDING = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4, torch.float64: 1e-9}
"""How far two ways to the same logits may differ, relative to the largest logit."""

RELAY_FAILURES = (UnsupportedUse, AttributeError, TypeError, RuntimeError, ValueError, IndexError)
"""What a model's ``forward`` raises where it does not run with a relay in its base model's place."""


class Readout:
    """Reads logits of chosen positions from ``model``, at most ``chunk`` positions at a time.

    Args:
        model: a causal language model; wrappers (DDP, ``torch.compile``, PEFT) are unwrapped.
        chunk: positions per chunk; default: so many that one table holds :data:`TABLE_ELEMENTS`.
    """

    def __init__(self, model: nn.Module, chunk: int | None = None) -> None:
        if chunk is not None and chunk < 1:
            raise BadInput(f"chunk is the number of positions per chunk, at least 1; got {chunk}")
        self.model = unwrapped(model)
        self.vocabulary = vocabulary_size(self.model)
        elements = TABLE_ELEMENTS.get(next(self.model.parameters()).device.type, TABLE_ELEMENTS_ELSEWHERE)
        self.chunk = chunk or max(1, elements // self.vocabulary)
        self.relayed = self._relayed()

    def logits(self, input_ids: Tensor, attention_mask: Tensor, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (rows ``[n]``, logits ``[n, V]``) of the True places of ``wanted``, row by row, n ≤ chunk.

        Args:
            input_ids: ``[R, L]`` token ids, padded on the right.
            attention_mask: ``[R, L]``, 1 on real tokens.
            wanted: ``[R, L]`` bool.
        """
        if self.relayed is None:
            yield from self._plain(input_ids, attention_mask, wanted)
            return
        twin, relay = self.relayed
        try:
            hidden = relay.run(twin, input_ids, attention_mask)[wanted]  # [positions, d]
            rows = wanted.nonzero()[:, 0]
            for start in range(0, len(rows), self.chunk):
                part = slice(start, start + self.chunk)
                yield rows[part], relay.head(twin, input_ids, hidden[part])
        finally:
            relay.forget()

    def _plain(self, input_ids: Tensor, attention_mask: Tensor, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The slow route: one plain forward per row, so that only one row's logits are in memory."""
        for row, length in enumerate(attention_mask.sum(1).tolist()):
            here = (slice(row, row + 1), slice(length))
            table = plain_logits(self.model, input_ids[here], attention_mask[here])
            for part in table[wanted[here]].split(self.chunk):
                yield torch.full((len(part),), row, device=part.device), part

    def _relayed(self) -> tuple[nn.Module, Relay] | None:
        """(copy of the model with a relay for its base model, the relay); None where it does not hold."""
        name = getattr(self.model, "base_model_prefix", "")
        base = self.model._modules.get(name)
        complaint = "it has no base model under its base_model_prefix"
        if base is not None:
            relay = Relay(base)
            twin = _twin(self.model, name, relay)
            complaint = self._complaint(twin, relay)
        if not complaint and base is not None:
            return twin, relay
        warnings.warn(
            f"{type(self.model).__name__} is measured row by row with plain forwards, "
            f"with one row's logits in memory: {complaint}",
            stacklevel=3,
        )
        return None

    def _complaint(self, twin: nn.Module, relay: Relay) -> str:
        """What is wrong with the logits of the relayed route on six tokens; "" if nothing is."""
        ids = torch.arange(6, device=next(self.model.parameters()).device).reshape(2, 3) % self.vocabulary
        mask = torch.ones_like(ids)
        with observing(self.model):
            try:
                plain = _forward(self.model, ids, mask).flatten(0, 1)
                read = relay.head(twin, ids, relay.run(twin, ids, mask).flatten(0, 1))
            except RELAY_FAILURES as error:
                return f"its head does not run separately ({type(error).__name__}: {error})"
            finally:
                relay.forget()
        allowed = ROUNDING[plain.dtype] * float(plain.abs().max())
        if read.shape != plain.shape or float((read - plain).abs().max()) > allowed:
            return "its head run separately gives different logits from a plain forward"
        return ""


@dataclass
class _Kept:
    """What a relay and its parts share: the base's output, the answer to give, how often it was asked."""

    output: Any = None
    answer: Tensor | None = None
    asked: int = 0


class Relay:
    """Stands in a base model's place: runs it and keeps its output, or answers with kept hidden states."""

    def __init__(self, base: nn.Module, kept: _Kept | None = None) -> None:
        self.base = base
        self.kept = kept or _Kept()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's output type around its first position, or around the answer that was set."""
        self.kept.asked += 1
        if self.kept.answer is not None:
            return _around(self.kept.output, self.kept.answer)
        self.kept.output = self.base(*args, **kwargs)
        return _around(self.kept.output, _hidden(self.kept.output)[:, :1])

    def __getattr__(self, name: str) -> Any:
        """Some families call a part of their base model (OPT its ``decoder``): that part is relayed too."""
        found = getattr(self.base, name)
        return Relay(found, self.kept) if isinstance(found, nn.Module) else found

    def run(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``[R, L, d]`` hidden states as the head of ``model`` gets them."""
        self.forget()
        _forward(model, input_ids, attention_mask)
        if self.kept.asked != 1:
            raise UnsupportedUse(f"one forward should call the base model once; it was called {self.kept.asked} times")
        return _hidden(self.kept.output)

    def head(self, model: nn.Module, input_ids: Tensor, hidden: Tensor) -> Tensor:
        """``[n, V]`` logits that ``model`` makes of ``hidden`` ``[n, d]``."""
        self.kept.answer = hidden[None]
        ids = input_ids[:1, :1].expand(1, len(hidden))
        return _forward(model, ids, torch.ones_like(ids))[0]

    def forget(self) -> None:
        """Let go of the base model's output."""
        self.kept.output, self.kept.answer, self.kept.asked = None, None, 0


def _twin(model: nn.Module, name: str, relay: Relay) -> nn.Module:
    """A shallow copy with ``relay`` as module ``name``; a forward set on the instance moves along."""
    twin = copy.copy(model)
    twin.__dict__["_modules"] = {**model._modules, name: relay}
    forward = model.__dict__.get("forward")  # accelerate sets one for mixed precision
    if isinstance(forward, MethodType) and forward.__self__ is model:
        twin.__dict__["forward"] = MethodType(forward.__func__, twin)
    return twin


def _forward(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Logits of ``model.forward`` itself: the user's hooks on the model do not see the chunks."""
    forward = cast(Any, model.forward)
    output = forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, return_dict=True)
    return output.logits


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output.last_hidden_state


def _around(output: Any, hidden: Tensor) -> Any:
    """An output of the same type that carries ``hidden`` and nothing else."""
    return (hidden,) if isinstance(output, tuple) else type(output)(last_hidden_state=hidden)
