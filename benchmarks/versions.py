"""``make versions``: a core of the tests against the oldest and the newest supported version of each package.

    python benchmarks/versions.py [--only WORD]

Each version is installed alone, without what it depends on, into a folder of its own before the environment's. Exit
code 1 where tests fail; a version that cannot be installed here is named.
"""

from __future__ import annotations

import argparse
import os
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
    ("trl", "1.10.0"): ("tests/attach/test_attach_trl.py",),
    ("torch", "2.11.0"): TRAINING,
}
"""Oldest versions, and the tests that use the package most; the newest are those of constraints.txt, which `make test`
runs with."""
BESIDE = {"pandas": ("pytz",), "transformers": ("tokenizers==0.22.1",)}
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
    command += ["--target", str(place), wanted, *BESIDE.get(package, ())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return place if done.returncode == 0 else None


def _cpu_build(version: str) -> bool:
    """Whether the index has a build without CUDA, which takes a tenth of the room."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--dry-run", "--ignore-installed"]
    return subprocess.run([*command, f"torch=={version}+cpu"], capture_output=True, check=False).returncode == 0


def run(tests: tuple[str, ...], place: Path | None = None) -> tuple[bool, str]:
    """(whether they pass, the last line of pytest)."""
    path = [str(place)] if place else []
    more = {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
    done = subprocess.run(
        [*command, "--tb=line", *tests],
        cwd=ROOT,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        check=False,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (
        done.returncode == 0,
        "passed" if not done.returncode else f"{len(failed)} failed: {' '.join(failed[:2])[:300]}",
    )


def main() -> int:
    """Install and run what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="packages whose name contains this; newest: the environment itself")
    only, good = parser.parse_args().only, True
    for (package, version), tests in VERSIONS.items():
        if only not in package:
            continue
        place = install(package, version)
        if place is None:
            print(f"{package} {version}: not tried, there is no build of it that can be had cheaply here", flush=True)
            continue
        passed, said = run(tests, place)
        good = good and passed
        print(f"{package} {version}: {said}", flush=True)
    if only in "newest":
        passed, said = run(NEWEST)
        good = good and passed
        print(f"the versions of the environment: {said}", flush=True)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
