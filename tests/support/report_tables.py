"""The side tables of a synthetic run: layers, texts and probe responses."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dyn_probe.trace.schema import TABLES

LAYERS = ("embedding", *(str(block) for block in range(6)), "final_norm", "head")
SLOPES = {"chosen": -0.2, "rejected": -0.9, "irr_train": -0.5, "random_permute": -0.6}


def empty(table: str) -> pd.DataFrame:
    """The table without rows."""
    return pd.DataFrame({name: [] for name in TABLES[table].names})


def fill(table: str, columns: dict[str, object]) -> pd.DataFrame:
    """A frame with every column of the table, null where `columns` has none."""
    return pd.DataFrame(columns).reindex(columns=list(TABLES[table].names))


def split_layers(pairs: pd.DataFrame, draw) -> pd.DataFrame:
    """Layer rows whose squared norms and inner products add up to the pair's; later blocks carry more."""
    weight = np.linspace(0.3, 1.0, len(LAYERS))
    share_w = draw.dirichlet(20 * weight, len(pairs))
    share_l = draw.dirichlet(20 * weight, len(pairs))
    mix = np.sqrt(share_w * share_l) * np.linspace(0.75, 1.0, len(LAYERS))
    inner = pairs.grad_inner.to_numpy()[:, None] * mix / mix.sum(1, keepdims=True)
    depth = np.tile(np.arange(len(LAYERS)), len(pairs))
    return fill(
        "layers",
        {
            "step": np.repeat(pairs.step.to_numpy(), len(LAYERS)),
            "pair_id": np.repeat(pairs.pair_id.to_numpy(), len(LAYERS)),
            "layer": np.array(LAYERS)[depth],
            "depth": depth,
            "grad_norm_chosen": (np.sqrt(share_w) * pairs.grad_norm_chosen.to_numpy()[:, None]).ravel(),
            "grad_norm_rejected": (np.sqrt(share_l) * pairs.grad_norm_rejected.to_numpy()[:, None]).ravel(),
            "grad_inner": inner.ravel(),
        },
    )


def texts(ids: list[str]) -> pd.DataFrame:
    """One example row per pair."""
    return pd.DataFrame(
        {
            "pair_id": ids,
            "prompt": [
                f"Statement {number}: the film was long but rewarding. Sentiment?" for number in range(len(ids))
            ],
            "chosen": [f"It has a positive sentiment ({number})." for number in range(len(ids))],
            "rejected": [f"It has a negative sentiment ({number})." for number in range(len(ids))],
            "source": [f"sentiment.jsonl:{number + 1}" for number in range(len(ids))],
        }
    )


def probe_mass(steps: int, ids: list[str]) -> pd.DataFrame:
    """Probe responses of four prompts every tenth step: all kinds fall, the most probable token rises."""
    rows = []
    for step in range(0, steps, 10):
        for prompt in ids[:4]:
            for kind, slope in SLOPES.items():
                moved = slope * step / steps
                argmax = 20 * (-1.0 + 0.3 * step / steps)
                rows.append((step, prompt, kind, 20, 20 * (moved - 2.0), moved - 2.0, argmax))
    names = ("step", "prompt_id", "kind", "tokens", "logp", "logp_token", "argmax_logp")
    return fill("mass", dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def push_rows(pairs: pd.DataFrame, draw) -> pd.DataFrame:
    """Pushes that add up to `update_delta_*`: own parts by the formula of the pair alone, the past takes what is left;
    all rejected pushes outweigh all chosen ones by about a tenth."""
    rows = []
    for side, sign in (("chosen", 1), ("rejected", -1)):
        total = 0.6 * pairs[f"predicted_delta_{side}"] + draw.normal(0, 0.02, len(pairs))
        own = {name: draw.uniform(0.5, 1.5, len(pairs)) for name in ("chosen", "rejected")}
        parts = {
            "own_chosen": 0.05 * own["chosen"] * (1 if side == "chosen" else 0.7),
            "own_rejected": -0.05 * own["rejected"] * (1 if side == "rejected" else 0.8),
            "others": draw.normal(-0.003 * sign, 0.01, len(pairs)),
            "decay": np.full(len(pairs), -0.001 * sign),
            "rounding": draw.normal(0, 1e-7, len(pairs)),
        }
        parts["past"] = total - sum(parts.values())
        both = {"all_chosen": draw.uniform(1, 2, len(pairs)), "all_rejected": -1.1 * draw.uniform(1, 2, len(pairs))}
        columns = {name: pairs[name].to_numpy() for name in ("step", "pair_id", "rank")}
        rows.append(fill("pushes", {**columns, "side": side, **parts, **both, "total": total, "metric": "applied"}))
    return pd.concat(rows, ignore_index=True)
