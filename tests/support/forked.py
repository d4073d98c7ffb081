"""Processes that begin with their imports done: forked from a server that has imported the library and torch once.

A test of signals, exit codes, limits or groups of processes needs a process of its own, not the seconds that importing
torch and transformers takes each. The server only imports, it computes nothing: a copy of it is a fresh interpreter.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["dyn_probe.train.loop", "dyn_probe.report.build", "dyn_probe_cli.app", "transformers.models.gpt2.modeling_gpt2"]
)


def _child(
    command: tuple[str, ...],
    environment: dict[str, str],
    folder: str,
    outputs: tuple[Connection, Connection],
    before: Callable[[], None] | None,
) -> None:
    """What the interpreter does with ``-c CODE``, ``-m MODULE`` or a script, and its arguments."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, pipe in enumerate(outputs, 1):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1, errors="backslashreplace")
    if before is not None:
        before()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as an interpreter does when it starts
        signal.signal(signal.SIGINT, signal.default_int_handler)
    kind, *rest = command
    try:
        if kind == "-c":
            code, *arguments = rest
            sys.argv = ["-c", *arguments]
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), main.__dict__)
        elif kind == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [kind, *rest]
            sys.path.insert(0, str(Path(kind).parent))
            runpy.run_path(kind, run_name="__main__")
    finally:
        atexit._run_exitfuncs()


class Forked:
    """``python COMMAND`` as such a process, with the part of ``subprocess.Popen`` that tests use."""

    def __init__(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Start it; ``before`` is what the child does first, a function of a module."""
        pipes = [CONTEXT.Pipe(duplex=False) for _ in range(2)]
        given = (command, dict(os.environ if env is None else env), str(cwd or os.getcwd()))
        self._process = CONTEXT.Process(target=_child, args=(*given, tuple(write for _, write in pipes), before))
        self._process.start()
        for _, write in pipes:
            write.close()
        self._readers = ThreadPoolExecutor(2)
        self._said = [self._readers.submit(_all_of, read) for read, _ in pipes]
        self.command = command

    def poll(self) -> int | None:
        """The exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self._process.pid or 0, number)

    def ended(self, timeout: float = 500) -> subprocess.CompletedProcess[str]:
        """How it ended, and what it wrote to standard output and error.

        Raises:
            subprocess.TimeoutExpired: it did not end; it is killed.
        """
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            self._process.kill()
            raise subprocess.TimeoutExpired(self.command, timeout)
        said = [one.result() for one in self._said]
        self._readers.shutdown()
        return subprocess.CompletedProcess(self.command, code, *said)


def _all_of(pipe: Connection) -> str:
    with open(os.dup(pipe.fileno()), encoding="utf-8", errors="replace") as file:
        pipe.close()
        return file.read()


def run(
    *command: str,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run([sys.executable, *command], capture_output=True, text=True)`` with such a process."""
    return Forked(*command, env=env, cwd=cwd, before=before).ended()
