"""What a command has loaded by its end, seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "transformers", "datasets", "pandas", "matplotlib")


def run_and_list(arguments: list[str], cwd: Path | None = None) -> tuple[int, str, list[str]]:
    """Exit code of ``dyn-probe ARGUMENTS``, what it wrote to standard error, and which of HEAVY it has loaded."""
    script = (
        "import sys\nfrom dyn_probe_cli.app import main\ncode = 0\n"
        f"sys.argv = ['dyn-probe', *{arguments!r}]\n"
        "try: main()\nexcept SystemExit as stop: code = stop.code or 0\n"
        f"print('LOADED', code, *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=cwd)
    code, *loaded = done.stdout.rpartition("LOADED")[2].split()
    return int(code), done.stderr, loaded
