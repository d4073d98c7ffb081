"""Traces that declare, or unpack to, far more than their bytes hold: each is refused in words, and takes no memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dyn_probe.trace.checks import append_checks
from dyn_probe.trace.messages import batch_message, head_crc, head_message
from dyn_probe.trace.writer import TraceWriter
from trust.tally import Tally

MEMORY = 256 * 2**20
"""Bytes of address space that a reader may take beyond what it has when it begins."""
LARGE = 2**28
"""Bytes that a bomb unpacks to, at least; most ask for far more."""
ROWS = 2**26
ZSTD = pa.ipc.IpcWriteOptions(compression="zstd")
READER = """
import json, resource, sys, warnings
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import pyarrow.dataset
from dyn_probe import load_trace
from dyn_probe.errors import DynProbeError
warnings.simplefilter("ignore")
folder = Path(sys.argv[2])
load_trace(folder / "sound").pairs, load_trace(folder / "open").pairs
limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name in sys.argv[4:]:
    try:
        trace = load_trace(folder / name)
        said = [len(trace.pairs), *map(str, trace.damage)]
    except DynProbeError as error:
        said = ["refused", str(error)]
    except BaseException as error:
        said = ["traceback", f"{type(error).__name__}: {error}"[:300]]
    print(json.dumps([name, said]), flush=True)
