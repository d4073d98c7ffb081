"""The table `layers` reduced: cosine within each layer over time, and each layer's part of the whole cosine."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dyn_probe.report.frames import Bins, Floats, numbers


def layer_codes(frame: pd.DataFrame) -> tuple[NDArray[np.int64], list[str]]:
    """(each row's place in the list [rows], layer names from input to output)."""
    codes, names = pd.factorize(frame["layer"])
    depth = pd.Series(numbers(frame, "depth")).groupby(codes).min().reindex(range(len(names)))
    order = np.argsort(depth.to_numpy(), kind="stable")
    return np.argsort(order)[codes], [str(names[place]) for place in order]


def cosine_parts(frame: pd.DataFrame) -> pd.Series:
    """Mean over pair rows of ⟨g_w,g_l⟩ of the layer / (‖g_w‖‖g_l‖ of the whole model), layers from input to output.

    Inner products and squared norms add up over layers, so the parts add up to the pairs' mean cosine. Unlike sums of
    ⟨g_w,g_l⟩ they are not dominated by the few pairs with the largest gradients.
    """
    codes, names = layer_codes(frame)
    row = _pair_rows(frame)
    whole = [np.sqrt(np.bincount(row, numbers(frame, f"grad_norm_{side}") ** 2)) for side in ("chosen", "rejected")]
    size = (whole[0] * whole[1])[row]
    part = np.divide(numbers(frame, "grad_inner"), size, out=np.full(len(size), np.nan), where=size > 0)
    known = np.isfinite(part)
    count = len(np.unique(row[known]))
    sums = np.bincount(codes[known], part[known], len(names))
    return pd.Series(sums / count if count else np.full(len(names), np.nan), index=names)


def _pair_rows(frame: pd.DataFrame) -> NDArray[np.int64]:
    """A number per (step, pair): rows with the same number are the layers of one pair at one step [rows]."""
    pair, names = pd.factorize(frame["pair_id"])
    step, _ = pd.factorize(numbers(frame, "step"))
    return pd.factorize(step.astype(np.int64) * (len(names) + 1) + pair)[0].astype(np.int64)


def layer_cosines(frame: pd.DataFrame, bins: Bins) -> Floats:
    """Mean over the pairs of a bin of the cosine within each layer: [layers, bins], NaN where it has no rows."""
    codes, names = layer_codes(frame)
    size = numbers(frame, "grad_norm_chosen") * numbers(frame, "grad_norm_rejected")
    cosine = np.divide(numbers(frame, "grad_inner"), size, out=np.full(len(size), np.nan), where=size > 0)
    known = np.isfinite(cosine)
    cell, cells = (codes * len(bins) + bins.index)[known], len(names) * len(bins)
    count = np.bincount(cell, minlength=cells)
    mean = np.divide(np.bincount(cell, cosine[known], cells), count, out=np.full(cells, np.nan), where=count > 0)
    return mean.reshape(len(names), len(bins))
