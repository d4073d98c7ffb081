"""What needs no judge: how long answers are, how much they repeat themselves, how many of them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def text_numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Numbers of one model's outputs; words are what spaces separate, and NaN is what no output has.

    ``distinct_n``: different n-grams over all n-grams of all outputs (Li et al. 2016, arXiv 1510.03055);
    ``repeated_4``: 1 − different 4-grams over 4-grams of one output, mean over those with any (Welleck et al. 2020,
    arXiv 1908.04319, seq-rep-4).
    """
    texts = [str(row["output"]) for row in rows]
    words = [text.split() for text in texts]
    within = [1 - len(set(grams)) / len(grams) for one in words if (grams := ngrams(one, 4))]
    cut = [bool(row["cut_off"]) for row in rows if "cut_off" in row]
    return {
        "outputs": float(len(texts)),
        "words": _mean([len(one) for one in words]),
        "characters": _mean([len(text) for text in texts]),
        "empty": _mean([not one for one in words]),
        "cut_off": _mean(cut),
        **{f"distinct_{n}": distinct(words, n) for n in (1, 2, 3)},
        "repeated_4": _mean(within),
    }


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n words."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Share of different n-grams among all n-grams of all texts; NaN where there is none."""
    grams = [gram for words in texts for gram in ngrams(words, n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def text_lines(found: Mapping[str, float]) -> list[str]:
    """The numbers in two lines, those that no output has left out."""
    one = {name: value for name, value in found.items() if np.isfinite(value)}
    lengths = f"{one['outputs']:.0f} outputs, mean length {one['words']:.1f} words ({one['characters']:.0f} characters)"
    shares = (("empty", "empty"), ("cut_off", "cut off at --max-new-tokens"))
    more = [f"{one[name]:.0%} {words}" for name, words in shares if one.get(name)]
    grams = [f"distinct-{n} {one[f'distinct_{n}']:.2f}" for n in (1, 2, 3) if f"distinct_{n}" in one]
    again = [f"repeated 4-grams {one['repeated_4']:.0%}"] if "repeated_4" in one else []
    return [", ".join([lengths, *more]), ", ".join([*grams, *again])]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
