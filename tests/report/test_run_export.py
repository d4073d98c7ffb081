"""`export`: every value comes back from the files, curves are those by pandas, and nothing is written elsewhere."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from report_frames import Options, simulate
from report_runs import manifest, write_run, write_tables
from trace_samples import sample_rows

from dyn_probe.errors import BadInput, WriteFailed
from dyn_probe.report.export import dashboards
from dyn_probe.report.export.cells import neutral
from dyn_probe.report.export.series import all_series
from dyn_probe.report.export.table_files import ENDINGS
from dyn_probe.report.export.writing import MARK, export
from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.trace.schema import TABLES
from dyn_probe.trace.writer import TraceWriter

OPTIONS = Options(steps=12, batch=6, pairs=18, mass=True, gate=True)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A trace with a value of its own in every column of every table, nulls between them."""
    path = tmp_path_factory.mktemp("runs") / "sampled"
    with TraceWriter(path, {}) as writer:
        for name, table in TABLES.items():
            writer.add(name, sample_rows(table, 7))
    return load_trace(path)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A synthetic run with every kind of curve."""
    return load_trace(write_run(tmp_path_factory.mktemp("runs") / "run", OPTIONS))


def same(value: object, cell: object) -> bool:
    """Whether a value of the trace and what came back are equal; every kind of null is one."""
    if isinstance(value, list):
        return isinstance(cell, list) and all(map(same, value, cell)) and len(value) == len(cell)
    empty = [one is None or (isinstance(one, float) and math.isnan(one)) for one in (value, cell)]
    return empty[0] == empty[1] and (empty[0] or value == cell)


def cell_of(text: str, kind: str) -> object:
    """The value that a cell of a CSV file stands for."""
    if text == "":
        return None
    if kind.startswith("list<"):
        return json.loads(text)
    readers = {"float64": float, "int64": int, "int32": int, "bool": {"True": True, "False": False}.get}
    return readers.get(kind, str)(text)


def read_back(path: Path, form: str, name: str) -> list[dict[str, object]]:
    """The rows of an exported table, by a reader that is not ours."""
    if form == "parquet":
        return pq.read_table(path).to_pylist()
    if form == "json":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kinds = {column.name: column.type for column in TABLES[name].columns}
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: cell_of(text, kinds[key]) for key, text in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("form", ENDINGS)
def test_every_value_of_every_table_comes_back(sampled: Trace, tmp_path: Path, form: str) -> None:
    folder, said = export(sampled, form, tmp_path / "out")
    for name, table in TABLES.items():
        rows = read_back(folder / f"{name}.{ENDINGS[form][0]}", form, name)
        expected = sampled.arrow(name).to_pylist()
        assert len(rows) == len(expected) == 7 and f"{name} (7 rows)" in said
        for row, values in zip(rows, expected, strict=True):
            assert list(row) == list(table.names)
            wrong = [key for key in row if not same(values[key], row[key])]
            assert wrong == [], {key: (values[key], row[key]) for key in wrong}
    assert {path.name for path in folder.iterdir()} == {f"{name}.{ENDINGS[form][0]}" for name in TABLES} | {MARK}


def test_a_long_table_is_written_in_parts_without_a_seam(
    simulated: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = export(simulated, "csv", tmp_path / "whole")
    monkeypatch.setattr("dyn_probe.report.export.table_files.CHUNK", 7)
    parts, _ = export(simulated, "csv", tmp_path / "parts")
    assert (whole / "pairs.csv").read_bytes() == (parts / "pairs.csv").read_bytes()


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1"])
def test_no_cell_is_a_formula(tmp_path: Path, text: str) -> None:
    about = {"pair_id": "p", "prompt": text, "chosen": f" {text}", "rejected": "1-1", "source": "s"}
    trace = load_trace(write_tables(tmp_path / "run", {"examples": pd.DataFrame([about])}, manifest(OPTIONS)))
    folder, _ = export(trace, "csv", tmp_path / "out")
    with (folder / "examples.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["prompt"] == f"'{text}" and row["chosen"] == f" {text}" and row["rejected"] == "1-1"
    assert neutral(-1.5) == -1.5 and neutral(None) is None


def test_negative_numbers_stay_numbers(simulated: Trace, tmp_path: Path) -> None:
    folder, _ = export(simulated, "csv", tmp_path / "out")
    read = pd.read_csv(folder / "pairs.csv")
    assert read["logp_chosen"].to_numpy() == pytest.approx(simulated.pairs["logp_chosen"].to_numpy(), rel=0)


def test_a_run_without_texts_exports_none(tmp_path: Path) -> None:
    tables = simulate(OPTIONS)
    trace = load_trace(write_tables(tmp_path / "run", {"pairs": tables["pairs"]}, manifest(OPTIONS)))
    folder, said = export(trace, "json", tmp_path / "out")
    assert said.startswith("pairs (") and [path.name for path in folder.glob("*.jsonl")] == ["pairs.jsonl"]


def test_curves_are_medians_shares_and_means_of_each_step(simulated: Trace) -> None:
    found = {one.name: pd.Series(one.values, one.steps) for one in all_series(simulated)}
    pairs, pushes = simulated.pairs, simulated.pushes
    by_step = pairs.groupby("step")
    up, down = pairs.realised_delta_chosen, pairs.realised_delta_rejected
    chosen = pushes[pushes.side == "chosen"].groupby("step")
    sums = chosen[["all_chosen", "all_rejected"]].sum()
    mass = simulated.mass[simulated.mass.kind == simulated.mass.kind.iloc[0]]
    expected = {
        "pairs/logp_rejected": (pairs.logp_rejected / pairs.len_rejected).groupby(pairs.step).median(),
        "pairs/cosine": by_step["grad_cosine"].median(),
        "pairs/accuracy": (pairs.logp_chosen - pairs.ref_logp_chosen > pairs.logp_rejected - pairs.ref_logp_rejected)
        .groupby(pairs.step)
        .mean(),
        "cases_realised/case_2": ((up < 0) & (down < 0)).groupby(pairs.step).mean(),
        "pushes_chosen/own_rejected": chosen["own_rejected"].mean(),
        "pushes_chosen/balance": -sums.all_rejected / sums.all_chosen - 1,
        f"mass/{mass.kind.iloc[0]}": mass.groupby("step")["logp_token"].mean(),
        "steps/grad_norm_clipped": simulated.steps.groupby("step")["grad_norm_clipped"].mean(),
    }
    for name, values in expected.items():
        assert list(found[name].index) == list(values.index), name
        assert found[name].to_numpy() == pytest.approx(values.to_numpy(dtype=float), rel=1e-12), name
    assert "steps/eval_margin" not in found and "steps/rank" not in found


def test_tensorboard_reads_the_curves_back(simulated: Trace, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, said = export(simulated, "tensorboard", tmp_path / "out")
    read = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    series = all_series(simulated)
    assert set(read.Tags()["tensors"]) == {one.name for one in series} and said.startswith(f"{len(series)} curves")
    for one in series:
        events = read.Tensors(one.name)
        values = [event.tensor_proto.float_val[0] for event in events]
        assert [event.step for event in events] == list(one.steps)
        assert values == pytest.approx(np.float32(one.values), rel=1e-6, nan_ok=True), one.name


def test_wandb_writes_offline_and_only_into_the_folder(
    simulated: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home))
    folder, _ = export(simulated, "wandb", tmp_path / "out")
    (written,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert written.stat().st_size > 10_000 and list(home.iterdir()) == []
    export(simulated, "wandb", folder, force=True)
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1


def test_a_package_that_is_not_there_is_named_before_anything_is_written(
    simulated: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboards, "find_spec", lambda name: None)
    for form in ("tensorboard", "wandb"):
        with pytest.raises(BadInput, match=rf'pip install "dyn-probe\[{form}\]"'):
            export(simulated, form, tmp_path / form)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_and_with_force_only_the_older_export_goes(simulated: Trace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(simulated, "csv", out)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="--force"):
        export(simulated, "json", out)
    export(simulated, "json", out, force=True)
    assert not list(out.glob("*.csv")) and (out / "pairs.jsonl").is_file() and (out / "mine.txt").read_text() == "mine"


def test_nothing_is_written_outside_of_the_folder(simulated: Trace, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (elsewhere / "victim").write_text("kept")
    listed = {"written_by": "dyn-probe export", "files": ["../elsewhere/victim", str(elsewhere / "victim")]}
    (out / MARK).write_text(json.dumps(listed))
    export(simulated, "csv", out, force=True)
    assert (elsewhere / "victim").read_text() == "kept"
    (out / "wandb").symlink_to(elsewhere)
    with pytest.raises(BadInput, match="links to other folders"):
        export(simulated, "csv", out, force=True)


def test_what_cannot_be_exported_is_refused(simulated: Trace, tmp_path: Path) -> None:
    empty = load_trace(write_tables(tmp_path / "empty", {}, manifest(OPTIONS), "recording"))
    file = tmp_path / "file"
    file.write_text("")
    refused = [
        (simulated, "xls", None, "choose one of: csv, json"),
        (simulated, None, None, "--to with one of: csv, json, parquet, tensorboard, wandb"),
        (simulated, "csv", file, "is a file"),
        (simulated, "csv", simulated.path, "never writes among its tables"),
        (empty, "csv", tmp_path / "out", "nothing to export"),
    ]
    for trace, form, out, said in refused:
        with pytest.raises(BadInput, match=said):
            export(trace, form, out, force=True)
    assert not (tmp_path / "out").exists()


def test_other_files_under_the_names_of_an_export_are_never_overwritten(simulated: Trace, tmp_path: Path) -> None:
    for name, link in (("pairs.csv", False), (MARK, False), ("steps.csv", True)):
        out = tmp_path / f"out-{name}-{link}"
        out.mkdir()
        mine = tmp_path / "victim" if link else out / name
        mine.write_text("mine")
        if link:
            (out / name).symlink_to(mine)
        with pytest.raises(BadInput, match=rf"files that no export wrote.*\({name}\)"):
            export(simulated, "csv", out, force=True)
        assert mine.read_text() == "mine" and [path.name for path in out.iterdir()] == [name]


def test_the_list_of_an_export_has_all_of_its_files(
    simulated: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a second one, and after one that failed, so that the next may replace them."""
    out = tmp_path / "out"
    for _ in range(2):
        export(simulated, "csv", out, force=True)
        listed = json.loads((out / MARK).read_text())["files"]
        assert set(listed) == {path.name for path in out.iterdir()} - {MARK}

    def fails(table: object, path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(WriteFailed):
        patch.setitem(ENDINGS, "csv", ("csv", fails))
        export(simulated, "csv", out, force=True)
    assert json.loads((out / MARK).read_text())["files"] == ["pairs.csv"]
    export(simulated, "csv", out, force=True)
    assert len(pd.read_csv(out / "pairs.csv")) == len(simulated.pairs)


def test_a_run_without_pushes_on_chosen_has_its_other_curves(tmp_path: Path) -> None:
    tables = simulate(OPTIONS)
    tables["pushes"] = tables["pushes"].query("side == 'rejected'")
    some = {one.name for one in all_series(load_trace(write_tables(tmp_path / "some", tables, manifest(OPTIONS))))}
    del tables["pushes"]
    trace = load_trace(write_tables(tmp_path / "run", tables, manifest(OPTIONS)))
    none = {one.name for one in all_series(trace)}
    assert "pairs/logp_chosen" in none and not any(name.startswith("pushes_") for name in none)
    assert {name.split("/")[0] for name in some - none} == {"pushes_rejected"}
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    _, said = export(trace, "tensorboard", tmp_path / "out")
    assert said.startswith(f"{len(none)} curves")
