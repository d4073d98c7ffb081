"""Token gradients by one backward per token on an unpadded sequence."""

from __future__ import annotations

import torch


def token_gradients(model, ids, mask, response, names=None):
    """``[n, parameters]`` float64 gradients of each response token's log-probability."""
    keep = mask.bool()
    ids, said = ids[keep], response[keep].bool()
    named = {n: p for n, p in model.named_parameters() if p.requires_grad and (names is None or n in names)}
    logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0]
    rows = []
    for t in said.nonzero().flatten().tolist():
        logp = torch.log_softmax(logits[t - 1], -1)[ids[t]]
        grads = torch.autograd.grad(logp, list(named.values()), retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for g, p in zip(grads, named.values(), strict=True)
                ]
            )
        )
    return torch.stack(rows).double()
