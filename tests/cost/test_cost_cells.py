"""The benchmark's cells: every kind of step gives the twin's numbers, and a stopped run goes on where it was."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import pytest
import run
import torch
from cost import measured, peers
from cost.cells import DEFAULT, GOALS, Cell, Loops, Maps
from cost.counts import Calls, forget_peak, peak_mib
from cost.kinds import KINDS, Kind, recorded
from cost.loops import measure_loops
from cost.maps import measure_maps
from cost.measured import measure
from cost.page import kept_cells, loops_line, page, short_table
from cost.training import Training
from cost.twin import largest_error, true_numbers
from reference.gradients import grams, row_gradients

TINY = Cell("tiny", "all", 12, 2, "float32", ("recorded", "one pass"))
OWN = tuple(name for name in KINDS if name not in peers.PEERS and name != "plain")


@pytest.fixture(scope="module")
def everything() -> dict:
    """Every kind of our own on a tied model, and the one peer that needs no package."""
    return measure(Cell("tiny", "all", 12, 2, "float32", (*OWN, "torch.func vmap")), "cpu", 2, 0.0, checked=2)


def test_every_kind_gives_the_twin_s_numbers(everything):
    errors = {name: found["error"] for name, found in everything["kinds"].items() if name != "plain"}
    assert set(errors) == {*OWN, "torch.func vmap"}
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("trained", ["all", "lora"])
def test_the_twin_is_that_of_the_tests(trained):
    training = Training(Cell("tiny", trained, 12, 2, "float32"), "cpu")
    found, batch = true_numbers(training.model, training.batch, 2), training.batch
    rows = row_gradients(training.model.double(), batch.input_ids, batch.attention_mask, batch.response_mask)
    wanted = peers.from_gram(sum(grams(rows).values()))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)


def test_a_wrong_number_is_an_error():
    wanted = torch.tensor([[2.0], [3.0], [1.0]], dtype=torch.float64)
    assert largest_error(torch.tensor([[2.0], [3.3], [1.0]]), wanted) == pytest.approx(0.1)
    assert largest_error(torch.tensor([[2.0], [3.0], [7.0]]), wanted) == pytest.approx(1.0)
    assert largest_error(torch.tensor([[2.0], [3.0], [torch.nan]]), wanted) == 0.0


def test_a_kind_that_gives_wrong_numbers_is_seen(monkeypatch):
    def wrong(training):
        kind = recorded(training)
        return Kind(kind.step, lambda: 2 * kind.numbers())

    monkeypatch.setitem(KINDS, "recorded", (wrong, ""))
    assert measure(TINY, "cpu", 1, 0.0)["kinds"]["recorded"]["error"] > 0.5


def test_every_kind_is_checked_on_the_weights_of_the_twin(monkeypatch):
    """No kind's step may move them before the next kind is checked."""
    kept = {}
    monkeypatch.setattr(measured, "true_numbers", lambda model, batch, pairs: kept.update(
        {name: p.clone() for name, p in model.named_parameters()}) or torch.ones(3, pairs))  # fmt: skip
    one = measured.Measured(TINY, "cpu", 1)
    assert all(torch.equal(p, kept[name]) for name, p in one.training.model.named_parameters())
    one.kinds["plain"].step()
    assert not all(torch.equal(p, kept[name]) for name, p in one.training.model.named_parameters())


def test_ratios_are_to_the_plain_step_of_the_same_round():
    taken = [{"plain": (1.0, 100.0), "x": (2.0, 150.0)}, {"plain": (4.0, 100.0), "x": (4.0, 110.0)}]
    found = measured._summary("x", taken, {"aten": 7})
    assert (found["ratio"], found["least"], found["most"]) == (1.5, 1.0, 2.0)
    assert found["memory"] == pytest.approx(1.3) and found["aten"] == 7 and found["seconds"] == 3.0


def test_counts_and_peaks_are_kept(everything):
    plain, one = everything["kinds"]["plain"], everything["kinds"]["with full Gram"]
    assert one["aten"] > plain["aten"] > 100 and one["reads"] >= 1
    assert everything["kinds"]["default"]["steps"] == everything["kinds"]["default"]["recorded"] == 21


def test_the_high_water_mark_begins_anew():
    forget_peak("cpu")
    before = peak_mib("cpu")
    if before is None:
        pytest.skip("the kernel does not let a program reset its mark")
    held = mmap.mmap(-1, 64 * 2**20)  # pages of its own: an allocator may have as much lying about
    for at in range(0, len(held), mmap.PAGESIZE):
        held[at] = 1
    grown = peak_mib("cpu") - before
    held.close()
    forget_peak("cpu")
    assert 60 < grown < 80 and peak_mib("cpu") < before + 30


def test_the_counter_sees_reads():
    with Calls() as calls:
        values = torch.arange(4.0)
        bool(values.any())
        values[values > 1]
    assert calls.reads == 2


