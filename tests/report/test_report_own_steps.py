"""How much of the movement came in the steps that train the pair itself, and what the headline says of it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from moved_runs import moved_tables
from report_frames import DEFAULT
from report_runs import manifest, write_tables

from dyn_probe.report.first_screen.headline import headline
from dyn_probe.report.first_screen.own_steps import own_share
from dyn_probe.trace.reader import Trace, load_trace


def moved(path: Path, share: float, fall: float = -0.38, **push: float) -> Trace:
    """A run in which every pair's own steps made this share of the fall of its chosen response; `push` replaces columns
    of `pushes`."""
    tables = moved_tables(fall, -1.9, DEFAULT)
    pairs = tables["pairs"]
    rows = pairs.groupby("pair_id")["step"].transform("count")
    pairs["realised_delta_chosen"] = share * fall * pairs.len_chosen / rows
    for name, value in push.items():
        tables["pushes"][name] = value
    return load_trace(write_tables(path, tables, manifest(DEFAULT)))


def by_hand(trace: Trace, side: str) -> float:
    """The same row by row: mean over pairs of what their steps changed, over the mean of all that changed."""
    steps: dict[str, float] = defaultdict(float)
    first, known = {}, set()
    for row in trace.pairs.sort_values("step").itertuples():
        if (row.step, row.pair_id) not in known:
            steps[row.pair_id] += getattr(row, f"realised_delta_{side}") / getattr(row, f"len_{side}")
            first.setdefault(row.pair_id, (getattr(row, f"ref_logp_{side}"), getattr(row, f"len_{side}")))
        known.add((row.step, row.pair_id))
    ends = {row.pair_id: getattr(row, f"logp_{side}") for row in trace.final.itertuples()}
    whole = [(ends[one] - start) / length for one, (start, length) in first.items()]
    return float(np.mean([steps[one] for one in first]) / np.mean(whole))


@pytest.mark.parametrize("share", [0.02, 0.6, -0.3])
def test_the_share_is_what_the_pairs_own_steps_changed_of_the_whole(share: float, tmp_path: Path) -> None:
    trace = moved(tmp_path / "run", share)
    found = own_share(trace)
    assert found["chosen"] == pytest.approx(share, rel=1e-5) == pytest.approx(by_hand(trace, "chosen"), rel=1e-5)
    assert found["rejected"] == pytest.approx(by_hand(trace, "rejected"), rel=1e-5)


def test_without_measured_changes_the_totals_of_the_pushes_stand_in(tmp_path: Path) -> None:
    trace = moved(tmp_path / "run", 0.5)
    trace.pairs.loc[3, "realised_delta_chosen"] = np.nan
    rows = trace.pairs.merge(trace.pushes[trace.pushes.side == "chosen"], on=["step", "rank", "pair_id"])
    mean = (rows.total / rows.len_chosen).groupby(rows.pair_id).sum().mean()
    assert own_share(trace)["chosen"] == pytest.approx(mean / -0.38, rel=1e-5)


@pytest.mark.parametrize("lost", ["steps", "final", "totals"])
def test_no_share_is_named_where_part_of_it_is_not_known(lost: str, tmp_path: Path) -> None:
    tables = moved_tables(-0.38, -1.9, DEFAULT)
    if lost == "steps":
        tables["pairs"] = tables["pairs"][tables["pairs"].step != 3]
    elif lost == "final":
        del tables["final"]
    else:
        tables["pairs"]["realised_delta_chosen"] = np.nan
        pushes = tables["pushes"]
        tables["pushes"] = pushes.drop(pushes[pushes.side == "chosen"].index[5])
    assert own_share(load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT)))) == {}


PULLED = {"all_chosen": 1.0, "own_chosen": 0.2, "all_rejected": -1.3, "own_rejected": -0.2}


@pytest.mark.parametrize(
    ("share", "push", "says"),
    [
        (0.02, PULLED, "Nearly all of chosen's fall came in steps that train other pairs, whose rejected pushes "
         "outweigh their chosen pushes on it by 37%."),
        (0.2, PULLED, "Most of chosen's fall came in steps that train other pairs, whose rejected"),
        (-0.4, PULLED, "Most of chosen's fall came in steps that train other pairs, whose rejected"),
        (0.02, PULLED | {"all_rejected": -0.6}, "pairs, although their chosen pushes outweigh their rejected pushes"),
        (0.02, PULLED | {"all_rejected": 0.3}, "pairs, whose chosen and rejected pushes point the same way on it."),
        (0.6, PULLED, "On chosen, rejected pushes of other pairs outweigh chosen pushes by 37%; chosen moved mostly"),
    ],
)  # fmt: skip
def test_the_headline_says_in_which_steps_it_came(
    share: float, push: dict[str, float], says: str, tmp_path: Path
) -> None:
    assert says in headline(moved(tmp_path / "run", share, **push))[1]


def test_pushes_that_balance_are_called_so_there(tmp_path: Path) -> None:
    trace = moved(tmp_path / "run", 0.02, **PULLED)
    noise = pd.Series(np.random.default_rng(0).normal(-1.0, 0.5, len(trace.pushes)), index=trace.pushes.index)
    trace.pushes["all_rejected"] = noise - (noise[trace.pushes.side == "chosen"].mean() + 1.0)
    assert headline(trace)[1].endswith("where chosen and rejected pushes balance on it, to within the error.")
