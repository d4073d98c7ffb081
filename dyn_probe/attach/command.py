"""``dyn-probe record … -- COMMAND…``: somebody's own command, run with a recorder that is put in by the environment."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.attach.user_lines import say

OPTIONS, SEEN = "DYN_PROBE_ATTACH", "DYN_PROBE_SEEN"
"""Environment variables: the options, and the file that is made where a preference trainer begins."""
PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that are handed on to the command. Ctrl-C reaches it by itself."""
UNSEEN = (
    "no preference training was seen, nothing is recorded: wanted a Python command that trains with TRL's DPOTrainer "
    "(python with -I, -E or -S takes no recorder in)"
)


def run_recorded(command: Sequence[str], options: AttachOptions) -> int:
    """Run the command and wait for its end.

    Returns:
        Its exit code; negative where a signal ended it, as in ``subprocess``; 127 or 126 where it cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="dyn-probe-") as folder:
        seen = Path(folder) / "seen"
        try:
            process = subprocess.Popen(list(command), env=environment(options, seen))
        except OSError as error:
            say(f"cannot start {command[0]}: {error.strerror}")
            return 127 if isinstance(error, FileNotFoundError) else 126
        with _passing_signals_on(process):
            code = process.wait()
        if not seen.exists():
            say(UNSEEN)
    return code


def environment(options: AttachOptions, seen: Path) -> dict[str, str]:
    """The environment with our ``sitecustomize`` before all others."""
    own = str(Path(__file__).resolve().parent / "inject")
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([own, before] if before else [own])
    chosen = AttachOptions.of({**vars(options), "out": os.path.abspath(options.out)})
    return {**os.environ, "PYTHONPATH": path, OPTIONS: chosen.as_text(), SEEN: str(seen)}


@contextmanager
def _passing_signals_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Signals to us go to the command; we stay until it has ended."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    old = {one: signal.signal(one, pass_on) for one in PASSED_ON}
    old[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for one, handler in old.items():
            signal.signal(one, handler)


def end_like(code: int) -> int:
    """The exit code of a command; a signal that ended it ends this process too."""
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code
