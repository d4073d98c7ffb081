"""What a saved model says of pairs, by transformers and autograd alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dyn_probe.data.inspect import fitting_limit
from dyn_probe.data.prepared import Reading, prepare_pairs
from dyn_probe.trace.reader import Trace


def load_plainly(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer as anybody loads them."""
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def encoded(tokenizer: Any, data: str, pairs: int) -> list[Any]:
    """The pairs' tokens under this tokenizer."""
    return prepare_pairs(data, tokenizer, fitting_limit(1024, "keep_start", 1024), Reading("", pairs)).pairs


def row_logp(model: Any, row: Any) -> torch.Tensor:
    """The response's log-probability (nats), with its graph: one row, no padding, no mask."""
    ids = torch.tensor([row.ids])
    logps = model(ids).logits[0, :-1].log_softmax(-1)
    return logps[torch.arange(len(row.ids) - 1), ids[0, 1:]][row.start - 1 :].sum()


@torch.no_grad()
def plain_logps(folder: Path, data: str, pairs: int) -> dict[str, tuple[float, float]]:
    """Pair id → log-probabilities of chosen and rejected under the model in ``folder``."""
    model, tokenizer = load_plainly(folder)
    return {
        pair.pair_id: (float(row_logp(model, pair.chosen)), float(row_logp(model, pair.rejected)))
        for pair in encoded(tokenizer, data, pairs)
    }


def worst_of_final(trace: Trace, folder: Path) -> float:
    """Largest relative difference between a run's last log-probabilities and those of the model in ``folder``."""
    found = plain_logps(folder, trace.manifest["data"]["name"], trace.manifest["config"]["max_pairs"])
    assert len(trace.final) > 0
    errors = [
        abs(getattr(row, f"logp_{side}") / found[row.pair_id][place] - 1)
        for row in trace.final.itertuples()
        for place, side in enumerate(("chosen", "rejected"))
    ]
    return max(errors)
