"""What the report of a long run costs: seconds, memory, and the size of its page.

    python benchmarks/large_report.py [--steps 10000] [--batch 16] [--pairs 20000] [--layers 12]

A synthetic run with pair rows, pushes and layers at every step is written to a folder, and its report is built in a
process of its own, with one thread. Limits that the page is made for: 20 s, 2 GB, 5 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from dyn_probe.report.push_parts import PARTS
from dyn_probe.trace.writer import TraceWriter

BUILD = """
import json, resource, sys, time
start = time.perf_counter()
from dyn_probe.report.build import build_report
page = build_report([sys.argv[1]])
used = resource.getrusage(resource.RUSAGE_SELF)
found = {"seconds": time.perf_counter() - start, "cpu_seconds": used.ru_utime + used.ru_stime}
print(json.dumps({**found, "gigabytes": used.ru_maxrss / 1e6, "megabytes": page.stat().st_size / 1e6}))
"""


def pair_rows(steps: int, batch: int, pairs: int, seed: int = 0) -> pd.DataFrame:
    """Rows of `pairs`: both log-probabilities fall, slowly and noisily; gradients and pulls of a DPO run."""
    draw, n = np.random.default_rng(seed), steps * batch
    which = draw.integers(0, pairs, n)
    step = np.repeat(np.arange(steps), batch)
    length = draw.integers(20, 200, (pairs, 2))[which]
    start = -1.8 * length
    logp = start - np.outer(step / steps, (0.4, 1.5)) * length * draw.lognormal(0, 0.3, (n, 1))
    norms, cosine = draw.lognormal(3, 0.3, (n, 2)), np.clip(draw.normal(0.5, 0.2, n), -1, 1)
    pull = 0.1 / (1 + np.exp(0.1 * ((logp - start) @ (1, -1))))
    change = draw.normal((-0.02, -0.1), 0.1, (n, 2))
    sides = {
        f"{name}_{side}": values[:, k]
        for name, values in {
            "logp": logp,
            "ref_logp": start,
            "len": length,
            "grad_norm": norms,
            "realised_delta": change,
        }.items()
        for k, side in enumerate(("chosen", "rejected"))
    }
    ids = np.array([f"{value:016x}" for value in draw.integers(1 << 40, 1 << 60, pairs)])
    case = np.select(
        [(change[:, 0] >= 0) & (change[:, 1] <= 0), (change < 0).all(1), (change > 0).all(1)], [1, 2, 3], 4
    )
    return pd.DataFrame(
        {
            "step": step,
            "rank": 0,
            "pair_id": ids[which],
            **sides,
            "pull_chosen": pull,
            "pull_rejected": pull,
            "grad_cosine": cosine,
            "grad_inner": cosine * norms.prod(1),
            "loss": np.log1p(np.exp(-0.1 * ((logp - start) @ (1, -1)))),
            "case_plain": case,
            "case_realised": case,
            "predicted_delta_chosen": 0.5 * change[:, 0],
            "predicted_delta_rejected": 0.5 * change[:, 1],
        }
    )


WORDS = (
    "the",
    "report",
    "of",
    "a",
    "long",
    "run",
    "has",
    "to",
    "name",
    "pairs",
    "that",
    "matter",
    "and",
    "leave",
    "others",
)


def examples(ids: np.ndarray, draw: np.random.Generator) -> pd.DataFrame:
    """Texts of sixty words for every pair, out of two hundred."""
    texts = [" ".join(draw.choice(WORDS, 60)) for _ in range(200)]
    parts = enumerate(("prompt", "chosen", "rejected"))
    columns = {name: [texts[(k * 7 + shift) % 200] for k in range(len(ids))] for shift, name in parts}
    return pd.DataFrame({"pair_id": ids, **columns})


def tables(steps: int, batch: int, pairs: int, layers: int) -> dict[str, pd.DataFrame]:
    """The tables of the run."""
    rows, draw = pair_rows(steps, batch, pairs), np.random.default_rng(1)
    pushes = []
    for side in ("chosen", "rejected"):
        parts = {name: draw.normal(0, 0.05, len(rows)) for name in PARTS}
        pushes.append(
            rows[["step", "rank", "pair_id"]].assign(side=side, metric="applied", **parts, total=sum(parts.values()))
        )
    by_layer = [
        rows[["step", "pair_id"]].assign(
            layer=f"block {k}",
            depth=k,
            grad_inner=rows["grad_inner"] / layers,
            grad_norm_chosen=rows["grad_norm_chosen"] / layers**0.5,
            grad_norm_rejected=rows["grad_norm_rejected"] / layers**0.5,
        )
        for k in range(layers)
    ]
    norm = draw.lognormal(0, 0.2, steps)
    return {
        "pairs": rows,
        "pushes": pd.concat(pushes),
        "layers": pd.concat(by_layer),
        "steps": pd.DataFrame(
            {
                "step": np.arange(steps),
                "rank": 0,
                "pairs": batch,
                "learning_rate": 1e-6,
                "grad_norm": norm,
                "grad_norm_clipped": np.minimum(norm, 1),
            }
        ),
        "examples": examples(rows["pair_id"].unique(), draw),
    }


def main() -> None:
    """Write the run, build its report, print what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("steps", 10_000), ("batch", 16), ("pairs", 20_000), ("layers", 12)):
        parser.add_argument(f"--{name}", type=int, default=value)
    size = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        writer = TraceWriter(
            run,
            {"config": {"lr": 1e-6, "beta": 0.1}, "objective": {"name": "dpo", "hyper": {"beta": 0.1}}},
            flush_rows=200_000,
        )
        for name, frame in tables(**size).items():
            for start in range(0, len(frame), 100_000):
                writer.add(name, frame.iloc[start : start + 100_000].to_dict("records"))
        writer.close("closed")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", BUILD, str(run)], env=environment, capture_output=True, text=True)
        print(done.stderr[-2000:], end="")
        print(json.dumps({**size, **json.loads(done.stdout)}) if done.returncode == 0 else "failed")


if __name__ == "__main__":
    main()
