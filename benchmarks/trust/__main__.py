"""``make trust``: all trials, their figures printed and kept for the docs.

    PYTHONPATH=benchmarks python -m trust [--nightly] [--seed N] [--only WORD] [--keep FILE]

Exit code 1 where something happened that may not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trust import (
    bombs,
    door_data,
    door_model,
    door_options,
    door_page,
    door_trace,
    fault_matrix,
    lies,
    networks,
    searched,
    security,
    soak,
    versions,
)
from trust.tally import Tally


@dataclass(frozen=True)
class Trial:
    """One line of the result: what it is called, its cases in CI and at night, and what makes them."""

    name: str
    few: int
    many: int
    run: Callable[[Path, int, int, bool], Tally]


def _door(make: Callable[[Path, int, int], Tally]) -> Callable[[Path, int, int, bool], Tally]:
    return lambda folder, count, seed, nightly: make(folder, count, seed)


TRIALS = (
    Trial("faults", 0, 0, lambda folder, count, seed, nightly: fault_matrix.try_faults(folder, nightly, seed)),
    Trial("files", 40, 4000, _door(door_trace.fuzz_files)),
    Trial("run.json", 80, 4000, _door(door_trace.fuzz_manifest)),
    Trial("tables", 30, 2000, _door(door_trace.fuzz_tables)),
    Trial("commands", 6, 300, _door(door_trace.fuzz_commands)),
    Trial("options", 200, 10_000, _door(door_options.fuzz_values)),
    Trial("command line", 30, 2000, _door(door_options.fuzz_command_line)),
    Trial("config file", 100, 10_000, _door(door_options.fuzz_config)),
    Trial("data", 60, 5000, _door(door_data.fuzz_rows)),
    Trial("models", 10, 500, _door(door_model.fuzz_model_folder)),
    Trial("checkpoints", 30, 2000, _door(door_model.fuzz_checkpoints)),
    Trial("page", 1, 40, _door(door_page.fuzz_page)),
    Trial("searched", 60, 4000, lambda folder, count, seed, nightly: searched.search(folder, count, seed)),
    Trial("bombs", 0, 0, lambda folder, count, seed, nightly: bombs.try_bombs(folder)),
    Trial("security", 60, 3000, _door(security.try_security)),
    Trial("architectures", 30, 300, lambda folder, count, seed, nightly: networks.try_networks(count, seed)),
    Trial("lies", 2, 40, _door(lies.try_lies)),
    Trial("half precision", 6, 200, _door(lies.try_precision)),
    Trial("soak", 300, 20_000, lambda folder, count, seed, nightly: soak.soak(folder, count)),
    Trial("large trace", 50_000, 1_000_000, lambda folder, count, seed, nightly: soak.million_rows(folder, count)),
    Trial("versions", 0, 0, _door(versions.try_versions)),
)


def main() -> int:
    """Run the trials that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nightly", action="store_true", help="many more cases: hours in place of a minute or two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="trials whose name contains this")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases, to begin with")
    parser.add_argument("--keep", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    found: dict[str, Tally] = {}
    for trial in (one for one in TRIALS if given.only in one.name):
        begun = time.monotonic()
        count = max(1, int(given.share * (trial.many if given.nightly else trial.few)))
        with tempfile.TemporaryDirectory() as folder:
            found[trial.name] = trial.run(Path(folder), count, given.seed, given.nightly)
        print("\n".join(found[trial.name].lines()), f" ({time.monotonic() - begun:.0f} s)", flush=True)
        if given.keep:
            _keep(given.keep, found, given.nightly)
    return int(not all(tally.holds for tally in found.values()))


def _keep(file: Path, found: dict[str, Tally], nightly: bool) -> None:
    """Put the figures beside those of trials that were not run again. Those of a nightly run stay where the smaller one
    found nothing either; what it did find takes their place."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    new = {name: {**tally.as_json(), "size": "nightly" if nightly else "CI"} for name, tally in found.items()}
    larger = {name for name, row in known.items() if row.get("size") == "nightly" and not nightly}
    new = {name: row for name, row in new.items() if name not in larger or not row["holds"]}
    order = [trial.name for trial in TRIALS]
    merged = dict(sorted((known | new).items(), key=lambda one: order.index(one[0])))
    file.write_text(json.dumps(merged, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
