"""Progress in a log file: plain lines, one at least every so many seconds and one at the end of a stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

PERIOD = 30.0
"""Longest silence of a stage, in seconds."""

Clock = Callable[[], float]


class Stop(Protocol):
    """What ends the lines of a stage: a ``threading.Event``."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds; True once ``set`` was called."""

    def set(self) -> None:
        """End the stage."""


class StageLines:
    """The lines of one stage.

    Args:
        title: name of the stage.
        total: units of work in it.
        say: prints a line.
        clock: seconds, from any beginning.
        period: a line is due this many seconds after the last one.
    """

    def __init__(self, title: str, total: int, say: Callable[[str], None], clock: Clock, period: float) -> None:
        self.title, self.total, self.period = title.strip(), total, period
        self._say, self._clock = say, clock
        self._done, self._note = 0.0, ""
        self._start = self._last = clock()
        self._first: tuple[float, float] | None = None  # when the first advance came, and how much was done by then
        self._moved = self._start  # when the last one came
        self._lock = threading.Lock()
        self.spoken = False

    def advance(self, by: float = 1, note: str = "") -> None:
        """Note that more is done."""
        with self._lock:
            self._done, self._note, self._moved = self._done + by, note, self._clock()
            self._first = self._first or (self._moved, self._done)

    def beat(self) -> float:
        """Print a line if one is due; returns the seconds until the next one is."""
        now = self._clock()
        if now - self._last >= self.period:
            self._print(f", {written(now - self._start)}{self._left(now)}")
            self._last = now
        return self.period - (now - self._last)

    def end(self) -> None:
        """Print the last line."""
        self._print(f" in {written(self._clock() - self._start)}")

    def _print(self, times: str) -> None:
        with self._lock:
            note = f", {self._note}" if self._note else ""
            self._say(f"{self.title} {self._done:.0f}/{self.total}{times}{note}")
            self.spoken = True

    def _left(self, now: float) -> str:
        """The time left at the speed between the first advance and the last; nothing before there are two."""
        if self._first is None or not self._done > self._first[1]:
            return ""
        seconds = (self._moved - self._first[0]) / (self._done - self._first[1])
        return f", about {written(max(0.0, seconds * (self.total - self._done) - (now - self._moved)))} left"


def written(seconds: float) -> str:
    """Seconds as h:mm:ss, without the hours where there are none."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def stage_lines(
    title: str,
    total: int,
    say: Callable[[str], None],
    last_line: bool = True,
    clock: Clock = time.monotonic,
    period: float = PERIOD,
    stop: Stop | None = None,
) -> Iterator[Callable[..., None]]:
    """Print the lines of a stage while it runs; what is yielded is called with ``(advance, text)``.

    A small thread prints, so that a line also comes while a single step takes long.

    Args:
        last_line: print one at the end even if the stage was too short for any other.
        stop: for tests; ends the lines.
    """
    lines, ending = StageLines(title, total, say, clock, period), stop or threading.Event()
    thread = threading.Thread(target=_keep_beating, args=(lines, ending), name="dyn-probe progress", daemon=True)
    thread.start()
    try:
        yield lines.advance
    finally:
        ending.set()
        thread.join()
        if last_line or lines.spoken:
            lines.end()


def _keep_beating(lines: StageLines, stop: Stop) -> None:
    wait = lines.period
    while not stop.wait(wait):
        wait = lines.beat()
