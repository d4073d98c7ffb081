"""`scan --rank … --cleaned`: the right pairs go, every kept line stays byte for byte, and wrong asks are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_frames import Options
from report_runs import manifest, write_tables

from dyn_probe.errors import BadInput
from dyn_probe.report.export.cleaned import Cleaning, parse_share
from dyn_probe.trace.reader import Trace, load_trace

COUNT = 20


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file whose lines have spacing, order and characters of their own; line 3 is no pair, the last has no end."""
    lines = [f'{{"chosen":  "ä{i}", "id": {i} ,"prompt": "p"}}'.encode() for i in range(1, COUNT + 2)]
    lines[2] = b"not json"
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


def scanned(folder: Path, data: Path, values: np.ndarray) -> Trace:
    """A scan of these pairs at two checkpoints: similarity, cosine and minus the fall are ``values``."""
    numbers = [line for line in range(1, COUNT + 2) if line != 3]
    ids = [f"pair{line}" for line in numbers]
    same = {"pair_id": ids, "rank": 0, "ches_normalised": values, "grad_cosine": np.tanh(values), "len_chosen": 2}
    first = pd.DataFrame({"step": 0, **same, "logp_chosen": -9.0})
    last = pd.DataFrame({"step": 5, **same, "logp_chosen": -9.0 - values})
    texts = {"pair_id": ids, "prompt": "p", "chosen": "c", "rejected": "r", "source": [f"{data}:{n}" for n in numbers]}
    tables = {"pairs": pd.concat([first, last]), "examples": pd.DataFrame(texts)}
    return load_trace(write_tables(folder / "scan", tables, manifest(Options())))


def cleaning(data: Path, out: Path, rank: str = "ches", drop: str = "", keep: str = "") -> Cleaning:
    found = Cleaning.of(rank, drop, keep, str(out), str(data))
    assert found is not None
    return found


@pytest.mark.parametrize("rank", ["ches", "cosine", "fall"])
@pytest.mark.parametrize(("drop", "keep", "gone"), [("10%", "", 2), ("0.25", "", 5), ("", "30%", 14)])
def test_the_pairs_ranked_first_go_and_the_others_stay_as_they_are(
    tmp_path: Path, data: Path, rank: str, drop: str, keep: str, gone: int
) -> None:
    values = np.random.default_rng(4).permutation(np.linspace(-2, 2, COUNT))
    out = tmp_path / "cleaned.jsonl"
    said = cleaning(data, out, rank, drop, keep).write(scanned(tmp_path, data, values))
    lines = [line for number, line in enumerate(data.read_bytes().split(b"\n"), start=1) if number != 3]
    limit = np.sort(values)[COUNT - gone - 1]
    expected = [line + b"\n" for line, value in zip(lines, values, strict=True) if value <= limit]
    assert out.read_bytes() == b"".join(expected) and len(expected) == COUNT - gone
    assert f"{COUNT - gone} pairs kept, {gone} dropped" in said


def test_pairs_without_a_number_or_a_line_stop_it_and_nothing_is_written(tmp_path: Path, data: Path) -> None:
    values, out = np.linspace(0, 1, COUNT), tmp_path / "cleaned.jsonl"
    one = cleaning(data, out, drop="5%")
    with pytest.raises(BadInput, match="1 of 20 pairs have no number"):
        one.write(scanned(tmp_path / "a", data, np.where(values == 1, np.nan, values)))
    with pytest.raises(BadInput, match="not a line of"):
        one.write(scanned(tmp_path / "b", tmp_path / "other.jsonl", values))
    trace = scanned(tmp_path / "c", data, values)
    data.write_bytes(b"\n".join(data.read_bytes().split(b"\n")[:9]))
    with pytest.raises(BadInput, match="scan it again"):
        one.write(trace)
    assert not out.exists()


@pytest.mark.parametrize(
    ("rank", "drop", "keep", "said"),
    [
        ("ches", "", "", "needs a ranking, a share and a name"),
        ("ches", "5%", "5%", "or --keep 5% for --drop"),
        ("", "5%", "", "needs a ranking"),
        ("chse", "5%", "", "did you mean ches"),
        ("ches", "5", "", "--drop takes a share"),
        ("ches", "", "all", "--keep takes a share"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, data: Path, rank: str, drop: str, keep: str, said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        cleaning(data, tmp_path / "cleaned.jsonl", rank, drop, keep)


def test_files_that_cannot_be_used_are_refused_before_anything_is_measured(tmp_path: Path, data: Path) -> None:
    for source in ("sentiment:long-suffix", str(tmp_path / "none.jsonl"), str(tmp_path)):
        with pytest.raises(BadInput, match="JSON lines"):
            Cleaning.of("ches", "5%", "", str(tmp_path / "out.jsonl"), source)
    with pytest.raises(BadInput, match="exists already"):
        Cleaning.of("ches", "5%", "", str(data), str(data), force=True)
    assert Cleaning.of("", "", "", "", str(data)) is None and parse_share("drop", "12.5%") == 0.125


def test_a_share_that_keeps_no_pair_is_refused(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "cleaned.jsonl"
    trace = scanned(tmp_path, data, np.linspace(0, 1, COUNT))
    with pytest.raises(BadInput, match=r"no pair would be kept: .* of 20 pairs.*larger --keep"):
        cleaning(data, out, keep="2%").write(trace)
    assert not out.exists()


def test_a_folder_that_is_missing_is_refused_before_anything_is_measured(tmp_path: Path, data: Path) -> None:
    with pytest.raises(BadInput, match="in a folder that does not exist"):
        cleaning(data, tmp_path / "none" / "cleaned.jsonl", drop="5%")
