"""Every statement of the report: a synthetic run that triggers it and no other, on both sides of its threshold; and a
healthy run that triggers none."""

from __future__ import annotations

from pathlib import Path

import pytest
import troubled_pairs
import troubled_steps
import troubled_traces
from healthy_run import healthy

from dyn_probe.report.first_screen.alarms import ALARMS, alarms
from dyn_probe.report.verdicts import VERDICTS
from dyn_probe.trace.reader import Trace

TROUBLES = troubled_pairs.TROUBLES | troubled_steps.TROUBLES | troubled_traces.TROUBLES
RANK = {"ok": 0, "note": 1, "warning": 2}


def name_of(statement: object) -> str:
    return f"{statement.__module__.rpartition('.')[2]}.{statement.__name__}"  # type: ignore[attr-defined]


def levels(trace: Trace) -> dict[str, int]:
    """Statement → its worst level; a statement that says nothing is as it should be."""
    return {
        name_of(one): max((RANK[verdict.level] for verdict in one(trace)), default=0)
        for statements in VERDICTS.values()
        for one in statements
    }


def risen(trace: Trace, usual: dict[str, int]) -> dict[str, str]:
    """Statements above their usual level → what they rose to."""
    words = {rank: level for level, rank in RANK.items()}
    return {name: words[rank] for name, rank in levels(trace).items() if rank > usual[name]}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Levels of the healthy run."""
    return levels(healthy().written(tmp_path_factory.mktemp("healthy") / "run"))


def test_a_healthy_run_triggers_none(usual: dict[str, int]) -> None:
    assert {name for name, rank in usual.items() if rank == RANK["warning"]} == set()
    assert {name for name, rank in usual.items() if rank == RANK["note"]} == DESCRIPTIVE


@pytest.mark.parametrize("name", TROUBLES)
def test_a_statement_is_triggered_alone(name: str, usual: dict[str, int], tmp_path: Path) -> None:
    row, run = TROUBLES[name], healthy()
    row.change(run, True)
    trace = run.written(tmp_path / "run")
    assert risen(trace, usual) == {row.statement: row.level}
    alarming = row.level == "warning" and row.statement in {name_of(one) for one in ALARMS}
    assert len(alarms(trace)) == alarming


@pytest.mark.parametrize("name", [name for name, row in TROUBLES.items() if row.threshold])
def test_short_of_its_threshold_nothing_is_triggered(name: str, usual: dict[str, int], tmp_path: Path) -> None:
    row, run = TROUBLES[name], healthy()
    row.change(run, False)
    found = risen(run.written(tmp_path / "run"), usual)
    assert RANK[found.pop(row.statement, "ok")] < RANK[row.level] and found == {}


def test_every_statement_has_a_run_of_its_own() -> None:
    statements = {name_of(one) for statements in VERDICTS.values() for one in statements}
    assert {row.statement for row in TROUBLES.values()} | NEUTRAL == statements


DESCRIPTIVE = {
    "generalised.generalised",
    "synchrony.together",
    "what_moved.moved",
    "what_moved.outweighed",
    "cases.shares",
    "realised.measured",
    "gradients.alignment",
    "shaped.balance",
}
"""Statements that a healthy run has too: what was measured, and no trouble."""

NEUTRAL = {"synchrony.together", "what_moved.moved", "what_moved.outweighed", "gradients.alignment", "shaped.balance"}
"""Those of them that are no more than that in any run."""
