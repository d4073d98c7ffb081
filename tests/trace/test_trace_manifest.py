"""``run.json`` by its schema: checked when written and when read, typed, and older versions of it still understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trace_samples import step_rows

from dyn_probe.errors import TraceError
from dyn_probe.report.build import build_report
from dyn_probe.report.run_facts import facts
from dyn_probe.trace.manifest import DEEPEST, read_manifest, typed
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.run_fields import Manifest, ShapingInfo
from dyn_probe.trace.schema import SCHEMA_VERSION
from dyn_probe.trace.writer import TraceWriter

OLDER = Path(__file__).resolve().parents[1] / "fixtures/old_trace"
SHAPING = [{"name": "gate-seq", "options": {"tau": 0.1, "form": "value"}}, {"name": "adadpo", "options": {}}]


def recorded(run: Path, **fields: Any) -> Path:
    """A closed trace of two steps whose ``run.json`` has these fields."""
    with TraceWriter(run, fields) as writer:
        writer.add("pairs", step_rows(0, 1))
    return run


def changed(run: Path, **fields: Any) -> Path:
    """The same with these fields written over, as anybody could with an editor."""
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(content | fields), encoding="utf-8")
    return run


def test_what_is_recorded_comes_back_typed(tmp_path: Path) -> None:
    objective = {"name": "dpo", "hyper": {"beta": 0.1}, "shaping": SHAPING}
    about = load_trace(recorded(tmp_path / "run", objective=objective, data={"pairs": 7})).about
    assert about.schema_version == SCHEMA_VERSION and about.status == "closed" and about.data.pairs == 7
    assert (about.objective.name, about.objective.hyper) == ("dpo", {"beta": 0.1})
    assert about.objective.shaping == (ShapingInfo("gate-seq", {"tau": 0.1, "form": "value"}), ShapingInfo("adadpo"))
    assert about.files["pairs.parquet"].rows == 2 and about.model.name is None and about.certificate is None


def test_fields_of_a_wrong_type_are_refused_before_a_file_is_there(tmp_path: Path) -> None:
    wrong = {
        "data": {"pairs": "seven"},
        "objective": {"shaping": [{"options": {}}]},
        "processes": {"count": True},
        "warmup": {"sft": []},
        "command": 5,
    }
    with pytest.raises(TraceError) as raised:
        TraceWriter(tmp_path / "run", wrong)
    said = str(raised.value)
    assert "data.pairs: wanted a whole number or null, came 'seven' (str)" in said
    assert "objective.shaping[0].name: is missing" in said
    assert all(place in said for place in ("processes.count", "warmup.sft", "command"))
    assert not (tmp_path / "run").exists()


def test_a_recorder_may_add_fields(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", note={"mine": [1]}, data={"name": "a", "licence": "b"})
    assert load_trace(run).manifest["note"] == {"mine": [1]}
    assert load_trace(run).manifest["data"] == {"name": "a", "licence": "b"}


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"data": []}, "data: wanted a mapping with name, pairs, held_out, rows, shape, …, came [] (list)"),
        ({"files": {"pairs.parquet": {"rows": 1}}}, "files.pairs.parquet.bytes: is missing"),
        ({"resumes": [{"segment": 0.5}]}, "resumes[0].segment: wanted a whole number, came 0.5 (float)"),
        ({"status": "open"}, "status: wanted one of recording, closed, stopped"),
        ({"model": {"parameters": 2**70}}, "model.parameters"),
        ({"lost": {"rows": {"pairs": None}}}, "lost.rows.pairs"),
        ({"skipped_rows": [1] * 100_000}, "skipped_rows[0]"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_a_field_that_does_not_fit_is_named_when_it_is_read(tmp_path: Path, fields: Any, wanted: str) -> None:
    run = changed(recorded(tmp_path / "run"), **fields)
    with pytest.raises(TraceError) as raised:
        load_trace(run)
    assert wanted in str(raised.value) and "run.json cannot be used" in str(raised.value)
    assert len(str(raised.value)) < 1500  # of very many, the first ones


def test_levels_without_end_are_refused(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(DEEPEST + 10):
        deep = [deep]
    with pytest.raises(TraceError, match="nested deeper than 50 levels"):
        load_trace(changed(recorded(tmp_path / "run"), note=deep))
    with pytest.raises(TraceError, match="at most 50"):
        TraceWriter(tmp_path / "other", {"note": deep})
    text = (tmp_path / "run/run.json").read_text(encoding="utf-8")
    (tmp_path / "run/run.json").write_text("[" * 100_000 + text, encoding="utf-8")
    with pytest.raises(TraceError, match="cannot be read as JSON"):
        load_trace(tmp_path / "run")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("gate-seq: {'tau': 0.1, 'form': 'value'}", ShapingInfo("gate-seq", {"tau": 0.1, "form": "value"})),
        ("adadpo", ShapingInfo("adadpo")),
        ("own: {'a': __import__('os')}", ShapingInfo("own")),
        ("own: {'a': 1j}", ShapingInfo("own")),
        ("own: " + "(" * 9_000, ShapingInfo("own")),
    ],
)
def test_a_shaping_of_version_1_is_read_from_its_text(tmp_path: Path, written: str, read: ShapingInfo) -> None:
    run = changed(recorded(tmp_path / "run"), schema_version=1, objective={"name": "dpo", "shaping": [written]})
    assert load_trace(run).about.objective.shaping == (read,)
    today = recorded(tmp_path / "today", objective={"name": "dpo", "shaping": [written]})
    structured = json.loads((today / "run.json").read_text(encoding="utf-8"))["objective"]["shaping"]
    assert structured == [{"name": read.name, "options": read.options}]


@pytest.mark.usefixtures("unrendered")
def test_fields_of_version_1_that_do_not_fit_are_passed_over(tmp_path: Path) -> None:
    """That version promised nothing about them; the tables are still read, reported, and gone on with."""
    run = changed(recorded(tmp_path / "run"), schema_version=1, data=5, model={"name": "tiny", "parameters": "many"})
    trace = load_trace(run)
    assert (trace.about.model.name, trace.about.model.parameters, trace.about.data.name) == ("tiny", None, None)
    assert trace.pairs["step"].tolist() == [0, 1] and dict(facts(trace))["Model"] == "tiny"
    assert build_report([run], out=tmp_path / "report").is_file()
    TraceWriter(run, {}, resume=True).close()
    assert read_manifest(run)["earlier"] == {"data": 5, "model": {"name": "tiny", "parameters": "many"}}


def test_the_fixture_of_version_1_is_read_typed() -> None:
    about = load_trace(OLDER).about
    assert (about.schema_version, about.objective.name, about.data.name) == (1, "dpo", "pairs.jsonl")
    assert [one.name for one in about.objective.shaping] == ["gate-seq", "adadpo"]
    assert about.objective.shaping[0].options and about.certificate and about.held_out and about.mass


def test_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    run = changed(recorded(tmp_path / "run"), schema_version=SCHEMA_VERSION + 1, dyn_probe_version="9.9")
    with pytest.raises(TraceError, match=rf"schema_version {SCHEMA_VERSION + 1}.*install the dyn-probe .*9\.9"):
        load_trace(run)


def test_infinity_is_a_number_in_run_json(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", certificate={"max_relative_error": float("nan"), "tolerance": float("inf")})
    found = load_trace(run).about.certificate
    assert found and found.max_relative_error is None and found.tolerance == float("inf")


def test_typed_never_fails_on_plain_values() -> None:
    assert typed({}) == Manifest(0, "", "")
    assert typed({"objective": 5, "resumes": {}, "status": None}).objective.name is None
    found = typed({"skipped_rows": [{"reason": "cut"}, 5], "warmup": {"sft": 1, "dpo": "low"}})
    assert [row.reason for row in found.skipped_rows] == ["cut"] and found.warmup == {"sft": 1.0}
