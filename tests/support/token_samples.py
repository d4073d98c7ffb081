"""Token Grams made by hand for the tests: rows of random gradients, so that every law holds."""

from __future__ import annotations

from typing import Any

import numpy as np

from dyn_probe.token_analysis import TokenHeat

LABELS = ("Positive", "Negative")
SUFFIX = (" sentiment", " based", " on", " my", " judgement", ".", "</s>")


def grads(tokens: int, seed: int, size: int = 6) -> np.ndarray:
    """Random token gradients ``[tokens, size]``."""
    return np.random.default_rng(seed).normal(size=(tokens, size))


def heat_of(chosen: tuple[str, ...], rejected: tuple[str, ...], step: int = 0, pair: str = "p0") -> TokenHeat:
    """A heat map in which equal tokens have like gradients and the labels opposite ones."""
    w, l = grads(len(chosen), step), grads(len(rejected), step + 100)  # noqa: E741
    for i, token in enumerate(chosen):
        for j, other in enumerate(rejected):
            if token == other:
                l[j] = w[i] + 0.2 * l[j]
            elif {token, other} == set(LABELS):
                l[j] = -w[i] + 0.2 * l[j]
    norms = np.linalg.norm(w, axis=1)[:, None] * np.linalg.norm(l, axis=1)
    return TokenHeat(step, pair, chosen, rejected, w @ l.T, w @ l.T / norms)


def label_heat(step: int = 0, pair: str = "p0", tail: tuple[str, ...] = SUFFIX) -> TokenHeat:
    """A label and the same suffix on both sides."""
    return heat_of((LABELS[0], *tail), (LABELS[1], *tail), step, pair)


def long_heat(tokens: int = 200) -> TokenHeat:
    """Responses of many tokens that differ in every seventh."""
    chosen = tuple(f" w{i}" for i in range(tokens))
    return heat_of(chosen, tuple(f" x{i}" if i % 7 == 3 else t for i, t in enumerate(chosen)))


def table_rows(heat: TokenHeat) -> list[dict[str, Any]]:
    """The heat map as a row of the ``tokens`` table."""
    return [
        {
            "step": heat.step,
            "pair_id": heat.pair_id,
            "side": "chosen_rejected",
            "tokens_rows": list(heat.tokens_chosen),
            "tokens_columns": list(heat.tokens_rejected),
            "inner": heat.inner.ravel().tolist(),
            "cosine": heat.cosine.ravel().tolist(),
        }
    ]
