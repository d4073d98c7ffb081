"""What a trace, a page and a checkpoint must not do: reach out, ask for memory, run code, keep texts."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dyn_probe import load_trace
from dyn_probe.errors import DynProbeError
from dyn_probe.report.build import build_report
from dyn_probe.report.summary import summary_lines
from dyn_probe.trace.parquet import Merged, write_parquet
from dyn_probe.trace.schema import TABLES
from dyn_probe.trace.writer import TraceWriter
from dyn_probe.train.checkpoints import newest_checkpoint
from trust import door_trace, fault_runs
from trust.tally import Tally

MARKS = ("good", "bad", "Review")
"""Words of the texts that the recorded command trains on."""
MEMORY = 512 * 2**20
"""Bytes of address space that damaged files may take beyond what the process has when it begins to read them."""
READER = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from trust import door_trace, security
pages = int(Path("/proc/self/statm").read_text().split()[0])
door_trace.look(door_trace.load_trace(door_trace.base(Path(sys.argv[2]) / "first")), "pairs", False)
limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + security.MEMORY
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
tally = security.declared_sizes(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
print(tally.tried, tally.zero["tracebacks"], *tally.failures[:3], sep="\\n")
"""


def declared_sizes(folder: Path, count: int, seed: int) -> Tally:
    """Lengths and counts within streams and Parquet files that declare far more than is there."""
    tally, draw = door_trace.new_tally("declared sizes"), Random(seed)
    run = door_trace.base(folder / "run")
    files = sorted(path for path in run.rglob("*") if path.suffix in (".arrow", ".parquet"))
    for number in range(count):
        file = draw.choice(files)
        content = file.read_bytes()
        changed = bytearray(content)
        for _ in range(draw.choice([1, 1, 3])):
            wide = draw.choice([4, 8])
            near = draw.randrange(len(content)) if draw.random() < 0.5 else len(content) - draw.randrange(1, 4000)
            place = max(0, min(near, len(content) - wide))
            changed[place : place + wide] = draw.choice([2**31 - 1, 2**30, 2**24]).to_bytes(wide, "little")
        file.write_bytes(changed)
        what = f"{file.name}, case {number} of seed {seed}"
        table = door_trace.table_of(file)
        door_trace.attempt(tally, what, lambda table=table: door_trace.look(load_trace(run), table, False))
        file.write_bytes(content)
    return tally


def sizes(tally: Tally, folder: Path, count: int, seed: int) -> int:
    """In a process that may not take much memory."""
    here = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READER, str(here), str(folder), str(count), str(seed)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if done.returncode or int(lines[1]):
        tally.fail("memory asked for", f"exit code {done.returncode}: {' '.join(lines[1:])} {done.stderr[-300:]}")
    return count


def network(tally: Tally, folder: Path, count: int, seed: int) -> int:
    """Summary and report where every socket raises; a page that may load and connect to nothing."""
    run = folder / "network"
    told = {"objective": {"name": "dpo"}, "model": {"name": "//x.example/model"}}
    with TraceWriter(run, told) as writer:
        for name in ("pairs", "steps", "layers", "examples"):
            writer.add(name, door_trace.rows_of(name, range(4)))
    with mock.patch.object(socket, "socket", side_effect=AssertionError("a socket was opened")):
        summary_lines(load_trace(run))
        page = build_report([run]).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.split(maxsplit=1) for rule in policy[1].split("; ")) if policy else {}
    if rules.get("default-src") != "'none'" or rules.get("connect-src", "'none'") != "'none'" or "http" in str(rules):
        tally.fail("reached out", f"the page's policy is {rules}")
    return 2


def texts(tally: Tally, folder: Path, count: int, seed: int) -> int:
    """A recorded command with ``--no-text``: none of its words stand in any file of run and report."""
    run = fault_runs.Training(folder, "attached", 6, more=("--no-text",))
    errors = run.end()
    if run.process.returncode:
        tally.fail("texts kept", f"it was not recorded: {errors[-300:]}")
        return 1
    open_streams = folder / "killed"
    with TraceWriter(open_streams, {}) as writer:  # the search finds a word that stands there
        writer.add("examples", [{"pair_id": "a", "prompt": "Review 3?", "chosen": " good", "rejected": " bad"}])
    if set(MARKS) - set(found_words(open_streams)):
        tally.fail("texts kept", "the search does not find texts that are there")
    build_report([run.out])
    if found := found_words(run.out):
        tally.fail("texts kept", ", ".join(found))
    return 1


