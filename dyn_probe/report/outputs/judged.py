"""What a judge said of outputs: AlpacaEval's annotations or leaderboard, read back beside the runs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dyn_probe.errors import BadInput, did_you_mean, on_one_line

WANTED = (
    "AlpacaEval's annotations.json (a list with generator_1, generator_2, output_2 and preference), or its "
    "leaderboard.csv (generators in the first column, win_rate)"
)


@dataclass(frozen=True)
class Judged:
    """One generator under a judge; NaN is what the file does not say.

    Args:
        win_rate: share of prompts at which it is preferred to the other outputs, a tie counting ½; ``error`` its
            standard error.
        length_controlled: the win rate with the effect of length taken out, where the file has it.
        length: mean length of its outputs, characters.
    """

    win_rate: float
    error: float = math.nan
    length_controlled: float = math.nan
    length: float = math.nan


def read_judged(path: Path) -> dict[str, Judged]:
    """Generator → what the file says of it.

    Raises:
        BadInput: the file cannot be read, or is neither of the two.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text))) if path.suffix == ".csv" else json.loads(text)
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise BadInput(f"cannot read {path}: {on_one_line(error)}; wanted {WANTED}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise BadInput(f"{path} holds no rows; wanted {WANTED}")
    found = _leaderboard(rows) if path.suffix == ".csv" else _annotations(rows)
    if not found:
        raise BadInput(f"no row of {path} has a preference; wanted {WANTED}")
    return found


def _annotations(rows: Sequence[Mapping[str, Any]]) -> dict[str, Judged]:
    """Preference 1 means the first output, 2 the second, what lies between how probable the second is preferred."""
    groups: dict[str, list[tuple[float, str]]] = {}
    for row in rows:
        preference = _number(row.get("preference"))
        if 1 <= preference <= 2:
            name = str(row.get("generator_2"))
            groups.setdefault(name, []).append((preference - 1, str(row.get("output_2") or "")))
    return {
        name: Judged(
            float(np.mean([won for won, _ in ones])),
            float(np.std([won for won, _ in ones], ddof=1) / math.sqrt(len(ones))) if len(ones) > 1 else math.nan,
            length=float(np.mean([len(text) for _, text in ones])),
        )
        for name, ones in groups.items()
    }


def _leaderboard(rows: Iterable[Mapping[str, Any]]) -> dict[str, Judged]:
    """Win rates in per cent, as AlpacaEval writes them."""
    found = {}
    for row in rows:
        name = str(next(iter(row.values()), ""))
        rate, error, controlled = (
            _number(row.get(key)) / 100 for key in ("win_rate", "standard_error", "length_controlled_winrate")
        )
        if 0 <= rate <= 1:
            found[name] = Judged(rate, error, controlled, _number(row.get("avg_length")))
    return found


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) or value in (None, "") else float(value)
    except (TypeError, ValueError):
        return math.nan


def judged_runs(path: Path, labels: Sequence[str]) -> dict[str, Judged]:
    """Label of a run → what the file says of the generator of that name.

    Raises:
        BadInput: also where a run is no generator of the file; both names are listed.
    """
    found = read_judged(path)
    if lacking := [label for label in labels if label not in found]:
        near = did_you_mean(lacking[0], list(found))
        raise BadInput(
            f"{path} has no generator {', '.join(map(repr, lacking))}{near}; it has {', '.join(map(repr, found))}. The "
            "outputs of a run are called after its folder, or by --generator of dyn-probe generate"
        )
    return {label: found[label] for label in labels}


def check_judged(runs: int, judged: Path | None) -> None:
    """Refuse a judge's file where there is nothing to compare.

    Raises:
        BadInput: it is given with one run.
    """
    if judged is not None and runs < 2:
        raise BadInput(f"--judged {judged} is read in comparisons; name several runs")
