"""A long recording: memory, open files and threads stay as they are, and the trace grows evenly."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

import torch
from torch import nn

from dyn_probe import PairBatch, Probe, load_trace, sequence_logps
from trust.tally import Tally

VOCAB, WIDTH, PAIRS = 64, 16, 2
GROWTH = 0.02
"""By which share of itself memory may grow from the first tenth of the steps to the last."""


class Tiny(nn.Module):
    """Embedding, two layers, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits."""
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.head(x)


def batch_of(step: int) -> PairBatch:
    """Two pairs of eight tokens."""
    generator = torch.Generator().manual_seed(step % 97)
    ids = torch.randint(0, VOCAB, (2 * PAIRS, 8), generator=generator)
    response = torch.ones_like(ids)
    response[:, :3] = 0
    return PairBatch(ids, torch.ones_like(ids), response)


def memory() -> int:
    """Resident bytes of this process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def handles() -> tuple[int, int]:
    """(open files, threads)."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def soak(folder: Path, steps: int) -> Tally:
    """Record that many steps."""
    torch.manual_seed(0)
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tally, seen = Tally("soak", tried=steps, zero={"handles left open": 0, "memory grew": 0, "rows lost": 0}), []
    begun = time.monotonic()
    with Probe(model, folder / "run", optimizer=optimizer, gram_every=10, metric_every=10, keep_rows=False) as probe:
        for step in range(steps):
            batch = batch_of(step)
            optimizer.zero_grad()
            with probe.step(step, batch.ids):
                logps = sequence_logps(model, batch)
                probe.pairs(logps)
                (-torch.nn.functional.logsigmoid(0.1 * (logps[:PAIRS] - logps[PAIRS:]))).mean().backward()
            optimizer.step()
            if step % max(1, steps // 20) == 0 and step >= steps // 10:
                probe.flush()  # every table has its stream by now
                seen.append((memory(), *handles()))
    first, last = seen[len(seen) // 2], seen[-1]  # streams are opened when their first rows are written
    grown = last[0] / first[0] - 1
    if last[1:] != first[1:]:
        tally.fail("handles left open", f"(files, threads) were {first[1:]}, are {last[1:]}")
    if grown > GROWTH:
        tally.fail("memory grew", f"from {first[0] / 2**20:.0f} to {last[0] / 2**20:.0f} MiB")
    if missing := PAIRS * steps - len(load_trace(folder / "run").pairs):
        tally.fail("rows lost", "", missing)
    size = sum(path.stat().st_size for path in (folder / "run").rglob("*") if path.is_file())
    tally.facts = {
        "memory growth": f"{grown:+.1%}",
        "open files, threads": f"{last[1]}, {last[2]}",
        "trace per 1,000 steps of 2 pairs": f"{size / steps * 1000 / 1e6:.2f} MB",
        "steps per second": f"{steps / (time.monotonic() - begun):.0f}",
    }
    return tally


def million_rows(folder: Path, rows: int) -> Tally:
    """Chosen columns and steps of a large trace."""
    from dyn_probe.trace.writer import TraceWriter

    tally = Tally("chosen columns of a large trace", tried=rows, zero={"rows lost": 0})
    with TraceWriter(folder / "run", {}, flush_rows=20_000) as writer:
        for start in range(0, rows, 20_000):
            steps = range(start, min(rows, start + 20_000))
            writer.add("pairs", [{"step": step // 4, "pair_id": f"{step % 4:016x}", "loss": 0.5} for step in steps])
    begun = time.monotonic()
    found = load_trace(folder / "run", columns=["pairs.step", "pairs.loss"]).pairs
    took = time.monotonic() - begun
    begun = time.monotonic()
    part = load_trace(folder / "run", columns=["pairs.step", "pairs.loss"], steps=slice(0, 100)).pairs
    tally.facts = {"two columns": f"{took:.2f} s", "100 steps of them": f"{time.monotonic() - begun:.2f} s"}
    if len(found) != rows or len(part) != min(400, rows):
        tally.fail("rows lost", f"{len(found)} and {len(part)} rows were read", rows - len(found) or 1)
    return tally
