"""Rows of the trace's tables from what a recording found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dyn_probe import entanglement
from dyn_probe.capture.uses import Layer
from dyn_probe.recording import Products

Row = dict[str, Any]


def pair_rows(step: int, rank: int, ids: Sequence[str], columns: Mapping[str, Any]) -> list[Row]:
    """One row of the ``pairs`` table per pair, from columns ``[B]``."""
    return [
        {"step": step, "pair_id": pair, "rank": rank, **{name: _item(values[i]) for name, values in columns.items()}}
        for i, pair in enumerate(ids)
    ]


def layer_rows(step: int, ids: Sequence[str], layers: Mapping[Layer, Tensor]) -> list[Row]:
    """Rows of the ``layers`` table, from ``[B, 3]`` per layer."""
    rows = []
    for layer, values in layers.items():
        norms, inner = values[:, :2].clamp(min=0).sqrt().tolist(), values[:, 2].tolist()
        for i, pair in enumerate(ids):
            row = {"step": step, "pair_id": pair, "layer": layer.label, "depth": layer.depth}
            rows.append(
                row | {"grad_norm_chosen": norms[i][0], "grad_norm_rejected": norms[i][1], "grad_inner": inner[i]}
            )
    return rows


def pair_columns(given: Mapping[str, Any], products: Products, rate: float | None) -> dict[str, Any]:
    """Columns of the ``pairs`` table, ``[B]`` each, from what the loop gave and what the recording found."""
    logps, half = given["logps"], len(given["logps"]) // 2
    entries = torch.stack(list(products.pair_entries().values())).sum(0).numpy()
    norm_w, norm_l = np.sqrt(np.maximum(entries[:, 0], 0)), np.sqrt(np.maximum(entries[:, 1], 0))
    pull = products.coefficients.numpy() * half / given["scale"]
    d_w, d_l = -pull[:half], pull[half:]
    up, down = entanglement.predicted_delta(d_w, d_l, norm_w, norm_l, entries[:, 2], 1.0 if rate is None else rate)
    columns: dict[str, Any] = {
        "logp_chosen": logps[:half],
        "logp_rejected": logps[half:],
        "pull_chosen": d_w,
        "pull_rejected": d_l,
        "grad_norm_chosen": norm_w,
        "grad_norm_rejected": norm_l,
        "grad_inner": entries[:, 2],
        "grad_cosine": entanglement.cosine(norm_w, norm_l, entries[:, 2]),
        "case_plain": entanglement.cases(up, down),
        "separate_backward": products.separate.numpy(),
        **given["columns"],
    }
    if not given["predict"]:
        del columns["case_plain"]
    elif rate is not None:
        columns |= {"predicted_delta_chosen": up, "predicted_delta_rejected": down}
        if products.gram is not None and given["scale"] == 1.0:  # one of several micro-batches is not the step's batch
            sides = entanglement.batch_delta(products.gram.numpy(), d_w, d_l, rate)
            columns |= dict(zip(("batch_delta_chosen", "batch_delta_rejected"), sides, strict=True))
    for name, key in (("ref_logp", "reference"), ("len", "lengths")):
        if given[key] is not None:
            columns |= {f"{name}_chosen": given[key][:half], f"{name}_rejected": given[key][half:]}
    if given["losses"] is not None:
        columns["loss"] = given["losses"]
    return columns


def step_means(rows: Sequence[Row]) -> Row:
    """The ``steps`` columns that are means over a step's pair rows."""
    if not rows:
        return {}
    a, b = (np.array([r[f"logp_{side}"] for r in rows]) for side in ("chosen", "rejected"))
    r_w, r_l = (np.array([r.get(f"ref_logp_{side}", 0.0) for r in rows]) for side in ("chosen", "rejected"))
    margin = (a - r_w) - (b - r_l)
    losses = [r["loss"] for r in rows if r.get("loss") is not None]
    return {
        "pairs": len(rows),
        "logp_chosen": float(a.mean()),
        "logp_rejected": float(b.mean()),
        "margin": float(margin.mean()),
        "accuracy": float((margin > 0).mean()),
        **({"loss": float(np.mean(losses))} if losses else {}),
    }


def _item(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
