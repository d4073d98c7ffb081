"""Bad input at a door: it is answered, or refused in one sentence, and never ends in a traceback."""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from unittest import mock

from typer.main import get_command

from dyn_probe.errors import DynProbeError
from trust.tally import Tally

LONGEST = 3000
"""Characters of a refusal at most: what it quotes is cut."""
TRACEBACKS, UNCLEAR = "tracebacks", "unclear refusals"


def new_tally(title: str) -> Tally:
    """For a door."""
    return Tally(title, zero={TRACEBACKS: 0, UNCLEAR: 0}, facts={"answered": "0", "refused": "0"})


def is_clear(message: str) -> bool:
    """Whether a refusal is one line that steers no terminal."""
    return message.isprintable() and 10 < len(message) < LONGEST


def attempt(tally: Tally, what: str, call: Callable[[], Any]) -> Any:
    """One case; returns what the door answered, None where it refused or failed."""
    tally.tried += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = call()
    except DynProbeError as error:
        _count(tally, "refused")
        if not is_clear(str(error)):
            tally.fail(UNCLEAR, f"{what}: {str(error)[:200]!r}")
        return None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        tally.fail(TRACEBACKS, f"{what}: {type(error).__name__} at {place}: {str(error)[:200]!r}")
        return None
    _count(tally, "answered")
    return answer


def command(tally: Tally, what: str, arguments: Sequence[str]) -> None:
    """One case of the command line, in this process: an exit code of ours, and one clear line where it refuses."""
    from dyn_probe_cli.app import main

    tally.tried += 1
    built = _command_line()
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            mock.patch.object(sys, "argv", ["dyn-probe", *arguments]),
            mock.patch("dyn_probe_cli.app.app", built),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            main()
    except SystemExit as left:
        code = left.code or 0
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        tally.fail(TRACEBACKS, f"{what}: {type(error).__name__} at {place}: {str(error)[:200]!r}")
        return
    _count(tally, "answered" if code in (0, 3) else "refused")
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("dyn-probe: warning")]
    steers = any(not one.isprintable() and one not in "\n\r" for one in out.getvalue() + err.getvalue())
    if code not in (0, 1, 2, 3) or (code == 2 and len(lines) != 1) or steers:
        tally.fail(UNCLEAR, f"{what}: exit code {code}, {err.getvalue()[-300:]!r}")


@cache
def _command_line() -> Any:
    """The parsers of all commands; to build them takes longer than most commands."""
    from dyn_probe_cli.app import app

    return get_command(app)


def _count(tally: Tally, name: str) -> None:
    tally.facts[name] = str(int(tally.facts[name]) + 1)
