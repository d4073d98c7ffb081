"""A pair's token map: ``token_gram`` against one full backward per token with every gradient kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cost.cells import Maps
from cost.counts import forget_peak, now, peak_mib
from cost.measured import LEAST, about
from cost.shapes import made
from dyn_probe import PairBatch, token_gram

BASE = "token_gram"


def pair_of(vocabulary: int, prompt: int, tokens: int, device: str) -> PairBatch:
    """One pair of random tokens with a shared prompt."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(2, vocabulary, (2, prompt + tokens), generator=draw)
    ids[1, :prompt] = ids[0, :prompt]
    response = torch.zeros_like(ids)
    response[:, prompt:] = 1
    return PairBatch(ids, torch.ones_like(ids), response).to(device)


def backward_per_token(model: Any, batch: PairBatch) -> Tensor:
    """``[n_w, n_l]`` the plain way: one forward, a backward per response token, all gradients kept."""
    logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1].float()
    logps = torch.log_softmax(logits, -1).gather(2, batch.input_ids[:, 1:, None]).squeeze(2)
    rows, columns = batch.response_mask[:, 1:].nonzero(as_tuple=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    grads = [
        torch.cat([g.flatten() for g in torch.autograd.grad(logps[row, column], trained, retain_graph=True)])
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    half = int(batch.response_mask[0].sum())
    return torch.stack([torch.stack([a @ b for b in grads[half:]]) for a in grads[:half]])


def measure_maps(cell: Maps, device: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds of a map by both, in turns, and by how much they differ, relative to the largest entry.

    Args:
        rounds, seconds: as for ``measured.measure``.
    """
    began = time.monotonic()
    model = made(cell.shape, "all", cell.precision, device).eval()
    batch = pair_of(model.config.vocab_size, cell.prompt, cell.tokens, device)
    kinds: dict[str, Callable[[], Tensor]] = {
        BASE: lambda: token_gram(model, batch).chosen_rejected,
        "a backward per token": lambda: backward_per_token(model, batch),
    }
    taken: list[dict[str, tuple[float, float | None]]] = []
    answers: dict[str, Tensor] = {}
    while len(taken) < rounds and (len(taken) < LEAST or time.monotonic() - began < seconds):
        one = {}
        for name, call in kinds.items():
            forget_peak(device)
            before, start = peak_mib(device), now(device)
            answers[name] = call()
            took, peak = now(device) - start, peak_mib(device)
            one[name] = (took, None if peak is None or before is None else peak - before)
        taken.append(one)
    a, b = (answers[name].double() for name in kinds)
    apart = float((a - b).abs().max() / b.abs().max())
    found: dict[str, dict[str, Any]] = {}
    for name in kinds:
        ratios = [one[name][0] / one[BASE][0] for one in taken]
        held = [mib for one in taken if (mib := one[name][1]) is not None]
        found[name] = {
            "seconds": statistics.median(one[name][0] for one in taken), "ratio": statistics.median(ratios),
            "least": min(ratios), "most": max(ratios), "beyond_mib": statistics.median(held) if held else None,
        }  # fmt: skip
    return {
        "cell": cell.name, "device": about(device), "rounds": len(taken), "kinds": found, "difference": apart,
        "seconds": time.monotonic() - began,
    }  # fmt: skip
