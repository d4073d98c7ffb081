"""A disk that fills, or a file-size limit, in the middle of a run: one sentence, and the training goes on."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import torch.nn.functional as F
from families import make_batch, make_model
from tiny_runs import TINY, run

from dyn_probe import Probe, load_trace, sequence_logps
from dyn_probe.errors import BadInput, WriteFailed
from dyn_probe.trace import streams
from dyn_probe.train import loop
from dyn_probe.train.grid import outcome

LIMITED = """
import json, resource, sys
from dyn_probe.train import loop
limit, real = int(sys.argv.pop(1)), loop.train_step

def train_step(run, step):
    if step == 2:
        run.probe.flush()
        run.writer.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    done = real(run, step)
    print("step", step)
    return done

loop.train_step = train_step
from dyn_probe_cli.app import main
main()
"""
STEPS = 16
OPTIONS = [
    "--max-pairs", "24", "--pretrain-steps", "0", "--sft-steps", "0", "--batch-size", "4", "--steps", str(STEPS),
    "--device", "cpu", "--eval-fraction", "0.2", "--eval-every", "5", "--mass-every", "0",
]  # fmt: skip


def limited(limit: int, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A run whose files may not grow beyond ``limit`` bytes from its third step on."""
    return forked.run("-c", LIMITED, str(limit), "record", "--out", str(out), *OPTIONS, *options)


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Our sentences on standard error."""
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("dyn-probe:")]


def test_a_file_size_limit_costs_the_rows_beyond_it_and_no_step(tmp_path: Path) -> None:
    done = limited(12_000, out := tmp_path / "run")
    assert done.returncode == 0 and f"step {STEPS - 1}" in done.stdout
    first, last = complaints(done)
    assert first.startswith(f"dyn-probe: warning: cannot write {out}/streams/") and "File too large" in first
    assert "the training continues" in first and "lacks rows that could not be written" in last
    trace = load_trace(out)
    lost = trace.manifest["lost"]
    assert trace.closed and lost["from_step"] >= 2 and "File too large" in lost["reason"]
    recorded = {"pairs": 4 * STEPS, "steps": STEPS, "layers": 4 * STEPS * len(set(trace.layers["layer"]))}
    for table, rows in recorded.items():
        assert len(trace.table(table)) + lost["rows"].get(table, 0) == rows
        assert set(trace.table(table)["step"]) >= {0, 1}
    assert "held_out" in trace.manifest


def test_strict_stops_at_the_first_row_that_cannot_be_written(tmp_path: Path) -> None:
    done = limited(12_000, out := tmp_path / "run", "--strict")
    assert done.returncode == 1 and f"step {STEPS - 1}" not in done.stdout
    [said] = complaints(done)
    assert said.startswith(f"dyn-probe: cannot write {out}/streams/") and said.endswith("File too large")
    trace = load_trace(out)
    assert trace.manifest["status"] == "stopped" and "File too large" in trace.manifest["reason"]
    assert set(trace.pairs["step"]) >= {0, 1} and trace.manifest["lost"]["rows"]


def test_where_nothing_can_be_written_any_more_the_training_still_ends(tmp_path: Path) -> None:
    done = limited(10, out := tmp_path / "run", "--checkpoint-every", "10", "--mass-every", "10")
    assert done.returncode == 0 and f"step {STEPS - 1}" in done.stdout
    assert sum("the training continues" in said for said in complaints(done)) == 1
    trace = load_trace(out)
    assert not trace.closed and set(trace.pairs["step"]) == {0, 1}


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_costs_no_row(tmp_path: Path) -> None:
    done = limited(400_000, out := tmp_path / "run", "--checkpoint-every", "10")
    assert done.returncode == 0
    [said] = complaints(done)
    assert f"cannot write {out}/checkpoints/step-10.pt: File too large; the training continues" in said
    trace = load_trace(out)
    assert trace.closed and trace.manifest["lost"] is None and len(trace.pairs) == 4 * STEPS
    assert list((out / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_a_small_disk_fills_up(tmp_path: Path) -> None:
    out = tmp_path / "disk" / "run"
    out.parent.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "none", str(out.parent)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs rights that this process lacks")
    try:
        done = forked.run("-m", "dyn_probe_cli", "record", "--out", str(out), *OPTIONS)
        assert done.returncode == 0
        assert "No space left on device; the training continues" in complaints(done)[0] and len(complaints(done)) == 2
        assert set(load_trace(out).pairs["step"]) >= {0, 1}
    finally:
        subprocess.run(["umount", str(out.parent)], check=True)


class FullLog:
    """A log file on a full disk, in the place of standard error."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def isatty(self) -> bool:
        return False


def test_a_log_on_a_full_disk_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", FullLog())
    loop.record(loop.RunConfig(**TINY, out=str(tmp_path / "run")), progress=True)
    assert load_trace(tmp_path / "run").manifest["status"] == "closed"


def train(probe: Probe | None, steps: int = 6) -> list[torch.Tensor]:
    """A user's own loop; returns its weights."""
    torch.manual_seed(0)
    model = make_model("llama") if probe is None else probe.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        batch = make_batch(seed=step)
        optimizer.zero_grad()
        if probe is None:
            logps = sequence_logps(model, batch)
            (-F.logsigmoid(0.1 * (logps[:3] - logps[3:]))).mean().backward()
        else:
            with probe.step(step, batch.ids):
                logps = sequence_logps(model, batch)
                probe.pairs(logps)
                (-F.logsigmoid(0.1 * (logps[:3] - logps[3:]))).mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No stream can be written."""

    def write(file: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(streams, "write", write)
    yield


@pytest.mark.usefixtures("full_disk", "double_everywhere")
def test_a_users_loop_is_not_disturbed_by_a_full_disk(tmp_path: Path) -> None:
    plain = train(None)
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        with Probe(make_model("llama"), tmp_path / "run") as probe:
            weights = train(probe)
    assert all(torch.equal(a, b) for a, b in zip(plain, weights, strict=True))
    said = [str(one.message) for one in caught if one.category is RuntimeWarning]
    assert len(said) == 2 and "the training continues" in said[0] and "lacks rows" in said[1]
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["status"] == "closed" and about["lost"]["rows"]["pairs"] == 3 * 6 and about["lost"]["from_step"] == 0
    assert load_trace(tmp_path / "run").pairs.empty


@pytest.mark.usefixtures("full_disk", "double_everywhere")
def test_a_strict_probe_stops_the_loop(tmp_path: Path) -> None:
    with pytest.raises(WriteFailed, match="No space left"), Probe(
        make_model("llama"), tmp_path / "run", strict=True
    ) as probe:  # fmt: skip
        train(probe)
        probe.close()
    assert load_trace(tmp_path / "run").manifest["status"] == "stopped"


def test_a_run_without_its_end_in_run_json_is_refused_by_the_grid(tmp_path: Path) -> None:
    trace = run(tmp_path / "run", eval_fraction=0.5)
    assert outcome(trace, "dpo", 0).method == "dpo"
    del trace.manifest["held_out"]
    with pytest.raises(BadInput, match="does not record what happened to the held-out pairs"):
        outcome(trace, "dpo", 0)


def test_a_trace_that_cannot_be_begun_stops_before_any_training(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(loop, "train_step", lambda *_: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match=str(tmp_path / "file")):
        loop.record(loop.RunConfig(**TINY, out=str(tmp_path / "file" / "run")), progress=False)
