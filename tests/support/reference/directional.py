"""Directional derivatives of every response's log-probability by one forward-mode pass (``torch.func.jvp``)."""

from __future__ import annotations

import torch
from torch.func import functional_call, jvp


def along(model, batch, direction):
    """``[2B]`` ``⟨g_i, D⟩`` for ``D = {parameter name: tensor}``; parameters that are not named stand still."""
    positions = (batch.attention_mask.long().cumsum(1) - 1).clamp(min=0)
    named = {n: p.detach() for n, p in model.named_parameters() if n in direction}

    def logps(parameters):
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        try:
            logits = functional_call(model, parameters, (), {**inputs, "position_ids": positions}).logits
        except TypeError:  # a family without positions
            logits = functional_call(model, parameters, (), inputs).logits
        tokens = torch.log_softmax(logits[:, :-1], -1).gather(2, batch.input_ids[:, 1:, None]).squeeze(2)
        return (tokens * batch.response_mask[:, 1:]).sum(1)

    return jvp(logps, (named,), ({n: direction[n].to(p.dtype) for n, p in named.items()},))[1]