@pytest.mark.parametrize("name", [name for name in peers.PEERS if name != "torch.func vmap"])
def test_an_absent_peer_says_what_to_install(name, monkeypatch):
    package = peers.PEERS[name].package
    monkeypatch.setitem(__import__("sys").modules, package, None)
    found = measure(Cell("tiny", "all", 8, 2, "float32", (name,)), "cpu", 1, 0.0)["kinds"][name]
    assert found == {"why": f"not installed: pip install {package}"}


def test_a_peer_that_fails_says_why_and_ours_that_fails_is_no_row(monkeypatch):
    def broken(training):
        def fail():
            raise RuntimeError("no rule\nfor this")

        return fail, fail

    monkeypatch.setitem(KINDS, "TorchJD autogram", (lambda t: Kind(*broken(t)), ""))
    found = measure(Cell("tiny", "all", 8, 2, "float32", ("TorchJD autogram",)), "cpu", 1, 0.0)
    assert found["kinds"]["TorchJD autogram"] == {"why": "does not run: no rule for this"}
    monkeypatch.setitem(KINDS, "recorded", (lambda t: Kind(*broken(t)), ""))
    with pytest.raises(RuntimeError, match="no rule"):
        measure(TINY, "cpu", 1, 0.0)


def test_a_stopped_run_goes_on_with_what_is_left(tmp_path, monkeypatch, capsys):
    cells = (TINY, Cell("tiny", "all", 16, 2, "float32", ("recorded",)))
    monkeypatch.setitem(run.DEFAULT, "cpu", cells)
    out = tmp_path / "kept.jsonl"
    common = ["--out", str(out), "--threads", "1", "--rounds", "2"]
    run.main([*common, "--only", ":12:"])
    first = kept_cells(out)
    run.main(common)
    assert [one["cell"] for one in kept_cells(out)] == [cell.name for cell in cells]
    assert kept_cells(out)[0] == first[0]
    run.main([*common, "--minutes", "0", "--again"])
    assert len(out.read_text().splitlines()) == 2
    assert "the same command goes on with the other 2 cells" in capsys.readouterr().out


def test_other_cells_are_asked_for_by_options(capsys):
    options = run.options_of(["--shape", "tiny", "--length", "8", "16", "--lora", "--precision", "bfloat16"])
    assert [cell.name for cell in run.asked(options)] == ["tiny:lora:8:4:bfloat16", "tiny:lora:16:4:bfloat16"]
    with pytest.raises(SystemExit, match="belong to a --shape"):
        run.asked(run.options_of(["--lora"]))


def test_every_goal_belongs_to_a_default_cell():
    there = {(cell.name, kind) for cells in DEFAULT.values() for cell in cells for kind in getattr(cell, "kinds", ())}
    assert set(GOALS) <= there
    assert all(len({cell.name for cell in cells}) == len(cells) for cells in DEFAULT.values())


def test_the_page_says_what_was_reached_and_what_is_missing(everything):
    name = "gpt2-small:all:512:4:float32"
    kinds = {"plain": {"seconds": 2.0, "ratio": 1.0, "least": 1.0, "most": 1.0}}
    kinds["recorded"] = {"seconds": 2.5, "ratio": 1.26, "least": 1.2, "most": 1.3, "memory": 1.04, "error": 3e-7}
    kinds["Opacus ghost norms"] = {"why": "not installed: pip install opacus"}
    one = {"cell": name, "device": everything["device"], "rounds": 3, "kinds": kinds}
    written = page([one], "cpu", "## Measured earlier")
    assert "| recorded | 2.5 | 1.26 | 1.20 to 1.30 | ≤ 1.25: missed | 1.040 | 3e-07 |" in written
    assert "not installed: pip install opacus" in written and "norms only" in written
    assert f"`{name}`" not in written and "`gpt2-small:all:1024:4:float32`" in written
    assert written.endswith("## Measured earlier\n")
    kinds["recorded"]["ratio"] = 1.24
    assert "≤ 1.25: met" in page([one], "cpu", "x")
    assert "| gpt2-small, all weights, 512 tokens, 4 pairs, float32 | 2 | 1.24 (1.20–1.30) |" in short_table([one])


@pytest.mark.slow
def test_the_loop_and_trl_train_on_the_same_batches():
    found = measure_loops(Loops("tiny", 24, 2), "cpu", 1, 0.0)
    assert found["same_batches"] and all(kind["seconds"] > 0 for kind in found["kinds"].values())
    assert "of TRL's `DPOTrainer` on the same batches" in loops_line([found])


def test_a_token_map_is_that_of_a_backward_per_token():
    found = measure_maps(Maps("tiny", 4, 3), "cpu", 2, 0.0)
    assert found["difference"] < 1e-5 and set(found["kinds"]) == {"token_gram", "a backward per token"}


def test_lines_are_json(tmp_path: Path):
    out = tmp_path / "kept.jsonl"
    out.write_text("".join(json.dumps({"cell": "a", "n": n}) + "\n" for n in range(2)))
    assert kept_cells(out) == [{"cell": "a", "n": 1}] and kept_cells(tmp_path / "absent") == []
