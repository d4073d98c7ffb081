"""What enters the language-model head where response tokens are predicted: for the similarity CHES of a pair.

Letters as in docs/notation.md: ``h_i^t`` is the last hidden state, ``d`` numbers, from which token ``t`` of response
``i`` is predicted: that of the position before it. The model's backbone puts it out; nothing is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dyn_probe.engine.shield import Shield


def backbones_of(model: nn.Module) -> list[nn.Module]:
    """The modules whose ``last_hidden_state`` enters the head: the backbone, and its decoder, which some models call by
    itself. Empty where that cannot be told: no model of transformers with a head, or several."""
    heads = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
        and module.base_model is not module
        and module.get_output_embeddings() is not None
    ]
    if len(heads) != 1:
        return []
    return list(dict.fromkeys([heads[0].base_model, getattr(heads[0].base_model, "decoder", heads[0].base_model)]))


class HeadInputs:
    """The sums ``Σ_t h_i^t`` of one forward's responses.

    Args:
        responses: ``[rows, L]`` response mask of the batch.
        segments: as for ``PairBatch``, where rows are packed.
    """

    def __init__(self, responses: Tensor, segments: Tensor | None = None) -> None:
        self._responses, self._segments = responses.detach().bool(), segments
        self._sums: Tensor | None = None
        self._counts: Tensor | None = None

    @contextmanager
    def seen(self, model: nn.Module, shield: Shield) -> Iterator[None]:
        """While this is entered, the first forward that carries gradients leaves its sums."""
        hooks = [one.register_forward_hook(shield.around(self._receive)) for one in backbones_of(model)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _receive(self, _: nn.Module, args: Any, output: Any) -> None:
        hidden = getattr(output, "last_hidden_state", None)
        fits = getattr(hidden, "shape", ())[:2] == self._responses.shape
        if isinstance(hidden, Tensor) and fits and self._sums is None and torch.is_grad_enabled():
            self._add(hidden.detach())

    @torch.no_grad()
    def _add(self, hidden: Tensor) -> None:
        """``Σ_t h_i^t [responses, d]`` and ``n_i``, in float32 or better."""
        predicted = self._responses[:, 1:].to(hidden.device)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        parts = torch.where(predicted[..., None], hidden[:, :-1], 0.0)  # NaN on padding counts as nothing
        if self._segments is None:
            self._sums, self._counts = parts.sum(1, dtype=wide), predicted.sum(1)
            return
        parts = parts.to(wide)
        owner = self._segments[:, 1:].to(hidden.device)
        size = int(owner.max()) + 1
        owner = owner.clamp(min=0).flatten()
        self._sums = parts.new_zeros(size, parts.shape[-1]).index_add_(0, owner, parts.flatten(0, 1))
        self._counts = predicted.new_zeros(size, dtype=torch.long).index_add_(0, owner, predicted.flatten().long())

    def columns(self) -> dict[str, Tensor]:
        """``ches`` and ``ches_normalised``, ``[B]``; empty where the head's input was not seen."""
        if self._sums is None or self._counts is None:
            return {}
        sums = self._sums.double()
        return {"ches": _ches(sums), "ches_normalised": _ches(sums / self._counts[:, None])}


def _ches(hidden: Tensor) -> Tensor:
    """``entanglement.ches`` where the hidden states are, ``[B]`` from ``[2B, d]``."""
    chosen, rejected = hidden.chunk(2)
    return (chosen * (rejected - chosen)).sum(1)
