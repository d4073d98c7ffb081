"""Probe responses, a word tokenizer, and every mass metric again: plain float64, one position at a time."""

from __future__ import annotations

import math

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dyn_probe.mass.probe_tokens import TokenProbes, TokenResponse

TEXT = "the a cat dog sat ran on in mat park why how yes no because it was red blue green ? ."
WORDS = TEXT.split()
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-5}


def word_tokenizer(words=WORDS, end="</s>"):
    """One token per word; unknown words, end of sequence and padding have their own."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", end, "<pad>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token=end, pad_token="<pad>")


def records(count=6):
    """Preference records with different answers."""
    draw = np.random.default_rng(3)
    return [
        {
            "prompt": f"{WORDS[i % 4]} {WORDS[4 + i % 5]} {WORDS[i]} ?",
            "chosen": " " + " ".join(draw.permutation(WORDS[:20])[: 4 + i % 3]),
            "rejected": " " + " ".join(draw.permutation(WORDS[:20])[: 3 + i % 4]),
        }
        for i in range(count)
    ]


def token_probes(vocabulary=97, count=7, seed=0):
    """Responses of unequal length, prompts of unequal length, as tokens."""
    draw = np.random.default_rng(seed)
    responses = []
    for i in range(count):
        start, length = int(draw.integers(1, 6)), int(draw.integers(1, 7))
        ids = tuple(int(t) for t in draw.integers(0, vocabulary, start + length))
        responses.append(TokenResponse(f"prompt{i // 2}", ("chosen", "rejected")[i % 2], ids, start))
    return TokenProbes(tuple(responses))


def position_twin(logits, target):
    """Every metric of one position, from the definitions, with Python's own floats."""
    z = [float(v) for v in logits]
    top = max(z)
    weights = [math.exp(v - top) for v in z]
    total = math.fsum(weights)
    p = [w / total for w in weights]
    greater = sum(v > z[target] for v in z)
    level = sum(v == z[target] for v in z)
    best = z.index(top)
    rest = math.fsum(w for i, w in enumerate(weights) if i != best) / total
    others = [q for i, q in enumerate(p) if i != target]
    unit = [float(i == target) for i in range(len(z))]
    return {
        "logp": z[target] - top - math.log(total),
        "argmax_logp": -math.log(total),
        "not_argmax_logp": math.log(rest),
        "entropy": -math.fsum(q * math.log(q) for q in p if q > 0),
        "rank": greater + (level - 1) / 2,
        "top1": float(greater == 0) / level,
        "residual": math.sqrt(math.fsum((q - u) ** 2 for q, u in zip(p, unit, strict=True))),
        "missing_mass": math.fsum(others),
        "rival_mass": max(others),
        "prob_norm": math.sqrt(math.fsum(q * q for q in p)),
        "prob_norm_squared": math.fsum(q * q for q in p),
    }


def row_twin(model, response):
    """One response's row of the mass table: its own unpadded forward, then a loop over its tokens."""
    ids = torch.tensor([response.ids])
    mode = model.training
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double().numpy()
    model.train(mode)
    said = range(response.start, len(response.ids))
    rows = [position_twin(logits[t - 1], response.ids[t]) for t in said]
    n, vocabulary = len(rows), logits.shape[1]

    def mean(name):
        return math.fsum(row[name] for row in rows) / n

    return {
        "tokens": n,
        "logp": n * mean("logp"),
        "logp_token": mean("logp"),
        "argmax_logp": n * mean("argmax_logp"),
        "not_argmax_logp": n * mean("not_argmax_logp"),
        **{
            name: mean(name)
            for name in ("entropy", "rank", "top1", "residual", "missing_mass", "rival_mass", "prob_norm")
        },
        "a_norm": math.sqrt(vocabulary * mean("prob_norm_squared") + vocabulary - 2),
    }


def disagreements(got, wanted, tolerance):
    """Names of numbers that differ by more than ``tolerance`` (absolute below 1), or are missing."""
    return sorted(
        name
        for name, value in wanted.items()
        if name not in got or not abs(got[name] - value) <= tolerance * max(1.0, abs(value))
    )
