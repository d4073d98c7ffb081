"""What stands in the first lines of summary and report: a law that does not hold, numbers that are not finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from report_frames import Options, simulate
from report_runs import manifest, write_tables
from trust.door_trace import rows_of

from dyn_probe.report.build import build_report
from dyn_probe.report.first_screen.alarms import alarms
from dyn_probe.report.summary import summary_lines
from dyn_probe.report.verdicts import status
from dyn_probe.report.verdicts.status import not_finite
from dyn_probe.trace.arrow_rows import arrow_schema
from dyn_probe.trace.parquet import Merged, write_parquet
from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.trace.schema import TABLES, UNDEFINED

SMALL = Options(steps=12, batch=2, pairs=6)
AGREES = {"max_relative_error": 1e-9, "tolerance": 1e-3}


def recorded(folder: Path, tables: dict[str, pd.DataFrame] | None = None, **fields: Any) -> Trace:
    """A small simulated run; ``fields`` of ``run.json`` are replaced."""
    about = {**manifest(SMALL), "certificate": AGREES, **fields}
    return load_trace(write_tables(folder / "run", tables or simulate(SMALL), about))


def with_column(column: str, value: float) -> dict[str, pd.DataFrame]:
    """The small run, with a value in one column of one step."""
    tables = simulate(SMALL)
    tables["steps"][column] = np.where(tables["steps"]["step"] == 7, value, 0)
    return tables


VIOLATIONS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "law 1": (("law1_error", 0.3), {}, "The Gram disagrees with the gradient of the loss"),
    "law 7, by the recorder": (None, {"pushes": {"trusted": False, "step": 7}}, "The pushes are not to be trusted"),
    "law 7, by its column": (("law7_error", 0.3), {"config": {"dtype": "float32"}}, "The pushes are not to be trusted"),
    "autograd": (None, {"certificate": {**AGREES, "max_relative_error": 0.1}}, "The recorder disagrees with plain"),
    "not finite": (("not_finite", 3), {}, "3 recorded numbers are not finite (NaN or infinite), the first at step 7"),
    "rows lost": (None, {}, "Rows are missing from step 3 on"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_stands_in_the_first_lines(name: str, tmp_path: Path) -> None:
    column, fields, words = VIOLATIONS[name]
    trace = recorded(tmp_path, column and with_column(*column), **fields)
    if name == "rows lost":
        file = trace.path / "run.json"
        lost = {"rows": {"pairs": 4}, "from_step": 3, "reason": "no room"}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"lost": lost}))
        trace = load_trace(trace.path)
    [alarm] = alarms(trace)
    assert alarm.startswith(words) and words in summary_lines(trace)[3]


def test_a_sound_run_has_no_alarm(tmp_path: Path) -> None:
    tables = with_column("law1_error", 1e-9)
    tables["steps"]["law7_error"] = 1e-7
    assert alarms(recorded(tmp_path, tables, config={"dtype": "float32"})) == []


def test_half_precision_weights_may_miss_their_parts(tmp_path: Path) -> None:
    assert alarms(recorded(tmp_path, with_column("law7_error", 0.3), config={"dtype": "bfloat16"})) == []


@pytest.mark.parametrize(("later", "levels"), [(False, ["note"]), (True, ["warning"])])
def test_the_first_steps_of_a_loss_scale_are_no_alarm(later: bool, levels: list[str], tmp_path: Path) -> None:
    """Training in float16 overflows until its loss scale has come down; afterwards an overflow is news."""
    tables = simulate(SMALL)
    steps, rows = tables["steps"], tables["pairs"]
    first = sorted(steps["step"])[:3]
    steps.loc[steps["step"].isin(first), "grad_norm"] = np.inf
    rows.loc[rows["step"].isin(first), "grad_norm_chosen"] = np.inf
    steps["not_finite"] = np.where(steps["step"].isin(first), 5, 0)
    if later:
        rows.loc[rows["step"] == 7, "grad_norm_chosen"] = np.nan
        steps.loc[steps["step"] == 7, "not_finite"] = 1
    trace = recorded(tmp_path, tables)
    assert [one.level for one in not_finite(trace)] == levels and len(alarms(trace)) == later
    assert ("first 3 recorded steps" in not_finite(trace)[0].sentence) is not later


def test_a_run_that_overflows_to_its_end_is_an_alarm(tmp_path: Path) -> None:
    tables = simulate(SMALL)
    tables["steps"]["grad_norm"], tables["steps"]["not_finite"] = np.inf, 5
    assert len(alarms(recorded(tmp_path, tables))) == 1


def test_a_loss_that_is_not_finite_from_the_start_is_an_alarm(tmp_path: Path) -> None:
    tables = simulate(SMALL)
    first = tables["pairs"]["step"] == tables["pairs"]["step"].min()
    tables["pairs"].loc[first, "loss"] = np.inf  # the gradient norm is finite
    assert len(alarms(recorded(tmp_path, tables))) == 1


REALS = [(table.name, column.name) for table in TABLES.values() for column in table.columns if "float64" in column.type]
DEFINED = [column for _, column in REALS if column not in UNDEFINED]


@pytest.mark.filterwarnings("ignore:.*its digest is another")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_counted_in_every_column(bad: float, tmp_path: Path) -> None:
    """Tables that somebody else wrote: a NaN that is not null stands in them too."""
    trace = recorded(tmp_path)
    for name in {table for table, _ in REALS}:
        rows = rows_of(name, range(3))
        for column in (column for table, column in REALS if table == name):
            rows[-1][column] = [bad, 0.5] if isinstance(rows[-1][column], list) else bad
        table = pa.Table.from_pylist(rows, schema=arrow_schema(TABLES[name]))
        write_parquet(trace.path / f"{name}.parquet", table, Merged())
    [verdict] = not_finite(load_trace(trace.path))
    assert len(REALS) > verdict.numbers[0].value == len(DEFINED) > 100 and verdict.level == "warning"


def test_the_page_begins_with_it(tmp_path: Path) -> None:
    tables = simulate(SMALL)
    tables["pairs"].loc[tables["pairs"].step == 7, "loss"] = np.inf
    page = build_report([recorded(tmp_path, tables).path]).read_text(encoding="utf-8")
    alarm = page.index("2 recorded numbers are not finite (NaN or infinite): 2 in pairs.loss")
    assert alarm < page.index("<h1>") and "of the other rows alone" in page


OTHER_TERMS = {
    "measured in a step": ([0.5, 1e-7], [0.3, 0.0], "note", ("agrees", "In 1 step", "by up to 0.5")),
    "in all steps": ([0.5, 0.6], [0.3, 0.4], "note", ("In 2 steps", "35% of its square", "by up to 0.6")),
    "in one, unknown in the others": ([0.5, 0.6], [0.3, None], "note", ("In 2 steps", "in 1 of them")),
    "none in the step that is off": ([0.5, 1e-7], [0.0, None], "warning", ("disagrees", "error of 0.5")),
    "in one step, none in the one that is off": ([0.5, 0.6], [0.3, 0.0], "warning", ("disagrees", "In 1 step")),
    "not measured": ([0.5, 0.6], [None, None], "warning", ("disagrees", "with --metric-every at the same steps")),
    "not a number": ([0.5, 0.6], [float("inf"), float("nan")], "warning", ("disagrees",)),
    "no violation": ([1e-7, 1e-8], [None, 0.0], "ok", ("agrees",)),
}


@pytest.mark.parametrize("name", OTHER_TERMS)
def test_other_terms_of_the_loss_are_no_violation_where_they_were_measured(name: str, tmp_path: Path) -> None:
    errors, shares, level, words = OTHER_TERMS[name]
    tables = simulate(SMALL)
    for place, (error, share) in enumerate(zip(errors, shares, strict=True)):
        tables["steps"].loc[place, ["law1_error", "other_terms"]] = (error, np.nan if share is None else share)
    [found] = status.law1(recorded(tmp_path, tables))
    assert found.level == level and all(word in found.sentence for word in words), found.sentence
    assert found.numbers[-1].value == 2
    uncertain = {"max_relative_error": 0.1, "tolerance": 1e-3}
    [found] = status.law1(recorded(tmp_path / "uncertain", tables, certificate=uncertain))
    assert found.level == ("ok" if level == "ok" else "warning")