"""
REQUIRED = {"step": np.int64, "rank": np.int32}
DAMAGED = ("stream, sealed: buffers that unpack", "stream, sealed: rows without bytes")
"""What is left out as a damaged batch; the rest of the trace is read."""
ASKED = ("malloc", "realloc", "MemoryError", "out of memory", "Unable to allocate", "bad_alloc")
"""In a message: memory was asked for, and only the limit of this trial said no."""


def parquet(data: pa.RecordBatch, groups: int = 1) -> Callable[[Path], None]:
    """``pairs.parquet`` of another writer, with sound checks: so many row groups of the same rows."""

    def make(run: Path) -> None:
        _sound(run)
        about = {"dyn_probe": json.dumps({"schema_version": 2, "streams": []})}
        table = pa.Table.from_batches([data]).replace_schema_metadata(about)
        with (run / "pairs.parquet").open("w+b") as file:
            with pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
                for _ in range(groups):
                    writer.write_table(table)
            append_checks(file)
        _forget_files(run)

    return make


def stream(data: pa.RecordBatch, options: pa.ipc.IpcWriteOptions | None = None) -> Callable[[Path], None]:
    """An unsealed stream, as version 1 had it."""

    def make(run: Path) -> None:
        file = _open(run)
        with pa.ipc.new_stream(str(file), data.schema, options=options) as writer:
            writer.write_batch(data)

    return make


def sealed_compressed(run: Path) -> None:
    """A sealed batch with compressed buffers: as if it were damaged, since no recorder writes one."""
    data = _batch(logp_chosen=np.zeros(LARGE // 8))
    head = head_message(data.schema)
    real = pa.ipc.new_stream
    with mock.patch.object(pa.ipc, "new_stream", lambda *given: real(*given, options=ZSTD)):
        _open(run).write_bytes(head + batch_message(data, 0, head_crc(head) or b""))


def sealed(data: pa.RecordBatch) -> Callable[[Path], None]:
    """The same with seals of today."""

    def make(run: Path) -> None:
        head = head_message(data.schema)
        _open(run).write_bytes(head + batch_message(data, 0, head_crc(head) or b""))

    return make


def declared(run: Path) -> None:
    """A compressed buffer that says it is 2⁴⁰ bytes long."""
    stream(_batch(logp_chosen=np.zeros(2**16)), ZSTD)(run)
    file = run / "streams/pairs-rank0.arrow"
    content, true = file.read_bytes(), (8 * 2**16).to_bytes(8, "little")
    if true not in content:
        raise AssertionError("the buffer's length was not found")
    file.write_bytes(content.replace(true, (2**40).to_bytes(8, "little")))


def sparse(name: str) -> Callable[[Path], None]:
    """A file that ends 64 GiB further on and takes no room on the disk."""

    def make(run: Path) -> None:
        if name.startswith("streams"):
            stream(_batch())(run)
        else:
            _sound(run)
        place = run / name
        os.truncate(place, 2**36)
        if name.endswith("parquet"):
            with place.open("r+b") as file:
                file.seek(2**36 - 8)
                file.write((2**32 - 1).to_bytes(4, "little") + b"PAR1")
        _forget_files(run)

    return make


def nested(run: Path) -> None:
    """``run.json`` with a million lists within one another."""
    _sound(run)
    (run / "run.json").write_text('{"config": ' + "[" * 10**6 + "]" * 10**6 + "}")


def digits(run: Path) -> None:
    """A number of ten million digits."""
    _sound(run)
    (run / "run.json").write_text('{"schema_version": 1' + "0" * 10**7 + "}")


def _batch(**columns: object) -> pa.RecordBatch:
    """A batch of `pairs` with other columns than a recorder writes."""
    found = {name: value if isinstance(value, pa.Array) else pa.array(value) for name, value in columns.items()}
    rows = len(next(iter(found.values()))) if found else 1
    plain = {name: pa.array(np.ones(rows, kind)) for name, kind in REQUIRED.items() if name not in found}
    return pa.RecordBatch.from_pydict(plain | found)


def _open(run: Path) -> Path:
    """A trace that is still open, without streams; the place of the one of `pairs`."""
    writer = TraceWriter(run, {})
    writer._finalizer()
    return run / "streams/pairs-rank0.arrow"


def _sound(run: Path) -> None:
    with TraceWriter(run, {}) as writer:
        writer.add("pairs", [{"step": 1, "pair_id": "a"}])


def _forget_files(run: Path) -> None:
    """Without digests in ``run.json``: whoever makes such a trace writes what he likes there."""
    file = run / "run.json"
    if file.stat().st_size < 2**20:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"files": {}}))


def _text(size: int) -> pa.Array:
    return pa.array(["x" * size], pa.large_string())


def _deep() -> pa.RecordBatch:
    kind: pa.DataType = pa.float64()
    for _ in range(60):
        kind = pa.list_(kind)
    return _batch(logp_chosen=pa.nulls(1, kind))


def _views() -> pa.Array:
    """Many texts that are all one and the same megabyte."""
    one = pa.array(["x" * 2**20], pa.string_view())
    views = np.tile(np.frombuffer(one.buffers()[1], dtype=np.uint8)[:16], 2**16)
    return pa.Array.from_buffers(pa.string_view(), 2**16, [None, pa.py_buffer(views.tobytes()), one.buffers()[2]])


def _dictionary(texts: pa.Array, rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), texts)


def bombs() -> dict[str, Callable[[Path], None]]:
    """What it is → how it is made."""
    ends = pa.array([ROWS * 8], pa.int64())
    runs = pa.RunEndEncodedArray.from_arrays(ends, pa.array([1], pa.int64()))
    zeros = np.zeros(LARGE // 8)
    lists = pa.ListArray.from_arrays(pa.array([0, LARGE // 8], pa.int32()), pa.array(zeros))
    empty = pa.nulls(ROWS, pa.list_(pa.float64(), 0))
    return {
        "parquet: rows of one value": parquet(_batch(step=np.ones(2**20, dtype=np.int64)), ROWS // 2**20),
        "parquet: a text that unpacks": parquet(_batch(pair_id=_text(LARGE))),
        "parquet: one long text in many rows": parquet(_batch(pair_id=_dictionary(pa.array(["x" * 2**16]), 2**16))),
        "parquet: a list that unpacks": parquet(_batch(logp_chosen=lists)),
        "parquet: a footer in a file of 64 GiB": sparse("pairs.parquet"),
        "stream: buffers that unpack": stream(_batch(logp_chosen=zeros), ZSTD),
        "stream, sealed: buffers that unpack": sealed_compressed,
        "stream: a compressed buffer of 2⁴⁰ bytes": declared,
        "stream: rows without bytes": stream(_batch(step=pa.nulls(2**31 - 1), rank=pa.nulls(2**31 - 1))),
        "stream, sealed: rows without bytes": sealed(_batch(step=pa.nulls(2**31 - 1), rank=pa.nulls(2**31 - 1))),
        "stream: a run of one value": stream(_batch(step=runs, rank=runs)),
        "stream: lists of nothing": stream(_batch(step=empty, rank=empty)),
        "stream: one long text in many rows": stream(_batch(pair_id=_dictionary(pa.array(["x" * 2**20]), 2**16))),
        "stream, sealed: views of one long text": sealed(_batch(pair_id=_views())),
        "stream: deep types": stream(_deep()),
        "stream: a file of 64 GiB": sparse("streams/pairs-rank0.arrow"),
        "run.json: a file of 64 GiB": sparse("run.json"),
        "run.json: nested a million times": nested,
        "run.json: ten million digits": digits,
    }


def try_bombs(folder: Path) -> Tally:
    """Each in a process that may take ``MEMORY``."""
    tally = Tally("traces that unpack", zero={"memory asked for": 0, "tracebacks": 0})
    folder.mkdir(parents=True, exist_ok=True)
    _sound(folder / "sound")
    stream(_batch())(folder / "open")
    kinds = bombs()
    for number, make in enumerate(kinds.values()):
        make(folder / str(number))
    here = Path(__file__).parents[1]
    command = [sys.executable, "-W", "ignore", "-c", READER, str(here), str(folder), str(MEMORY)]
    done = subprocess.run(
        [*command, *map(str, range(len(kinds)))], capture_output=True, text=True, check=False, timeout=600
    )
    found = dict(json.loads(line) for line in done.stdout.splitlines())
    for number, kind in enumerate(kinds):
        said = found.get(str(number), ["traceback", f"exit code {done.returncode} {done.stderr[-200:]}"])
        words, tally.tried = " ".join(map(str, said)), tally.tried + 1
        if said[0] == "traceback":
            tally.fail("tracebacks", f"{kind}: {words}")
        elif any(sign in words for sign in ASKED):
            tally.fail("memory asked for", f"{kind}: {words[:200]}")
        elif said[0] != "refused" and not (kind in DAMAGED and len(said) > 1):
            tally.fail("memory asked for", f"{kind}: it was read, with {words} rows")
    return tally


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        print("\n".join(try_bombs(Path(place)).lines()))
