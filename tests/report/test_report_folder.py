"""The report's folder: tables, what is overwritten and what is never touched, errors."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from report_frames import Options
from report_runs import new_trace, write_run

from dyn_probe.errors import BadInput, TraceError
from dyn_probe.report.build import build_report, default_folder
from dyn_probe.report.output import check_folder, write_files
from dyn_probe.report.page_data import report_data
from dyn_probe.report.tables import run_tables
from dyn_probe.report.verdicts import verdicts

EVIL = '<script>alert("x")</script><img src="http://evil.example/a.png" onerror=alert(1)>'
SHORT = Options(steps=20, mass=True)


def test_tables_hold_the_numbers_of_the_page(tmp_path: Path) -> None:
    trace = new_trace(tmp_path / "run", Options(steps=20))
    files = run_tables(trace, report_data(trace))
    tables = {Path(name).stem: list(csv.DictReader(io.StringIO(text.decode("utf-8")))) for name, text in files.items()}
    assert set(tables) == {"verdicts", "start_and_end", "curves", "layers", "ranked_pairs", "definitions"}
    numbers = [number for verdict in verdicts(trace) for number in verdict.numbers]
    written = [float(row["value"]) for row in tables["verdicts"] if row["number"]]
    assert written == pytest.approx([number.value for number in numbers], nan_ok=True)
    assert len(tables["ranked_pairs"]) == trace.pairs.pair_id.nunique()
    cosine = [float(row["value"]) for row in tables["curves"] if row["measure"] == "cosine"]
    first = trace.pairs[trace.pairs.step <= int(tables["curves"][0]["last_step"])]
    assert cosine[0] == pytest.approx(first.grad_cosine.median())


@pytest.mark.usefixtures("unrendered")
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Options(steps=2, batch=2))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(BadInput, match="not empty"):
        build_report([run], mine)
    build_report([run], mine, force=True)
    assert (mine / "thesis.tex").read_text(encoding="utf-8") == "years of work"
    assert (mine / "report.html").is_file()
    with pytest.raises(BadInput, match="file"):
        build_report([run], mine / "thesis.tex")


def test_an_older_report_is_replaced_without_leftovers(tmp_path: Path) -> None:
    write_files(tmp_path, {"figures/old.png": b"old", "report.html": b"old"}, {})
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    check_folder(tmp_path, force=False)
    write_files(tmp_path, {"report.html": b"new"}, {"number": float("nan")})
    assert not (tmp_path / "figures/old.png").exists()
    assert (tmp_path / "report.html").read_bytes() == b"new"
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["data"] == {"number": None}


def test_a_forged_list_of_files_deletes_nothing_outside(tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("precious", encoding="utf-8")
    out = tmp_path / "out"
    write_files(out, {"report.html": b""}, {})
    mark = json.loads((out / "report.json").read_text(encoding="utf-8"))
    mark["files"] += ["../victim.txt", str(victim)]
    (out / "report.json").write_text(json.dumps(mark), encoding="utf-8")
    write_files(out, {"report.html": b"new"}, {})
    assert victim.is_file() and (out / "report.html").read_bytes() == b"new"


def test_errors_say_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least one run"):
        build_report([])
    with pytest.raises(TraceError, match="does not exist"):
        build_report([tmp_path / "nowhere"])
    assert not (tmp_path / "nowhere").exists()


def test_the_default_folder_is_inside_the_run_or_beside_the_first() -> None:
    assert default_folder([Path("runs/a")]) == Path("runs/a/report")
    many = [Path(f"runs/{name}") for name in "abcde"]
    assert default_folder(many).name == "compare-a-b-c-and-2-more"
