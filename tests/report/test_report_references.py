"""Reference traces: named in place of a folder, compared with one's own run, small, and without the machine's paths."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from dyn_probe_cli.app import app
from tiny_runs import run
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import pack_reference

from dyn_probe import load_trace
from dyn_probe.errors import BadInput, TraceError
from dyn_probe.report.build import build_report
from dyn_probe.trace import references
from dyn_probe.trace.references import FOLDER, reference_names, trace_folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One's own run."""
    folder = tmp_path_factory.mktemp("own") / "mine"
    run(folder, mass_every=2, probe_size=2, tokens_every=2, eval_fraction=0.25)
    return folder


def test_the_package_has_small_sound_references() -> None:
    assert reference_names()
    for name in reference_names():
        folder = FOLDER / f"reference-{name}"
        assert sum(file.stat().st_size for file in folder.iterdir()) < pack_reference.LARGEST
        text = (folder / "run.json").read_text(encoding="utf-8")
        assert not any(place in text for place in ("/tmp", "/work", "/root", "/home"))
        trace = load_trace(f"reference:{name}")
        assert trace.closed and len(trace.pairs) and len(trace.final) and trace.about.certificate is not None


def test_a_reference_is_compared_with_ones_own_run(own: Path, tmp_path: Path) -> None:
    name = reference_names()[0]
    result = CliRunner().invoke(app, ["report", str(own), f"reference:{name}", "--out", str(tmp_path / "page")])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert f"reference-{name}" in text and "mine" in text
    said = CliRunner().invoke(app, ["summary", str(own), f"reference:{name}"])
    assert said.exit_code == 0 and f"reference-{name}" in said.output


@pytest.mark.parametrize("name", reference_names())
def test_no_place_of_this_machine_and_no_further_training_is_named(name: str) -> None:
    said = CliRunner().invoke(app, ["summary", f"reference:{name}"])
    assert said.exit_code == 0 and f"reference-{name}" in said.output
    assert str(FOLDER) not in said.output and "dyn-probe try" not in said.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("report {}", "no report is written beside it; name a folder with --out"),
        ("export {} --to csv", "no export is written beside it; name a folder with --out"),
        ("heatmap {}", "no heat map is written beside it; name a file with --out"),
        ("try {}", "no tried run is written beside it; name a folder with --out"),
        ("watch {}", "write: dyn-probe summary "),
    ],
)
@pytest.mark.parametrize("place", ["reference:built-in", str(FOLDER / "reference-built-in")], ids=["name", "folder"])
def test_nothing_is_written_beside_a_reference(place: str, words: str, said: str) -> None:
    before = sorted(FOLDER.rglob("*"))
    result = CliRunner().invoke(app, words.format(place).split())
    assert isinstance(result.exception, BadInput) and said in str(result.exception), result.output
    assert sorted(FOLDER.rglob("*")) == before


def test_a_reference_is_exported_and_drawn_where_out_says(tmp_path: Path) -> None:
    for words in ("export {} --to csv --out {}/csv", "heatmap {} --out {}/map.png"):
        result = CliRunner().invoke(app, words.format("reference:built-in", tmp_path).split())
        assert result.exit_code == 0, result.output
    assert (tmp_path / "csv/pairs.csv").stat().st_size and (tmp_path / "map.png").stat().st_size


def test_an_unknown_reference_lists_those_there_are(own: Path) -> None:
    with pytest.raises(TraceError, match="unknown reference trace 'nope'; choose one of: reference:"):
        load_trace("reference:nope")
    with pytest.raises(BadInput, match="no report is written beside it; name a folder with --out"):
        build_report([f"reference:{reference_names()[0]}"])
    assert trace_folder(own) == own


def test_packing_leaves_texts_and_folders_behind(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pack_reference.pack(own, "x", text=False, folder=tmp_path)
    monkeypatch.setattr(references, "FOLDER", tmp_path)
    trace, files = load_trace("reference:x"), {one.name for one in folder.iterdir()}
    assert len(trace.pairs) == len(load_trace(own).pairs) and not len(trace.examples) and not len(trace.tokens)
    assert {"pairs.parquet", "run.json"} <= files and not files & {*pack_reference.TEXTS, "probe_set.jsonl"}
    assert str(own) not in (folder / "run.json").read_text() and trace.about.config["out"] == "runs/x"
    monkeypatch.setattr(pack_reference, "LARGEST", 10)
    with pytest.raises(ValueError, match="at most 10 are shipped"):
        pack_reference.pack(own, "y", folder=tmp_path)


def test_reading_a_reference_needs_no_torch() -> None:
    name = reference_names()[0]
    code = f"import sys, dyn_probe as d; d.load_trace('reference:{name}').pairs; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
