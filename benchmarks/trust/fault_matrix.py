"""Every fault that is tried while a run is recorded, how often, and what came of it."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from pathlib import Path
from random import Random

from trust import fault_disk, fault_runs
from trust.fault_runs import Trial
from trust.faults import clock, damaged, killed, killed_two, locked, strict, two_recorders, unwritable
from trust.tally import Tally

TERM, HUP = signal.SIGTERM, signal.SIGHUP
FAULTS: dict[str, tuple[Trial, int, int]] = {
    "SIGKILL while writing, one process, resumed twice": (killed, 3, 60),
    "SIGKILL while writing, two processes, resumed twice": (killed_two, 1, 30),
    "SIGKILL: the lock of the dead is free": (locked, 1, 10),
    "SIGKILL, own loop, resumed from its checkpoint": (fault_runs.killed("loop", 40), 1, 20),
    "SIGKILL, own loop in two processes, resumed": (fault_runs.killed("two", 25), 1, 10),
    "SIGKILL, attached, resumed from its checkpoint": (fault_runs.killed("attached", 40), 1, 10),
    "SIGTERM, own loop": (fault_runs.signalled("loop", TERM), 1, 5),
    "SIGHUP, own loop": (fault_runs.signalled("loop", HUP), 1, 5),
    "SIGTERM, attached": (fault_runs.signalled("attached", TERM), 1, 5),
    "SIGHUP, attached": (fault_runs.signalled("attached", HUP), 1, 5),
    "a disk that is really full": (fault_disk.full, 2, 10),
    "writes refused: no space": (unwritable("full disk"), 1, 5),
    "writes refused for a while, then room again": (unwritable("disk full for a while"), 1, 5),
    "writes refused, with --strict": (strict, 1, 3),
    "file-size limit": (unwritable("size limit"), 1, 5),
    "read-only file system": (unwritable("read-only folder"), 1, 3),
    "folder removed": (unwritable("folder removed"), 1, 3),
    "clock jumps": (clock, 1, 3),
    "two recorders on one folder": (two_recorders, 1, 10),
    "damaged streams, Parquet files, run.json, resumed": (damaged, 40, 2000),
}
"""Fault → (trial, how often in CI, how often at night). A trial returns rows lost, and what is wrong beside."""


def untried() -> dict[str, str]:
    """Faults that this system does not let us make, and why."""
    found = {} if fault_disk.mounting() else {"a disk that is really full": "no file system can be mounted here"}
    return found if fault_runs.TRL else found | {name: "TRL is not installed" for name in FAULTS if "attached" in name}


def try_faults(folder: Path, nightly: bool, seed: int = 0, only: str = "") -> Tally:
    """Every fault whose name contains ``only``, each in a folder of its own."""
    tally, skipped = Tally("faults while recording", zero={"rows lost": 0, "not survived": 0}), untried()
    chosen = {name: row for name, row in FAULTS.items() if only in name and name not in skipped}
    for name, (trial, few, many) in chosen.items():
        survived = gone = 0
        for number in range(count := many if nightly else few):
            place = Path(tempfile.mkdtemp(dir=folder))
            lost, why = trial(place, Random(f"{seed} {name} {number}"))
            tally.tried, gone, survived = tally.tried + 1, gone + lost, survived + (not why)
            if lost:
                tally.fail("rows lost", f"{name}, case {number} of seed {seed}", lost)
            if why:
                tally.fail("not survived", f"{name}, case {number} of seed {seed}: {why}")
            shutil.rmtree(place, ignore_errors=True)
        tally.parts[name] = {"tried": count, "survived": survived, "rows lost": gone}
        print(f"    {name}: {count} tried, {survived} survived, rows lost {gone}", file=sys.stderr, flush=True)
    tally.facts["kinds of fault"] = str(len(chosen))
    tally.facts |= {f"not tried: {name}": why for name, why in skipped.items()}
    return tally
