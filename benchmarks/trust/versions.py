"""A core of the tests against the oldest and the newest supported version of each package.

Each version is installed alone, without what it depends on, into a folder of its own before the environment's; a
version that cannot be installed here is named.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from trust.tally import Tally

ROOT = Path(__file__).parents[2]
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
LEFT = "not tried:"
"""Fact that names what could not be installed."""
NEWEST = tuple(dict.fromkeys(test for tests in VERSIONS.values() for test in tests))


def install(package: str, version: str) -> Path | str:
    """The folder with this version alone; why, where it cannot be installed."""
    place = ROOT / ".versions" / f"{package}-{version}"
    if place.exists():
        return place
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    wanted = f"{package}=={version}"
    if package == "torch" and not _cpu_build(version):
        return "no build of it without CUDA"
    part = place.with_name(place.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    command += ["--target", str(part), wanted, *BESIDE.get((package, version), ())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    return part.rename(place)


def _cpu_build(version: str) -> bool:
    """Whether the index has a build without CUDA, which takes a tenth of the room."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--dry-run", "--ignore-installed"]
    return subprocess.run([*command, f"torch=={version}+cpu"], capture_output=True, check=False).returncode == 0


def run(tests: tuple[str, ...], place: Path | None = None) -> tuple[int, list[str]]:
    """(how many pass, which do not)."""
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
    if done.returncode and not failed:
        failed = [f"pytest ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-200:]}"]
    counted = re.search(r"(\d+) passed", done.stdout)
    return int(counted[1]) if counted else 0, failed


def try_versions(folder: Path, count: int, seed: int) -> Tally:
    """Each of VERSIONS, and the environment as it is, on the tests that use it most. ``folder``, ``count`` and ``seed``
    are those of the other trials, and are not used."""
    tally = Tally("oldest and newest versions of packages", zero={"failed": 0})
    for (package, version), tests in VERSIONS.items():
        place = install(package, version)
        if isinstance(place, str):
            left = [tally.facts[LEFT]] if LEFT in tally.facts else []
            tally.facts[LEFT] = "; ".join([*left, f"{package} {version} ({place})"])
        else:
            _count(tally, f"{package} {version}", tests, place)
    _count(tally, "those of constraints.txt", NEWEST, None)
    return tally


def _count(tally: Tally, name: str, tests: tuple[str, ...], place: Path | None) -> None:
    """Run the tests and enter how they went."""
    passed, failed = run(tests, place)
    tally.tried += 1
    tally.parts[name] = {"tests passed": passed, "tests failed": len(failed)}
    if failed:
        tally.fail("failed", f"{name}: {' '.join(failed[:2])[:300]}", len(failed))
