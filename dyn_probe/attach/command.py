"""``dyn-probe record … -- COMMAND…``: somebody's own command, run with a recorder that is put in by the environment."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.attach.user_lines import next_step, say
from dyn_probe.errors import TraceError
from dyn_probe.trace.manifest import read_manifest

OPTIONS, SEEN = "DYN_PROBE_ATTACH", "DYN_PROBE_SEEN"
"""Environment variables: the options, and the file that is made where a preference trainer begins."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that are handed on to the command."""
UNSEEN = (
    "no preference training was seen, nothing is recorded: wanted a Python command that trains with TRL's DPOTrainer, "
    "CPOTrainer, ORPOTrainer or KTOTrainer "
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
        say_what_came(seen)
    return code


def say_what_came(seen: Path) -> None:
    """One line where the command left no trace, and one for each trace that it left unclosed.

    Args:
        seen: the file that its preference trainers made: the folder of a trace on each line.
    """
    if not seen.exists():
        say(UNSEEN)
        return
    for folder in map(Path, seen.read_text(encoding="utf-8").splitlines()):
        with suppress(TraceError):
            if read_manifest(folder)["status"] == "recording":
                say(f"the command ended without closing its trace; what was written is kept. {next_step(folder)}")


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
        if number != signal.SIGINT or not _in_foreground():
            process.send_signal(number)

    old = {one: signal.signal(one, pass_on) for one in PASSED_ON if signal.getsignal(one) != signal.SIG_IGN}
    try:
        yield
    finally:
        for one, handler in old.items():
            signal.signal(one, handler)


def _in_foreground() -> bool:
    """Whether a terminal's Ctrl-C goes to us, and so to the command as well."""
    try:
        terminal = os.open(os.ctermid(), os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def end_like(code: int) -> int:
    """The exit code of a command; a signal that ended it ends this process too."""
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code
