"""Chooses the learning rates of the studies on small models by the rule of dyn_probe/studies/arms/rate_choice.py.

    python benchmarks/learning_rates.py --work runs/rates --out benchmarks/results/learning-rates

Trains what is not there yet, and writes a file of manifests per study, from which docs/claims.md shows the choice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dyn_probe.studies.arms.arm_manifest import write_collection
from dyn_probe.studies.arms.arm_running import run_arms
from dyn_probe.studies.arms.rate_choice import chosen_rate, sentiment_choice, squeezing_choice

STUDIES = {"sentiment": sentiment_choice, "squeezing": squeezing_choice}


def main() -> None:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/rates"), help="folder of the traces")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/learning-rates"))
    parser.add_argument("--only", choices=STUDIES, nargs="*", default=list(STUDIES))
    options = parser.parse_args()
    for study in options.only:
        folder = options.work / study
        found = run_arms(STUDIES[study](folder), folder)
        print(f"{study}: {chosen_rate(found, study):g} ({write_collection(options.out / f'{study}.jsonl', found)})")


if __name__ == "__main__":
    main()
