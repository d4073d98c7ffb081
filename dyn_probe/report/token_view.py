"""Token heat maps as plain data for the interactive page: pairs, steps, numbers, rounded and limited in size."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dyn_probe.report.token_draw import spread_steps
from dyn_probe.token_analysis import (
    TokenHeat,
    insignificant_tokens,
    recorded_heats,
    region_inner,
    significant_tokens,
    token_groups,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dyn_probe.trace.reader import Trace

MOST_CELLS = 40_000
"""Most entries (over all pairs and steps) on a page; beyond that steps are thinned out, then pairs left out."""
MOST_GROUPS = 20


def token_view(trace: Trace) -> dict[str, Any] | None:
    """Everything that the page shows from the ``tokens`` table; None where nothing was recorded."""
    if trace.tokens.empty:
        return None
    heats = recorded_heats(trace.tokens)
    names = list(dict.fromkeys(heat.pair_id for heat in heats))
    pairs = {name: [heat for heat in heats if heat.pair_id == name] for name in names}
    kept = bounded(pairs)
    shown = sum(len(group) for group in kept.values())
    texts = dict(zip(trace.examples["pair_id"], trace.examples["prompt"], strict=True))
    return {
        "pairs": [_pair(name, group, texts.get(name)) for name, group in kept.items()],
        "left_out": len(heats) - shown,
        "groups": [_group(group) for group in token_groups(heats)[:MOST_GROUPS]],
        "significant": [_group(group) for group in significant_tokens(heats)[:MOST_GROUPS]],
        "insignificant": [_group(group) for group in insignificant_tokens(heats)[:MOST_GROUPS]],
    }


def bounded(pairs: dict[str, list[TokenHeat]], most: int = MOST_CELLS) -> dict[str, list[TokenHeat]]:
    """The maps that fit: each pair gets an equal part, at least two steps (first and last), in order."""
    kept: dict[str, list[TokenHeat]] = {}
    left = most
    for done, (name, heats) in enumerate(pairs.items()):
        size = max(heat.inner.size for heat in heats)
        fitting = max(2, left // (len(pairs) - done) // size)
        chosen = spread_steps(heats, fitting)
        cost = sum(heat.inner.size for heat in chosen)
        if kept and cost > left:
            continue
        kept[name], left = chosen, left - cost
    return kept


def _pair(name: str, heats: Sequence[TokenHeat], prompt: object) -> dict[str, Any]:
    return {
        "pair_id": name,
        "prompt": prompt[:200] if isinstance(prompt, str) else "",
        "chosen": list(heats[0].tokens_chosen),
        "rejected": list(heats[0].tokens_rejected),
        "maps": [
            {
                "step": heat.step,
                "inner": rounded(heat.inner),
                "cosine": rounded(heat.cosine),
                "parts": {part: float(f"{value:.4g}") for part, value in region_inner(heat).items()},
            }
            for heat in heats
        ],
    }


def _group(group: Any) -> dict[str, Any]:
    return {
        "chosen": group.chosen,
        "rejected": group.rejected,
        "count": group.count,
        "cosine": _number(group.cosine),
        "negative": _number(group.negative),
        "share": _number(group.share),
    }


def rounded(values: np.ndarray) -> list[float | None]:
    """All entries, row by row, with four digits; None where one is not finite."""
    return [_number(value) for value in values.ravel()]


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def script_hash(script: str) -> str:
    """What a Content-Security-Policy lists so that this inline script may run and no other."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii") + "'"
