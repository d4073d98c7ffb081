"""One recorder per trace folder."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from dyn_probe.errors import TraceError

try:
    import fcntl
except ImportError:  # not a POSIX system: two recorders of one folder go unnoticed
    fcntl = None  # type: ignore[assignment]


PATIENCE = 0.1
"""Seconds for which a recorder asks again: ``is_recording`` of another process holds the lock for a moment."""
PAUSE = 0.005


class FolderLock:
    """A lock on a folder, held until ``release`` or until the process ends, however it ends.

    Where the file system knows no locks, nothing is locked.

    Args:
        run: the folder.
        patience: for how many seconds a lock that is held is asked for again.

    Raises:
        TraceError: another recorder holds the folder.
    """

    def __init__(self, run: Path, patience: float = PATIENCE) -> None:
        self._folder = os.open(run, os.O_RDONLY) if fcntl else -1
        try:
            self._take(time.monotonic() + patience)
        except BlockingIOError:
            self._close()
            raise TraceError(
                f"cannot record into {run}, because another process is recording into it; "
                f"wait for it, close it, or name another folder"
            ) from None
        except OSError:
            self._close()

    def _take(self, until: float) -> None:
        """Ask until that time."""
        held = True
        while fcntl and held:
            try:
                fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = False
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
                time.sleep(PAUSE)

    def release(self) -> None:
        """Release the lock, also for forked children that have a copy of it. A second call does nothing."""
        if self._folder >= 0 and fcntl:
            with suppress(OSError):
                fcntl.flock(self._folder, fcntl.LOCK_UN)
        self._close()

    def _close(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)
        self._folder = -1


def is_recording(run: Path) -> bool:
    """Whether a process holds the lock of the folder; true also where that cannot be known. Asking takes the lock for a
    moment where it is free."""
    try:
        FolderLock(run, patience=0).release()
    except TraceError:
        return True
    except OSError:
        return run.is_dir()
    return fcntl is None
