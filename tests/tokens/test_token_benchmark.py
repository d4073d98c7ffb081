"""The token benchmark runs, and its two variants give the same answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "tokens.py"


@pytest.mark.slow
def test_a_tiny_benchmark_runs(tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--tokens", "3", "--prompt", "4", "--rounds", "1"]
    done = subprocess.run([*command, "--no-memory", "--json", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["difference"] < 1e-5 and set(found) == {"token_gram", "a backward per token", "difference"}
    assert all(found[name]["seconds"] > 0 for name in ("token_gram", "a backward per token"))
    assert "3+3 response tokens" in done.stdout
