"""``dyn-probe heatmap``: from a run, from a model; what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dyn_probe_cli.app import app
from report_frames import Options
from report_runs import new_trace
from token_samples import label_heat
from token_traces import trace_of
from typer.testing import CliRunner

from dyn_probe import BadInput, token_gram
from dyn_probe.data.built_in import built_in_model, built_in_tokenizer
from dyn_probe.data.collating import collate
from dyn_probe.data.encoding import EncodedPair, EncodedRow, encode_pairs
from dyn_probe.data.reading import load_pairs
from dyn_probe.data.records import PreferencePair, Skipped
from dyn_probe.token_analysis import named_pair
from dyn_probe.train.heat import find_pair, pair_heat

DATA = "sentiment:single-token"


def call(*arguments: object):
    return CliRunner().invoke(app, ["heatmap", *map(str, arguments)])


def refused(*arguments: object) -> str:
    result = call(*arguments)
    assert isinstance(result.exception, BadInput), result.output
    return str(result.exception)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("r") / "run"
    return trace_of(folder, [label_heat(s, p) for s in (0, 5) for p in ("aa11", "bb22")]).path


def test_a_recorded_run(run: Path, tmp_path: Path):
    result = call(run, "--pair", "bb")
    assert result.exit_code == 0, result.output
    assert (run / "heatmap-bb22.png").read_bytes()[:4] == b"\x89PNG"
    assert "significant: Positive / Negative" in result.output and f"Next: dyn-probe report {run}" in result.output
    assert "exists; write --force" in refused(run, "--pair", "bb22")
    assert call(run, "--pair", "1", "--force").exit_code == 0
    assert call(run, "--out", tmp_path / "new" / "a.svg").exit_code == 0 and (tmp_path / "new" / "a.svg").exists()


def test_a_model(tmp_path: Path):
    out = tmp_path / "map.png"
    result = call("built-in", "--data", DATA, "--pair", 3, "--params", "last-block", "--out", out)
    assert result.exit_code == 0, result.output
    assert out.exists() and "Heat map:" in result.output


def test_the_numbers_are_token_grams():
    pairs = encode_pairs(load_pairs(DATA)[0], built_in_tokenizer(), 512)[0]
    heat = pair_heat("built-in", DATA, pairs[5].pair_id, "head")
    gram = token_gram(built_in_model(), collate([pairs[5]]), params="head")
    np.testing.assert_allclose(heat.inner, gram.chosen_rejected.numpy(), rtol=1e-6)
    np.testing.assert_allclose(heat.cosine, gram.cosine.numpy(), rtol=1e-6)
    assert heat.tokens_chosen[-1] == "</s>" and heat.pair_id == pairs[5].pair_id
    assert find_pair(pairs, "5") is pairs[5] and find_pair(pairs, pairs[7].pair_id[:12]) is pairs[7]


def test_refusals(run: Path, tmp_path: Path):
    bare = new_trace(tmp_path / "bare", Options(steps=2, batch=1, pairs=1)).path
    assert "--tokens-every" in refused(bare)
    assert "recorded: aa11, bb22" in refused(run, "--pair", "nobody")
    assert all("are for models" in refused(run, *given) for given in (("--data", DATA), ("--columns", "user=a")))
    assert "--data FILE" in refused("built-in")
    assert "ending in .png" in refused(run, "--out", tmp_path / "a.txt")
    assert "matches no pairs; write a number from 0" in refused("built-in", "--data", DATA, "--pair", "zzz")
    assert "no trained parameter matches" in refused("built-in", "--data", DATA, "--params", "nothing_like_it")
    assert not list(tmp_path.glob("*.txt"))


def test_a_number_comes_before_an_ids_beginning():
    import pandas as pd

    tokens = pd.DataFrame({"pair_id": ["ab1", "2f0", "c3", "1d4"]})
    assert named_pair(tokens) == "ab1" and named_pair(tokens, "c") == "c3" and named_pair(tokens, "2f") == "2f0"
    assert named_pair(tokens, "2") == "c3" and named_pair(tokens, "1") == "2f0" and named_pair(tokens, "c3") == "c3"
    more = pd.DataFrame({"pair_id": ["ab1", "ab2", "74e"]})
    assert named_pair(more, "74") == "74e"
    with pytest.raises(BadInput, match="'ab' matches 2 recorded pairs; write a number from 0 to 2 or an id"):
        named_pair(more, "ab")


def encoded(name: str, source: str) -> EncodedPair:
    row = EncodedRow((1, 2), 1)
    return EncodedPair(row, row, name, PreferencePair("x", "a", "b", source))


def test_numbers_count_rows_of_the_data_and_come_before_ids():
    pairs = [encoded("30aa", "f.jsonl:1"), encoded("0bbb", "f.jsonl:3"), encoded("4ccc", "f.jsonl:12")]
    skipped = [Skipped("f.jsonl:2", "no chosen")]
    assert find_pair(pairs, "0", skipped) is pairs[0] and find_pair(pairs, "2", skipped) is pairs[1]
    assert find_pair(pairs, "3", skipped) is pairs[2] and find_pair(pairs, "30", skipped) is pairs[0]
    assert find_pair(pairs, "4", skipped) is pairs[2] and find_pair(pairs, "0b", skipped) is pairs[1]
    with pytest.raises(BadInput, match=r"--pair 1 is a row that cannot be used \(f\.jsonl:2: no chosen\)"):
        find_pair(pairs, "1", skipped)
    with pytest.raises(BadInput, match="write a number from 0 to 3"):
        find_pair(pairs, "99", skipped)


def test_the_chosen_row_and_the_skipped_ones_are_said(tmp_path: Path):
    good = {"prompt": "Say: ", "chosen": "yes", "rejected": "no"}
    rows = [good, {**good, "rejected": "yes"}, {**good, "prompt": "Tell: "}]
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = call("built-in", "--data", data, "--pair", 2, "--params", "last-block", "--out", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    assert f"({data}:3)" in result.output and f"1 row of the data is left out: {data}:2" in result.output
    assert "cannot be used" in refused("built-in", "--data", data, "--pair", 1)


def test_one_step_at_full_size(run: Path, tmp_path: Path):
    result = call(run, "--pair", "aa", "--step", 5)
    assert result.exit_code == 0, result.output
    assert (run / "heatmap-aa11-step-5.png").exists()
    assert "recorded steps: 0, 5" in refused(run, "--step", 3)
    assert "--step is for recorded runs" in refused("built-in", "--data", DATA, "--step", 0)


def test_a_run_is_drawn_without_torch(run: Path, tmp_path: Path):
    code = (
        "import sys; from dyn_probe_cli.heatmap import heatmap; from pathlib import Path;"
        f"heatmap({str(run)!r}, out=Path({str(tmp_path / 'b.png')!r}));"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
