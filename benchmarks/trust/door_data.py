"""The door of the data: files of pairs that are damaged, or hold what nobody expects."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dyn_probe.data.built_in import built_in_tokenizer
from dyn_probe.data.prepared import Reading, prepare_pairs
from dyn_probe.data.shapes import SHAPES
from dyn_probe.data.token_facts import Limit
from trust import noise
from trust.door_trace import ARRAYS
from trust.doors import attempt, new_tally
from trust.tally import Tally

MESSAGES = [{"role": "user", "content": "Is it good?"}, {"role": "assistant", "content": "Yes, it is."}]
ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "Is it good?", "chosen": " Yes, it is.", "rejected": " No."},
    {"chosen": MESSAGES, "rejected": [*MESSAGES[:1], {"role": "assistant", "content": "No."}]},
    {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": [{"role": "assistant", "content": "No."}]},
    {"system": "Be brief.", "question": "Is it good?", "chosen": "Yes.", "rejected": "No."},
    {"conversations": [{"from": "human", "value": "Good?"}], "chosen": {"from": "gpt", "value": "Yes"},
     "rejected": {"from": "gpt", "value": "No"}},
    {"prompt": "Good?", "chosen": "Yes", "rejected": "No", "tools": [{"name": "f"}], "score_chosen": 1.0},
)  # fmt: skip


def fuzz_rows(folder: Path, count: int, seed: int = 0) -> Tally:
    """Rows in every kind of file with values that nobody expects, and damaged files of them; encoded where they are
    read."""
    tally, draw, tokenizer = new_tally("data: odd rows and damaged files"), Random(seed), built_in_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        row = draw.choice(ROWS)
        rows = [row if draw.random() < 0.4 else noise.changed(row, draw) for _ in range(draw.choice([1, 2, 6]))]
        file = folder / draw.choice(["rows.jsonl", "rows.json", "rows.csv", "rows.jsonl.gz", "rows.parquet"])
        content = _content(file.name, rows, draw)
        if draw.random() < 0.3:
            content = noise.damaged(content, draw)
        file.write_bytes(content)
        columns = draw.choice(["", "", "", "prompt=prompt", "chosen=nothing", "a=b,c", "ignore=chosen", "=", "prompt="])
        attempt(
            tally,
            f"{file.name}, case {number} of seed {seed}",
            lambda file=file, columns=columns: prepare_pairs(str(file), tokenizer, Limit(64), Reading(columns)),
        )
        file.unlink()
    tally.facts["shapes known"] = str(len(SHAPES))
    return tally


def _content(name: str, rows: list[Any], draw: Random) -> bytes:
    if name.endswith(".parquet"):
        return _parquet(draw)
    if name.endswith(".csv"):
        text = io.StringIO()
        writer = csv.writer(text)
        dicts = [row for row in rows if isinstance(row, dict)]
        writer.writerow(list(dicts[0]) if dicts else ["a"])
        writer.writerows([list(row.values()) for row in dicts])
        return text.getvalue().encode("utf-8", "surrogatepass")
    if name.endswith(".json"):
        return noise.as_json(rows)
    lines = b"\n".join(json.dumps(row).encode() if draw.random() < 0.5 else noise.as_json(row) for row in rows)
    return gzip.compress(lines) if name.endswith(".gz") else lines


def _parquet(draw: Random) -> bytes:
    columns = [pa.array(["Is it good?"] * 3), pa.array([" Yes."] * 3), pa.array([" No."] * 3), pa.array([1.0] * 3)]
    for place in range(len(columns)):
        if draw.random() < 0.4:
            columns[place] = draw.choice(ARRAYS)(3)
    names = ["prompt", "chosen", "rejected", draw.choice(["score", "chosen", "\x00", "tools"])]
    sink = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_arrays(columns, names=names), sink)
    except pa.ArrowException:  # what the format cannot hold
        return b"PAR1"
    return sink.getvalue()
