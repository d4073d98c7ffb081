"""A data file without the pairs that a scan ranks first: the kept rows of the original file, byte for byte."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dyn_probe.errors import BadInput, unknown
from dyn_probe.report.frames import numbers
from dyn_probe.report.ranked import RANKINGS, ranked_pairs
from dyn_probe.trace.failures import naming

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

RANKS: dict[str, str] = {"ches": "ches-normalised", "cosine": "cosine", "fall": "fall"}
"""What `dyn-probe scan --rank` takes → the ranking whose first pairs go. ``fall`` needs two checkpoints."""


@dataclass(frozen=True)
class Cleaning:
    """Which pairs go, and where the others are written.

    Args:
        rank: a name of RANKS.
        share: share of the pairs that is dropped, 0 to 1.
        data: file of JSON lines that the pairs were read from.
        out: the cleaned file.
        force: replace `out`.
    """

    rank: str
    share: float
    data: Path
    out: Path
    force: bool = False

    @staticmethod
    def of(rank: str, drop: str, keep: str, cleaned: str, data: str, force: bool = False) -> Cleaning | None:
        """What the options ask for; None where they ask for nothing.

        Raises:
            BadInput: options that do not belong together, or files that cannot be used.
        """
        if not (rank or drop or keep or cleaned):
            return None
        if not (rank and cleaned) or bool(drop) == bool(keep):
            raise BadInput(
                "a cleaned file needs a ranking, a share and a name; write for example: --rank ches --drop 5% "
                "--cleaned cleaned.jsonl (or --keep 5% for --drop)"
            )
        if rank not in RANKS:
            raise BadInput(unknown("rank", rank, RANKS))
        share = parse_share("drop", drop) if drop else 1 - parse_share("keep", keep)
        found = Cleaning(rank, share, Path(data), Path(cleaned), force)
        found.check()
        return found

    def check(self) -> None:
        """Refuse files that cannot be used, before anything is measured."""
        if not self.data.is_file() or self.data.suffix not in (".jsonl", ".ndjson"):
            raise BadInput(
                f"--cleaned keeps lines of a file of JSON lines (.jsonl), unchanged; --data {self.data} is not one: "
                "write it as JSON lines first"
            )
        if not self.out.parent.is_dir():
            raise BadInput(f"--cleaned {self.out} is in a folder that does not exist; make {self.out.parent} first")
        if self.out.exists() and (not self.force or self.out.samefile(self.data) or self.out.is_dir()):
            raise BadInput(f"--cleaned {self.out} exists already; name another file, or write --force to replace it")

    def write(self, trace: Trace) -> str:
        """Write the kept lines in their order; returns how many went and why, in words.

        Lines that are no pair of the scan (left out at reading, a duplicate pair) are not written.

        Raises:
            BadInput: the ranking's numbers were not recorded, or a pair's line is not in the file.
            WriteFailed: the system refuses to write the file.
        """
        found = ranked_pairs(trace, RANKS[self.rank], top=None)
        ranking = RANKINGS[RANKS[self.rank]]
        values = numbers(found, ranking.column)
        if lacking := sum(map(math.isnan, values)):
            raise BadInput(
                f"{lacking} of {len(found)} pairs have no number to rank by {self.rank}; nothing was written"
            )
        gone = round(self.share * len(found))
        if gone == len(found):
            raise BadInput(
                f"no pair would be kept: {self.share:.4g} of {len(found)} pairs, rounded to whole pairs, is all of "
                "them; write a smaller --drop or a larger --keep; nothing was written"
            )
        kept = {_line_of(source, self.data) for source in found["source"].iloc[gone:]}
        with self.data.open("rb") as file:
            lines = [line for number, line in enumerate(file, start=1) if number in kept]
        if len(lines) != len(kept):
            raise BadInput(f"{self.data} no longer has the lines that were scanned; scan it again")
        with naming(self.out):
            self.out.write_bytes(b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines))
        limit = f", {ranking.column} from {values[gone - 1]:.4g} on" if gone else ""
        return f"{self.out}: {len(kept)} pairs kept, {gone} dropped ({ranking.meaning}{limit})"


def parse_share(option: str, text: str) -> float:
    """``5%`` or ``0.05`` as 0.05.

    Raises:
        BadInput: it is no share between 0 and 1.
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise BadInput(f"--{option} takes a share of the pairs such as 5% or 0.05; got {text!r}")
    return share


def _line_of(source: object, data: Path) -> int:
    """The line, from 1, that a pair's source ``FILE:LINE`` names."""
    name, _, line = str(source).rpartition(":")
    if not line.isdigit() or Path(name) != data:
        raise BadInput(f"a pair is from {source!r}, which is not a line of {data}; scan this file with --force")
    return int(line)
