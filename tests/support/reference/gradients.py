"""Per-response gradients by one backward per response, flat and in float64 if the model is."""

from __future__ import annotations

import torch


def logp(model, ids, mask, response, positions=True):
    """Sum of the response tokens' log-probabilities of one unpadded sequence, by a loop over tokens."""
    keep = mask.bool()
    ids, said = ids[keep][None], response[keep]
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    total = logits.new_zeros(())
    for t in range(1, ids.shape[1]):
        if said[t]:
            total = total + torch.log_softmax(logits[t - 1], -1)[ids[0, t]]
    return total


def row_gradients(model, ids, mask, response):
    """``{name: [rows, n]}``: each row's gradient, from a forward of its own without padding."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    rows = []
    for i in range(ids.shape[0]):
        grads = torch.autograd.grad(logp(model, ids[i], mask[i], response[i]), list(named.values()), allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for g, p in zip(grads, named.values(), strict=True)])
    return {name: torch.stack([row[k].flatten() for row in rows]).double() for k, name in enumerate(named)}


def grams(gradients):
    """``{name: [rows, rows]}``."""
    return {name: values @ values.T for name, values in gradients.items()}
