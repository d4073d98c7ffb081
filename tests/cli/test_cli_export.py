"""``dyn-probe export``: what it prints and refuses, without heavy packages."""

from __future__ import annotations

from pathlib import Path

from report_frames import Options
from report_runs import write_run
from test_cli_without_torch import answers

from dyn_probe.report.export.writing import FORMS


def test_it_names_what_it_wrote_and_what_comes_next(tmp_path: Path) -> None:
    run, out = str(write_run(tmp_path / "run", Options(steps=6, pairs=12))), str(tmp_path / "out")
    csv, again, board, none, wrong, told = answers(
        ["export", run, "--to", "csv", "--out", out],
        ["export", run, "--to", "csv", "--out", out],
        ["export", run, "--to", "tensorboard"],
        ["export", run],
        ["export", run, "--to", "xls"],
        ["export", "--help"],
    )
    assert csv["code"] == 0 and csv["out"].startswith(f"Export: {out}: pairs (48 rows)")
    assert csv["out"].endswith(f"Next: dyn-probe report {run}\n") and (tmp_path / "out" / "pairs.csv").is_file()
    assert again["code"] == 2 and "--force" in again["err"]
    assert board["code"] == 0 and board["out"].endswith(f"Next: tensorboard --logdir {run}/export-tensorboard\n")
    assert none["code"] == wrong["code"] == 2
    assert all(form in said for form in FORMS for said in (none["err"], wrong["err"], told["out"]))