def found_words(run: Path) -> list[str]:
    """Which of MARKS stand in the bytes of any file of a folder, or in any text of its tables."""
    known = " ".join(all_texts(run)).encode()
    places = [known, *(path.read_bytes() for path in run.rglob("*") if path.is_file())]
    page = re.compile(rb"<(style|script)[^>]*>.*?</\1>|[A-Za-z0-9+/=]{200,}", re.DOTALL)
    own = [re.sub(rb"\bgood\b(?= (pair|as))", b"", page.sub(b"", one)) for one in places]
    return [word for word in MARKS if any(re.search(rb"\b" + word.encode() + rb"\b", one) for one in own)]


def all_texts(run: Path) -> Iterator[str]:
    """Every text of every table, decompressed."""
    trace = load_trace(run)
    for name in TABLES:
        for column in trace.arrow(name).columns:
            inner = column.type.value_type if pa.types.is_list(column.type) else column.type
            if pa.types.is_string(inner):
                yield from (str(value) for value in column.to_pylist() if value)


def outside(tally: Tally, folder: Path, count: int, seed: int) -> int:
    """Traces that point out of their folder: by links, by paths in ``run.json``, by names of pairs and tables."""
    secret = folder / "secret"
    made = door_trace.base(secret)
    (made / "run.json").write_text((made / "run.json").read_text().replace('"dpo"', '"SECRET"'))
    for name in ("pairs", "examples"):
        with (made / f"{name}.parquet").open("rb") as file:
            held = pq.read_table(file)
        place = held.column_names.index("pair_id")
        secret_ids = pa.array(["SECRET" if value == "a" else value for value in held["pair_id"].to_pylist()])
        write_parquet(made / f"{name}.parquet", held.set_column(place, held.schema.field(place), secret_ids), Merged())
    before = {path: path.read_bytes() for path in secret.rglob("*") if path.is_file()}
    tried = 0
    for name in ("run.json", "pairs.parquet", "streams", "paths"):
        run = door_trace.base(folder / f"outside-{name}")
        _point_out(run, name, secret)
        tried += 1
        try:
            said = [str(load_trace(run).manifest), *summary_lines(load_trace(run)), *all_texts(run)]
        except DynProbeError:
            continue
        except Exception as error:
            tally.fail("tracebacks", f"{name}: {type(error).__name__}: {error}")
            continue
        if "SECRET" in " ".join(said):
            tally.fail("read or written outside", f"{name} was read from outside")
    for path in secret.rglob("*"):
        if path.is_file() and before.get(path) != path.read_bytes():
            tally.fail("read or written outside", f"{path.name} was written")
    return tried


def _point_out(run: Path, name: str, secret: Path) -> None:
    place = run / name
    if name == "paths":
        file = run / "run.json"
        content = json.loads(file.read_text())
        files = {f"../secret/{one}": check for one, check in content["files"].items()}
        files |= {str(secret / one): check for one, check in content["files"].items()}
        file.write_text(json.dumps(content | {"files": files, "model": {"name": "../secret/run.json"}}))
    elif place.is_dir():
        for one in place.iterdir():
            one.unlink()
        place.rmdir()
        place.symlink_to(secret / name)
    else:
        place.unlink()
        place.symlink_to(secret / name)


class Payload:
    """What makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def unpickled(tally: Tally, folder: Path, count: int, seed: int) -> int:
    """Checkpoints that would run something where they are unpickled."""
    mark, places = folder / "ran", ("step", "model", "optimizer", "random", "evil")
    (folder / "checkpoints").mkdir()
    for place in places:
        torch.save({"step": 2, "model": {}, place: Payload(mark)}, folder / "checkpoints/step-2.pt")
        try:
            newest_checkpoint(folder)
            tally.fail("code run", f"a checkpoint with a payload in {place} was taken")
        except DynProbeError as error:
            if mark.exists():
                tally.fail("code run", f"{place}: {error}")
    return len(places)


ZERO = ("texts kept", "reached out", "memory asked for", "read or written outside", "code run", "tracebacks")
PARTS = {
    "--no-text leaves no text in any file": texts,
    "no socket in summary and report, a page that connects to nothing": network,
    f"declared sizes, with {MEMORY // 2**20} MB to take": sizes,
    "links, paths and names that lead out of the run": outside,
    "checkpoints that would run code": unpickled,
}


def try_security(folder: Path, count: int, seed: int, only: str = "") -> Tally:
    """All of ``PARTS``; ``count``: files with declared sizes."""
    tally = Tally("security", zero=dict.fromkeys(ZERO, 0))
    for name, part in PARTS.items():
        if only not in name or (part is texts and not fault_runs.TRL):
            continue
        failed = sum(tally.zero.values())
        place = folder / part.__name__
        place.mkdir(parents=True)
        tried = part(tally, place, count, seed)
        tally.tried += tried
        tally.parts[name] = {"tried": tried, "failed": sum(tally.zero.values()) - failed}
    return tally
