"""``make versions``: a core of the tests against the oldest and the newest supported version of each package.

    python benchmarks/versions.py [--only WORD] [--keep FILE]

Each version is installed alone, without what it depends on, into a folder of its own before the environment's. Exit
code 1 where tests fail; a version that cannot be installed here is named.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
READING = (
    "tests/trace/test_trace_values.py",
    "tests/trace/test_trace_selection.py",
    "tests/report/test_report_frames.py",
)
TRAINING = ("tests/probe/test_probe.py", "tests/probe/test_probe_pushes.py")
VERSIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("pandas", "2.2.3"): READING,
    ("pyarrow", "17.0.0"): READING,
    ("transformers", "5.0.0"): ("tests/data/test_data_models.py",),
    ("transformers", "5.24.0"): ("tests/data/test_data_models.py", "tests/probe/test_probe.py"),
    ("trl", "1.10.0"): ("tests/attach/test_attach_trl.py",),
    ("torch", "2.11.0"): TRAINING,
}
"""Oldest versions, newest ones where those are not of constraints.txt (which `make test` runs with), and the tests that
use the package most."""
BESIDE = {
    ("pandas", "2.2.3"): ("pytz",),
    ("transformers", "5.0.0"): ("tokenizers==0.22.1", "huggingface-hub<2", "httpx<1", "httpcore<2"),
}
"""What an old version needs beside itself that the environment has not."""
NEWEST = tuple(dict.fromkeys(test for tests in VERSIONS.values() for test in tests))


def install(package: str, version: str) -> Path | None:
    """The folder with this version alone; None where it cannot be installed."""
    place = ROOT / ".versions" / f"{package}-{version}"
    if place.exists():
        return place
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    wanted = f"{package}=={version}"
    if package == "torch" and not _cpu_build(version):
        return None
    command += ["--target", str(place), wanted, *BESIDE.get((package, version), ())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return place if done.returncode == 0 else None


def _cpu_build(version: str) -> bool:
    """Whether the index has a build without CUDA, which takes a tenth of the room."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--dry-run", "--ignore-installed"]
    return subprocess.run([*command, f"torch=={version}+cpu"], capture_output=True, check=False).returncode == 0


def run(tests: tuple[str, ...], place: Path | None = None) -> tuple[bool, str]:
    """(whether they pass, how many did and which did not)."""
    path = [*([str(place)] if place else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    more = {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-v",
        "-m",
        "not slow and not gpu",
    ]
    done = subprocess.run(
        [*command, "--tb=line", *tests],
        cwd=ROOT,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        check=False,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    counted = re.search(r"(\d+) passed", done.stdout)
    passed = f"{counted[1] if counted else 0} passed"
    broken = f", {len(failed)} failed: {' '.join(failed[:2])[:300]}" if done.returncode else ""
    return done.returncode == 0, passed + broken


def main() -> int:
    """Install and run what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="packages whose name contains this; newest: the environment itself")
    parser.add_argument("--keep", type=Path, help="JSON file for the results")
    given = parser.parse_args()
    only, found = given.only, dict[str, str]()
    for (package, version), tests in VERSIONS.items():
        if only not in package:
            continue
        place = install(package, version)
        if place is None:
            found[f"{package} {version}"] = "not tried: there is no build of it that can be had cheaply"
        else:
            found[f"{package} {version}"] = run(tests, place)[1]
        print(f"{package} {version}: {found[f'{package} {version}']}", flush=True)
    if only in "newest":
        found["those of constraints.txt"] = run(NEWEST)[1]
        print(f"those of constraints.txt: {found['those of constraints.txt']}", flush=True)
    if given.keep:
        known = json.loads(given.keep.read_text(encoding="utf-8")) if given.keep.exists() else {}
        given.keep.write_text(json.dumps(known | found, indent=1) + "\n", encoding="utf-8")
    return int(any("failed" in said for said in found.values()))


if __name__ == "__main__":
    sys.exit(main())
