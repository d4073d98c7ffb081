"""SIGTERM and SIGHUP end a run as Ctrl-C does: the trace is closed, and the exit code names the signal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What a job scheduler sends before it kills, and what a closed terminal sends."""


class StoppedBySignal(KeyboardInterrupt):
    """A signal asked the run to end. Whatever handles Ctrl-C handles it.

    Args:
        number: the signal; the process should leave with ``exit_code``, 128 + the number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def reason_of(error: BaseException) -> str:
    """Why a recording stopped, for ``run.json``: the signal, or the error and its type."""
    return str(error) if isinstance(error, StoppedBySignal) else f"{type(error).__name__}: {error}"


@contextmanager
def stopping_signals(second_kills: bool = False) -> Iterator[Sequence[int]]:
    """Raise ``StoppedBySignal`` in the main thread at the first of ``SIGNALS``; later ones do not disturb the closing.

    Args:
        second_kills: later ones do what they would have done. For somebody else's training, which may catch the
            first one, or wait for other processes while it ends.

    A signal that is ignored (``nohup``) or that somebody else handles is left alone; afterwards all are as before. In a
    process that was forked meanwhile they do what they would have done.

    Yields:
        the signal that came, once one has.
    """
    ours = threading.current_thread() is threading.main_thread()
    taken = [number for number in SIGNALS if ours and signal.getsignal(number) is signal.SIG_DFL]
    terminals = [stream for stream in (1, 2) if os.isatty(stream)]
    came: list[int] = []
    process = os.getpid()

    def stop(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:
            die_by(number)
        if came:
            return
        came.append(number)
        if second_kills:
            _let_go(taken)
        if number == getattr(signal, "SIGHUP", None):
            _leave_terminal(terminals)
        raise StoppedBySignal(number)

    try:
        for number in taken:
            signal.signal(number, stop)
        yield came
    finally:
        _let_go(taken)


@contextmanager
def undisturbed(error: BaseException) -> Iterator[None]:
    """Around the closing of a trace: where Ctrl-C (``error``) began it, one more does not disturb it, since a launcher
    hands on what its terminal has sent to every process already. The next one does."""
    old = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread() and callable(old)
    if not (ours and isinstance(error, KeyboardInterrupt)):
        yield
        return

    def wait(number: int, _: FrameType | None) -> None:
        signal.signal(signal.SIGINT, old)

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


def _let_go(taken: list[int]) -> None:
    """These signals do again what they do by default."""
    for number in taken:
        signal.signal(number, signal.SIG_DFL)


def die_by(number: int) -> None:
    """End this process by that signal, as if it had never been handled."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _leave_terminal(streams: list[int]) -> None:
    """Point standard output and error at nothing: writing to a terminal that is gone fails."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nothing, stream)
    os.close(nothing)
