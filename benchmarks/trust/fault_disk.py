"""A disk that is really full: a recording on a file system of a few hundred kilobytes, mounted for it alone."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from random import Random

from dyn_probe import load_trace
from dyn_probe.trace.manifest import read_manifest

OPTIONS = ([], ["--user", "--map-root-user"])
"""Of ``unshare``: as root, and as a user where the system lets users mount."""
INSIDE = 'mount -t tmpfs -o size={size}k tmpfs "$1" && shift && "$@"; code=$?; cp -a {place}/. {copy}; exit $code'


@cache
def mounting() -> tuple[str, ...]:
    """How a file system can be mounted here for one command; empty where it cannot."""
    for options in OPTIONS:
        command = ["unshare", "--mount", *options]
        try:
            tried = subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
        except OSError:
            return ()
        if tried.returncode == 0:
            return tuple(command)
    return ()


RECORDER = """
import os, sys
from dyn_probe.trace.writer import TraceWriter
say = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
writer = TraceWriter(sys.argv[1], {}, flush_seconds=3600.0, strict=False)
for step in range(400):
    rows = [{"step": step, "pair_id": "pair %d" % k, "loss": step + k / 10} for k in range(4)]
    writer.add("pairs", rows)
    writer.flush()
    if writer.complete:
        os.write(say, b"%d\\n" % step)
writer.close()
os.write(say, b"end\\n")
"""


def full(folder: Path, draw: Random) -> tuple[int, str]:
    """Rows until the disk is full and beyond: the training goes on, what was flushed stays, the rest is counted."""
    place, copy, log = folder / "disk", folder / "copy", folder / "said"
    place.mkdir(), copy.mkdir()
    inside = INSIDE.format(size=draw.randrange(100, 500), place=place, copy=copy)
    command = [*mounting(), "sh", "-c", inside, "sh", str(place), sys.executable, "-c", RECORDER, str(place / "run")]
    done = subprocess.run([*command, str(log)], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    said = log.read_text().split() if log.exists() else []
    if done.returncode or said[-1:] != ["end"]:
        return 0, f"the training was stopped: {done.stderr[-300:]}"
    if done.stderr.count("the training continues") != 1 or "No space left on device" not in done.stderr:
        return 0, f"it was not said once: {done.stderr[-300:]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = load_trace(copy / "run").pairs
    found = pairs.groupby("step")["loss"].apply(lambda losses: sorted(losses.tolist()))
    lost = sum(4 for step in map(int, said[:-1]) if found.get(step) != [step + k / 10 for k in range(4)])
    counted = (read_manifest(copy / "run").get("lost") or {"rows": {}})["rows"].get("pairs", 0)
    missing = 4 * 400 - len(pairs)
    return lost, "" if counted == missing else f"{missing} rows are missing, {counted} are counted in run.json"
