"""Reading tables: columns as float arrays, what is recorded, first and last tenth of the steps, step bins."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


Function = TypeVar("Function", bound=Callable[..., Any])


def once(function: Function) -> Function:
    """What is derived from a trace, kept while the trace lives: a report asks for the same a dozen times. Answers are
    shared, so nobody changes them in place."""

    @wraps(function)
    def kept(trace: Any, *more: Any) -> Any:
        alive, found = _KEPT.get(id(trace), (None, {}))
        if alive is None or alive() is not trace:
            name, found = id(trace), {}
            _KEPT[name] = (weakref.ref(trace, lambda gone: _forget(name, gone)), found)
        asked = (function, *more)
        if asked not in found:
            found[asked] = function(trace, *more)
        return found[asked]

    return cast(Function, kept)


_KEPT: dict[int, tuple[weakref.ref[Any], dict[Any, Any]]] = {}


def _forget(name: int, gone: weakref.ref[Any]) -> None:
    if name in _KEPT and _KEPT[name][0] is gone:
        del _KEPT[name]


def numbers(frame: pd.DataFrame, column: str) -> Floats:
    """A column as float64 [rows], NaN where null or where the table has no such column."""
    if column not in frame:
        return np.full(len(frame), np.nan)
    if frame[column].dtype == np.float64:
        return np.array(frame[column], dtype=np.float64)
    return pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def recorded(frame: pd.DataFrame, column: str) -> bool:
    """Whether at least one row of the column is not null."""
    return column in frame and bool(frame[column].head(1000).notna().any() or frame[column].notna().any())


def finite(values: Floats) -> Floats:
    """The values that are neither null nor infinite."""
    return values[np.isfinite(values)]


def median(values: Floats) -> float:
    """Median of the finite values, NaN if there is none."""
    kept = finite(values)
    return float(np.median(kept)) if len(kept) else float("nan")


HALF_ERRORS = {
    "grad_norm_chosen": "norm_error",
    "grad_norm_rejected": "norm_error",
    "grad_inner": "inner_error",
    "grad_cosine": "cosine_error",
    "logp_chosen": "logp_error",
    "logp_rejected": "logp_error",
}
"""Column of `pairs` → the column of `steps` that says what half precision does to it."""


@once
def half_errors(trace: Any) -> dict[str, float]:
    """Column of `steps` → the largest error of half precision in it; only what was measured."""
    found = {name: finite(numbers(trace.steps, name)) for name in dict.fromkeys(HALF_ERRORS.values())}
    return {name: float(values.max()) for name, values in found.items() if len(values)}


def half_error(errors: dict[str, float], column: str, row: Mapping[Any, float]) -> float:
    """The error of one number of `pairs` by half precision, in the number's own unit; NaN where it was not measured.

    Args:
        errors: of ``half_errors``.
        row: the number itself, and what its error is a part of.
    """
    error = errors.get(HALF_ERRORS.get(column, ""), float("nan"))
    if column.startswith("grad_norm"):
        return error * abs(row[column])
    if column == "grad_inner":
        return error * row.get("grad_norm_chosen", float("nan")) * row.get("grad_norm_rejected", float("nan"))
    return error


def share(mask: Mask, of: Mask | None = None) -> float:
    """Share of true rows (among the rows of `of`), NaN if there is none."""
    chosen = mask if of is None else mask[of]
    return float(chosen.mean()) if len(chosen) else float("nan")


@dataclass(frozen=True)
class Tenths:
    """Row masks of the first and the last tenth of the recorded steps, and the step ranges they cover."""

    first: Mask
    last: Mask
    first_steps: tuple[int, int]
    last_steps: tuple[int, int]


def tenths(frame: pd.DataFrame) -> Tenths | None:
    """First and last tenth (rounded up) of the distinct steps; None with fewer than two steps."""
    steps = numbers(frame, "step")
    distinct = np.unique(finite(steps))
    if len(distinct) < 2:
        return None
    size = int(np.ceil(len(distinct) / 10))
    early, late = distinct[:size], distinct[-size:]
    return Tenths(
        steps <= early[-1],
        steps >= late[0],
        (int(early[0]), int(early[-1])),
        (int(late[0]), int(late[-1])),
    )


def last_tenth(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the last tenth of the steps; all rows with fewer than two steps."""
    parts = tenths(frame)
    return frame if parts is None else frame[parts.last]


@dataclass(frozen=True)
class Bins:
    """Steps grouped into consecutive bins: `index` [rows] is a row's bin; `low`, `high`, `centre` [bins]."""

    index: NDArray[np.int64]
    low: Floats
    high: Floats
    centre: Floats

    def __len__(self) -> int:
        return len(self.centre)

    def slices(self, values: Floats) -> list[Floats]:
        """The finite values of each bin; nothing where there is no bin."""
        if not len(self):
            return []
        kept = np.isfinite(values)
        order = np.argsort(self.index[kept], kind="stable")
        bounds = np.searchsorted(self.index[kept][order], np.arange(1, len(self)))
        return list(np.split(values[kept][order], bounds))

    def sums(self, values: Floats) -> Floats:
        """Sum of each bin's finite values [bins]."""
        clean = np.nan_to_num(values, posinf=0, neginf=0)
        return np.bincount(self.index, clean, minlength=len(self)).astype(np.float64)

    def means(self, values: Floats) -> Floats:
        """Mean of each bin's finite values [bins], NaN where there is none."""
        known = self.sums(np.isfinite(values).astype(np.float64))
        return np.divide(self.sums(values), known, out=np.full(len(self), np.nan), where=known > 0)


def step_bins(frame: pd.DataFrame, limit: int = 40, rows: int = 24) -> Bins:
    """Bins of equally many recorded steps: at most `limit`; beyond 12 they hold about `rows` rows each."""
    steps = numbers(frame, "step")
    position, distinct = pd.factorize(steps, sort=True)  # by hash: much faster than np.unique on long runs
    count = min(limit, len(distinct), max(12, len(steps) // rows))
    if not len(distinct):
        nothing = np.empty(0)
        return Bins(np.empty(0, np.int64), nothing, nothing, nothing)
    groups = np.array_split(np.arange(len(distinct)), count)
    owner = np.repeat(np.arange(count), [len(group) for group in groups])
    low = np.array([distinct[group[0]] for group in groups])
    high = np.array([distinct[group[-1]] for group in groups])
    return Bins(owner[position].astype(np.int64), low, high, (low + high) / 2)


def bands(bins: Bins, values: Floats) -> Floats:
    """QUANTILES of each bin's finite values: [bins, 5], NaN where a bin has none."""
    return np.array(
        [np.quantile(part, QUANTILES) if len(part) else np.full(len(QUANTILES), np.nan) for part in bins.slices(values)]
    ).reshape(-1, len(QUANTILES))
