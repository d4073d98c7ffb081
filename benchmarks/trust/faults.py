"""Faults while a run is recorded: what was flushed is read after each, and the run goes on from there.

The recorder of these trials adds a row and flushes it, then says so; every row that it has said must be read.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pandas as pd

from dyn_probe import load_trace
from dyn_probe.errors import DynProbeError, TraceError
from dyn_probe.trace.lock import FolderLock
from dyn_probe.trace.writer import TraceWriter
from trust import noise

RECORDER = """
import errno, os, resource, signal, sys, time
from pathlib import Path
from dyn_probe.trace.writer import TraceWriter
from dyn_probe.trace import writer as writing, manifest, streams

out, rank, steps, fault, strict = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5] == "1"
resume, first = sys.argv[6] == "1", int(sys.argv[7])
session = sys.argv[8]
say = os.open(sys.argv[9], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
writer = TraceWriter(out, {}, rank=rank, session=session, resume=resume, resume_step=first if resume else None,
                     flush_seconds=3600.0, flush_rows=50, strict=strict, wait_seconds=20.0)
real_write, real_time = os.write, time.time
for step in range(first, first + steps):
    if fault == "size limit" and step == first + 5:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    if fault == "full disk" and step == first + 5:
        def refuse(file, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        streams.write = refuse
    if fault == "disk full for a while" and step == first + 5:
        streams.write = lambda file, content: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    if fault == "disk full for a while" and step == first + 15:
        streams.write = real_write
    if fault == "folder removed" and step == first + 5 and rank == 0:
        import shutil
        shutil.rmtree(out)
    if fault == "read-only folder" and step == first + 5 and rank == 0:
        def refuse(file, content):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        streams.write = refuse
        def refuse_open(path, flags, mode=0o777, *, dir_fd=None, real=os.open):
            if flags & (os.O_CREAT | os.O_WRONLY) and str(path).startswith(str(out)):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return real(path, flags, mode)
        streams.os.open = refuse_open
    if fault == "clock jumps":
        back = step % 2 * 10**6
        time.time = lambda: real_time() - back
    rows = [{"step": step, "pair_id": "pair %d" % k, "rank": rank, "loss": step + k / 10} for k in range(4)]
    writer.add("pairs", rows)
    writer.add("steps", [{"step": step, "loss": float(step)}])
    writer.flush()
    if writer.complete:
        real_write(say, b"%d %d\\n" % (rank, step))
writer.close()
real_write(say, b"%d end\\n" % rank)
"""


@dataclass
class Recording:
    """One process that records, or two; ``said``: (rank, step) of every flushed step."""

    out: Path
    log: Path
    processes: list[subprocess.Popen[str]]
    said: set[tuple[int, int]] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    errors: str = ""

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit codes."""
        for process in self.processes:
            self.errors += process.communicate(timeout=seconds)[1]
        for line in self.log.read_text().splitlines() if self.log.exists() else []:
            rank, what = line.split()
            (self.ended.add(int(rank)) if what == "end" else self.said.add((int(rank), int(what))))
        return [process.returncode for process in self.processes]


def start(
    out: Path, *, ranks: int = 1, steps: int = 30, fault: str = "", strict: bool = False, first: int | None = None
) -> Recording:
    """Begin to record, or go on from step ``first``."""
    log = Path(tempfile.mkstemp(prefix="said-", dir=out.parent)[1])
    session = os.urandom(6).hex()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RECORDER, str(out), str(rank), str(steps), fault, str(int(strict)),
             str(int(first is not None)), str(first or 0), session, str(log)],
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    return Recording(out, log, processes)


def lost_rows(out: Path, said: set[tuple[int, int]]) -> int:
    """Flushed rows that are not read, or not as they were written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = load_trace(out).pairs
    found = {(int(rank), int(step)): rows for (rank, step), rows in pairs.groupby(["rank", "step"])}
    return sum(4 - _right(found.get(key), key[1]) for key in said)


def _right(rows: pd.DataFrame | None, step: int) -> int:
    """How many of the four rows of a step are as they were written."""
    if rows is None:
        return 0
    wanted = {f"pair {k}": step + k / 10 for k in range(4)}
    got = dict(zip(rows["pair_id"], rows["loss"], strict=True))
    return sum(got.get(name) == loss for name, loss in wanted.items()) if len(rows) == 4 else 0


def killed(folder: Path, draw: Random, ranks: int = 1) -> tuple[int, str]:
    """SIGKILL at a random moment of starting, recording or closing; then resumed twice, and closed."""
    out = folder / "run"
    said: set[tuple[int, int]] = set()
    first: int | None = None
    for _ in range(2):
        run = start(out, ranks=ranks, steps=draw.choice([5, 40, 400]), first=first)
        _wait_for_rows(run, draw.random() < 0.8)
        time.sleep(draw.uniform(0.0, 0.4))
        for process in run.processes:
            process.send_signal(signal.SIGKILL)
        run.wait()
        if not (out / "run.json").exists():
            return 0, ""
        first = _next(said | run.said)
        said = {key for key in said if first is None or key[1] < first} | run.said
        if lost := lost_rows(out, said):
            return lost, "rows are missing after the kill"
    last = start(out, ranks=ranks, steps=3, first=first)
    if any(last.wait()):
        return 0, f"cannot be resumed: {last.errors[-200:]}"
    said = {key for key in said if first is None or key[1] < first} | last.said
    closed = load_trace(out).manifest["status"] == "closed"
    return lost_rows(out, said), "" if closed else "is not closed after the resume"


def _next(said: set[tuple[int, int]]) -> int:
    """The step to go on with: behind the last that every rank has flushed."""
    ranks = {rank for rank, _ in said}
    return min((max(step for rank, step in said if rank == one) for one in ranks), default=-1) + 1


def _wait_for_rows(run: Recording, wanted: bool) -> None:
    while wanted and not run.log.read_text() and run.processes[0].poll() is None:
        time.sleep(0.005)


def killed_two(folder: Path, draw: Random) -> tuple[int, str]:
    """The same with two processes."""
    return killed(folder, draw, ranks=2)


def unwritable(fault: str) -> Callable[[Path, Random], tuple[int, str]]:
    """A fault of the disk in the middle of a run: training goes on, it is said once, and counted."""

    def trial(folder: Path, draw: Random) -> tuple[int, str]:
        run = start(folder / "run", fault=fault, steps=25)
        if run.wait() != [0] or not run.ended:
            return 0, f"the training was stopped: {run.errors[-300:]}"
        if run.errors.count("the training continues") != (fault != "disk full for a while" or 1):
            return 0, f"it was not said once: {run.errors[-300:]}"
        if fault == "folder removed":
            return 0, ""
        about = json.loads((run.out / "run.json").read_text(encoding="utf-8"))
        missing = 4 * 25 - len(load_trace(run.out).pairs)
        counted = (about.get("lost") or {"rows": {}})["rows"].get("pairs", 0)
        if missing != counted:
            return 0, f"{missing} rows are missing, {counted} are counted"
        return lost_rows(run.out, run.said), ""

    return trial


def strict(folder: Path, draw: Random) -> tuple[int, str]:
    """A full disk with --strict stops, and keeps what was flushed."""
    run = start(folder / "run", fault="full disk", steps=25, strict=True)
    if run.wait() == [0]:
        return 0, "it was not stopped"
    return lost_rows(run.out, run.said), ""


def clock(folder: Path, draw: Random) -> tuple[int, str]:
    """The clock jumps back and forth by days."""
    run = start(folder / "run", fault="clock jumps", steps=25)
    if run.wait() != [0]:
        return 0, f"the training was stopped: {run.errors[-300:]}"
    return lost_rows(run.out, run.said), ""


def two_recorders(folder: Path, draw: Random) -> tuple[int, str]:
    """A second recorder of a folder that is being recorded into is refused, and disturbs nothing."""
    run = start(folder / "run", steps=200)
    _wait_for_rows(run, True)
    why = ""
    for options in ({"force": True}, {"resume": True}, {}):
        try:
            TraceWriter(run.out, {}, **options).close()  # type: ignore[arg-type]
            why = f"a second recorder was let in ({options})" if run.processes[0].poll() is None else ""
            break
        except TraceError:
            continue
    codes = run.wait()
    return (lost_rows(run.out, run.said) if codes == [0] and not why else 0), why or (
        "" if codes == [0] else run.errors
    )


def damaged(folder: Path, draw: Random) -> tuple[int, str]:
    """A damaged file: no other number is read, what is missing is named by file, and the run can be gone on with."""
    out = folder / "run"
    with TraceWriter(out, {}, flush_rows=7) as writer:
        for step in range(12):
            rows = [{"step": step, "pair_id": f"pair {k}", "loss": step + k / 10} for k in range(4)]
            writer.add("pairs", rows)
    if draw.random() < 0.5:
        writer = TraceWriter(out, {}, resume=True, flush_rows=7)
        for step in range(12, 24):
            writer.add("pairs", [{"step": step, "pair_id": f"pair {k}", "loss": step + k / 10} for k in range(4)])
        writer._finalizer()
    whole = len(load_trace(out).pairs)
    file = draw.choice(sorted(path for path in out.rglob("*") if path.suffix in (".arrow", ".parquet", ".json")))
    content = file.read_bytes()
    file.write_bytes(noise.damaged(content, draw))
    why = _read_damaged(out, file, whole)
    if not why:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                TraceWriter(out, {}, resume=True).close()
        except DynProbeError:
            pass  # refused: nothing was touched
        except Exception as error:
            why = f"resuming: {type(error).__name__}: {error}"
    return 0, why


def _read_damaged(out: Path, file: Path, whole: int) -> str:
    """What is wrong with how a damaged trace is read; empty where nothing is."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trace = load_trace(out)
            pairs = trace.pairs
        except TraceError as error:
            return "" if file.name in str(error) else f"the file is not named: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    wrong = sum(row.loss != row.step + int(row.pair_id[-1]) / 10 for row in pairs.itertuples())
    if wrong:
        return f"{wrong} numbers are others"
    said = [str(one.message) for one in caught if file.name in str(one.message)] or trace.torn
    return "" if len(pairs) == whole or said else f"{whole - len(pairs)} rows of {file.name} are missing in silence"


def locked(folder: Path, draw: Random) -> tuple[int, str]:
    """A lock that a killed process held is free."""
    out = folder / "run"
    run = start(out, steps=100_000)
    _wait_for_rows(run, True)
    run.processes[0].kill()
    run.wait()
    FolderLock(out).release()
    return lost_rows(out, run.said), ""
